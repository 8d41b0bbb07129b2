//! What happens to a run's virtual machine, through its supervisor.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forrest_core::event::{EndReason, Trouble, VmEnd};
use forrest_core::model::{JobId, RunnerId, Timestamp};
use forrest_core::{KillReason, RunEvent};
use forrest_vm::protocol::{Happened, PauseReason, VmState};
use forrest_vm::run_dir::{self, RunDirState};
use forrest_vm::spec::{self, BootKind};
use forrest_vm::{JobFiles, Outcome, ShimClient, VmError, Watch, spawn_shim};
use secrecy::SecretString;

use super::{Executors, RunContext, blocking, disks};
use crate::clock::now;
use crate::record::RunRecord;

/// Pause before a supervisor that lives but does not answer is asked again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// The longest that a guest waits for others that are on their way to their runners: those may wait for
/// GitHub.
const TURN_MAX: Duration = Duration::from_secs(5);
/// How long a virtual machine may take to end that nobody wants.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a supervisor is told of a time limit that it does not take.
const LIMIT_TRIES: u32 = 5;
/// Pause between two looks whether it has ended.
const END_PAUSE: Duration = Duration::from_millis(20);

impl Executors {
    /// Starts the virtual machine and watches it until it is gone.
    pub(crate) async fn start(
        self,
        run: Arc<RunContext>,
        id: RunnerId,
        jit_config: Option<SecretString>,
    ) {
        if let Err(what) = self.try_start(&run, id, jit_config).await {
            self.answer(&run, RunEvent::StartFailed(Trouble::new(what))).await;
            return;
        }
        self.watch(run);
    }

    async fn try_start(
        &self,
        run: &Arc<RunContext>,
        id: RunnerId,
        jit_config: Option<SecretString>,
    ) -> Result<(), String> {
        let Some(jit_config) = jit_config else {
            return Err("its JIT configuration was lost".into());
        };
        let written = {
            let (store, host, run) = (self.store.clone(), Arc::clone(&self.host), Arc::clone(run));
            blocking(move || -> Result<JobFiles, String> {
                let files = disks::write_job_config(&store, &run, &jit_config)?;
                let mut record =
                    RunRecord::read(run.dir.path()).ok_or("the run's record cannot be read")?;
                record.runner_id = Some(id);
                record.write(run.dir.path()).map_err(|error| error.to_string())?;
                if !run.is_restored() {
                    disks::run_spec(&store, &run, &host)?
                        .write(run.dir.path())
                        .map_err(|error| error.to_string())?;
                }
                Ok(files)
            })
        };
        let files = written.await?;
        let dir = run.dir.path();
        if !run.is_restored()
            && let Err(error) = spawn_shim(&self.host.supervisor, dir).await
        {
            // A supervisor that was only slow would start a guest behind our back.
            return match run_dir::claim(dir) {
                Ok(true) => Err(error.to_string()),
                Ok(false) => Ok(()),
                Err(claim) => Err(format!("{error}; {claim}")),
            };
        }
        let attached = async { ShimClient::connect(dir).await?.attach_job_config(files).await };
        if let Err(error) = attached.await {
            // The watcher finds out what became of it.
            tracing::warn!(runner = %run.runner, %error, "could not hand over the job configuration");
        }
        Ok(())
    }

    /// Has the run's guest restored from its snapshot, while its runner is being registered. A guest that
    /// cannot be is found out about when it is to get its job configuration.
    pub(super) async fn restore(&self, run: &RunContext) {
        let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&self.turns).acquire_owned());
        if let Ok(Ok(turn)) = turn.await {
            run.take_turn(turn);
        }
        match spawn_shim(&self.host.supervisor, run.dir.path()).await {
            Ok(_) => drop(run.restored.set(())),
            Err(error) => {
                tracing::warn!(runner = %run.runner, %error, "its guest is not restored ahead");
                let dir = run.dir.path().to_owned();
                // One that is only slow has the run's files open: they must not be replaced under it.
                if !matches!(
                    blocking(move || run_dir::classify(&dir)).await,
                    Ok(RunDirState::NeverStarted)
                ) {
                    drop(run.restored.set(()));
                }
            }
        }
    }

    /// Follows a virtual machine until it is gone, in a task of its own that ends with the daemon.
    pub(crate) fn watch(self, run: Arc<RunContext>) {
        tokio::spawn(async move {
            let end = self.end_of(&run).await;
            run.end_turn();
            self.answer(&run, RunEvent::VmExited(end)).await;
        });
    }

    /// Waits for the end of a virtual machine.
    async fn end_of(&self, run: &RunContext) -> VmEnd {
        let mut told = false;
        loop {
            match self.follow(run).await {
                Ok(outcome) => return vm_end(&outcome),
                Err(error) => tracing::debug!(runner = %run.runner, %error, "not followed"),
            }
            let dir = run.dir.path().to_owned();
            match blocking(move || run_dir::classify(&dir)).await {
                Ok(RunDirState::Live) => tokio::time::sleep(RECONNECT_PAUSE).await,
                Ok(RunDirState::Over(outcome)) => return vm_end(&outcome),
                Ok(RunDirState::Lost | RunDirState::NeverStarted) => return supervisor_lost(now()),
                Err(error @ VmError::Malformed { .. }) => {
                    tracing::error!(runner = %run.runner, %error, "its end cannot be read");
                    return supervisor_lost(now());
                }
                // The host cannot look just now, which says nothing about a machine that may well live.
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(runner = %run.runner, %error, "cannot tell whether it lives: looking again");
                    }
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
            }
        }
    }

    async fn follow(&self, run: &RunContext) -> Result<Box<Outcome>, VmError> {
        let dir = run.dir.path();
        let (state, mut watch) = ShimClient::connect(dir).await?.watch().await?;
        if state.times.job_config_attached_at.is_none() && state.outcome.is_none() {
            // Whoever started it did not get to say so, or was killed in between. Its content is there: a run
            // is watched only once that is written.
            ShimClient::connect(dir).await?.attach_job_config(JobFiles::default()).await?;
        }
        let restored = state.boot == BootKind::Restored;
        for happened in so_far(&state) {
            self.tell(run, happened, restored).await;
        }
        if let Some(outcome) = state.outcome {
            return Ok(outcome);
        }
        self.follow_events(run, &mut watch, restored).await
    }

    async fn follow_events(
        &self,
        run: &RunContext,
        watch: &mut Watch,
        restored: bool,
    ) -> Result<Box<Outcome>, VmError> {
        while let Some(event) = watch.next().await? {
            match event.event {
                Happened::Exited { outcome } => return Ok(outcome),
                happened => self.tell(run, happened, restored).await,
            }
        }
        Err(VmError::NoShim { run_dir: run.dir.path().to_owned() })
    }

    async fn tell(&self, run: &RunContext, happened: Happened, restored: bool) {
        let event = match happened {
            Happened::VmStarted => RunEvent::VmStarted { restored },
            Happened::GuestReady => RunEvent::GuestReady,
            Happened::RunnerStarted => {
                run.end_turn();
                RunEvent::RunnerStarted
            }
            Happened::GuestError { text } => RunEvent::GuestError(text),
            Happened::Paused { reason: PauseReason::NoSpace } => RunEvent::Paused(
                "the host's disk is full; it goes on by itself when there is space again".into(),
            ),
            Happened::Paused { reason: PauseReason::IoError } => {
                RunEvent::Paused("the host's disk failed".into())
            }
            Happened::Resumed => RunEvent::Resumed,
            Happened::GoSent
            | Happened::RunnerExited { .. }
            | Happened::Exited { .. }
            | Happened::Unknown => return,
        };
        self.answer(run, event).await;
    }

    /// Tells the supervisor of the run's [`RunContext::deadline`].
    pub(crate) async fn set_job_deadline(self, run: Arc<RunContext>) {
        run.deadline.pass_on(async |until| limit(&run, until).await).await;
    }

    pub(crate) async fn power_down(self, run: Arc<RunContext>) {
        let asked = async { ShimClient::connect(run.dir.path()).await?.power_down().await };
        log_refusal(&run, "press its power button", asked.await);
    }

    pub(crate) async fn kill(self, run: Arc<RunContext>, why: KillReason) {
        let why = match why {
            KillReason::Fenced => "GitHub confirmed that its runner does not exist",
            KillReason::AfterJob => "its job was over and it did not shut down",
            KillReason::Operator => "the operator asked for it",
        };
        let asked = async { ShimClient::connect(run.dir.path()).await?.kill(why).await };
        log_refusal(&run, "end it", asked.await);
    }

    /// Writes down the run's [`RunContext::recorded_job`]. Not before the supervisor knows of its time limit: the next
    /// daemon takes that for set where the record has the job.
    pub(crate) async fn record_job(self, run: Arc<RunContext>) {
        run.deadline.pass_on(async |until| limit(&run, until).await).await;
        run.recorded_job.pass_on(async |job| record(&run, job).await).await;
    }
}

async fn record(run: &RunContext, job: JobId) {
    let dir = run.dir.path().to_owned();
    let recorded = blocking(move || match RunRecord::read(&dir) {
        Some(mut record) => {
            record.job = Some(job);
            record.write(&dir)
        }
        None => Ok(()),
    });
    if let Err(error) = recorded.await {
        tracing::warn!(runner = %run.runner, %job, %error, "could not record the run's job");
    }
}

async fn limit(run: &RunContext, until: Limit) {
    let ask = || async {
        let mut shim = ShimClient::connect(run.dir.path()).await?;
        shim.job_deadline(Some(until.by_the_clock())).await
    };
    let mut asked = ask().await;
    for _ in 1..LIMIT_TRIES {
        if matches!(asked, Ok(()) | Err(VmError::NoShim { .. })) {
            break;
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
        asked = ask().await;
    }
    log_refusal(run, "set its job's time limit", asked);
}

/// When a job is to end. The core says so by the host's clock, which may be set to another time before a supervisor
/// hears of it; so it is kept as a time that does not jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(Option<Instant>);

impl Limit {
    /// This time by the clock as it is now; [`Timestamp::NEVER`] is no limit.
    pub(crate) fn at(at: Timestamp) -> Self {
        let left = (at != Timestamp::NEVER).then(|| at.since(now()));
        Self(left.and_then(|left| Instant::now().checked_add(left)))
    }

    /// The same by the clock as it is now.
    fn by_the_clock(self) -> Timestamp {
        match self.0 {
            Some(until) => now() + until.saturating_duration_since(Instant::now()),
            None => Timestamp::NEVER,
        }
    }
}

/// Which virtual machines may be ended with their directory's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Those that never got a job configuration: no runner ever was in them. Its supervisor knows.
    IfUnused,
    /// One that a snapshot is made of.
    Build,
}

/// Makes sure that no virtual machine runs in this directory, nor will.
///
/// # Errors
/// Where one runs that may have a job, or that does not end in [`END_TIMEOUT`].
pub(super) async fn end(path: &Path, which: Ending) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    let ended = async {
        loop {
            let dir = path.to_owned();
            let claimed = blocking(move || match run_dir::claim(&dir) {
                Ok(true) => Ok(true),
                Ok(false) => run_dir::classify(&dir).map(|state| state != RunDirState::Live),
                Err(error) => Err(error),
            });
            if claimed.await.map_err(|error| error.to_string())? {
                return Ok(());
            }
            // It may be about to listen, or gone already.
            if let Ok(mut shim) = ShimClient::connect(path).await {
                let asked = match which {
                    Ending::IfUnused => shim.give_up("its runner is not wanted any more").await,
                    Ending::Build => shim.kill("the snapshot that it was for is given up").await,
                };
                if let Err(refused @ VmError::ShimRefused { .. }) = asked {
                    return Err(refused.to_string());
                }
            }
            tokio::time::sleep(END_PAUSE).await;
        }
    };
    match tokio::time::timeout(END_TIMEOUT, ended).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "the virtual machine in {} did not end within {} s",
            path.display(),
            END_TIMEOUT.as_secs()
        )),
    }
}

/// What a state tells of the past, as events.
fn so_far(state: &VmState) -> Vec<Happened> {
    let times = &state.times;
    let mut events = Vec::new();
    events.extend(times.vm_started_at.map(|_| Happened::VmStarted));
    events.extend(times.ready_at.map(|_| Happened::GuestReady));
    events.extend(times.runner_started_at.map(|_| Happened::RunnerStarted));
    events.extend(state.paused.map(|pause| Happened::Paused { reason: pause.reason }));
    events
}

fn log_refusal(run: &RunContext, what: &str, result: Result<(), VmError>) {
    match result {
        // It has ended by itself; its watcher knows.
        Ok(()) | Err(VmError::NoShim { .. }) => {}
        Err(error) => tracing::warn!(runner = %run.runner, %error, "could not {what}"),
    }
}

/// An outcome in the core's words.
pub(crate) fn vm_end(outcome: &Outcome) -> VmEnd {
    use forrest_vm::EndReason as Vm;
    let reason = match outcome.reason {
        Vm::GuestShutdown => EndReason::GuestShutdown,
        Vm::GuestReset => EndReason::GuestReset,
        Vm::GuestPanicked => EndReason::GuestPanicked,
        Vm::Killed => EndReason::Killed,
        Vm::IoError => EndReason::IoError,
        Vm::RestoreFailed => EndReason::RestoreFailed,
        Vm::BootTimeout => EndReason::BootTimeout,
        Vm::JobTimeout => EndReason::JobTimeout,
        Vm::QemuFailed | Vm::TemplateSaved | Vm::Unknown => EndReason::QemuFailed,
    };
    let mut detail: Vec<&str> = vec![outcome.detail.as_str()];
    detail.extend(outcome.guest_errors.iter().map(String::as_str));
    if reason == EndReason::QemuFailed {
        detail.extend(outcome.stderr.iter().map(String::as_str));
    }
    detail.retain(|text| !text.is_empty());
    let at = outcome.times.ended_at.unwrap_or_else(now);
    VmEnd { reason, detail: (!detail.is_empty()).then(|| detail.join("; ")), at }
}

/// The end of a virtual machine whose supervisor was killed.
pub(crate) fn supervisor_lost(at: Timestamp) -> VmEnd {
    let detail = "its supervisor was killed, or the host went down; QEMU died with it".to_owned();
    VmEnd { reason: EndReason::SupervisorLost, detail: Some(detail), at }
}

/// How guest code is executed, in the words of `run.json`.
pub(crate) fn accel_name(accel: spec::Accel) -> &'static str {
    match accel {
        spec::Accel::Kvm => "kvm",
        spec::Accel::Tcg => "tcg",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_as_far_away_as_it_was_said_to_be() {
        let (left, before) = (Duration::from_secs(600), now());
        let by_the_clock = Limit::at(before + left).by_the_clock();
        assert!(by_the_clock.since(before) <= left + now().since(before));
        assert!(by_the_clock + Duration::from_millis(2) >= before + left, "{by_the_clock:?}");
        assert_eq!(Limit::at(Timestamp::NEVER).by_the_clock(), Timestamp::NEVER);
        // Over already.
        assert!(Limit::at(Timestamp(0)).by_the_clock() <= now());
    }
}
