//! The daemon's work on disks and with supervisors, step by step: a crash between two steps leaves
//! what the first one did.

use forrest_core::event::{EndReason, Event, Persist, RunEvent, Trouble, VmEnd};
use forrest_core::image_choice::choose_start_image;
use forrest_core::model::{
    Bytes, Generation, ImageRef, JobId, RunnerId, RunnerName, StartImage, Timestamp, UseBase,
};
use forrest_core::snapshots::BuildTrouble;

use crate::checker::Broken;
use crate::plan::{MINUTE, SECOND};

use super::host::{Disk, Image, RunDir, Vm, told_end};
use super::{Action, World};

/// One step of work.
#[derive(Debug)]
pub(crate) enum Work {
    /// Make the directory and fork the disk.
    Fork(RunnerName, usize, u64),
    /// Write the runner's id down and start the virtual machine.
    Start(RunnerName, RunnerId, u64),
    /// Hand a deadline to the supervisor, or that there is none.
    Deadline(RunnerName, Option<u64>),
    /// Press the power button.
    PowerDown(RunnerName),
    /// End the virtual machine.
    Kill(RunnerName),
    /// Read the job-config disk.
    Read(RunnerName),
    /// Make the disk a generation.
    Promote(RunnerName, usize, u64),
    /// Remove the disk.
    Discard(RunnerName, u64),
    /// Remove the directory.
    Forget(RunnerName),
    /// Write the job down.
    Record(RunnerName, JobId),
    /// Take a generation out of use.
    MarkBroken(usize, Generation),
    /// See whether a snapshot fits.
    CheckSnapshot(usize),
    /// Begin to build one.
    BuildSnapshot(usize),
    /// Give up building it.
    CancelSnapshot(usize),
    /// Throw it away.
    DropSnapshot(usize),
}

impl World {
    /// Has a step of the present daemon's work done after a while; the result says when the whole is.
    pub(super) fn later(&mut self, most: u64, work: impl FnOnce(u64) -> Work) {
        let takes = self.random.spread(2, most);
        let step = self.random.between(1, takes);
        let work = work(self.now + takes);
        self.after(step, Action::Work(self.epoch, work));
    }

    fn done(&mut self, at: u64, runner: &RunnerName, event: RunEvent) {
        let event = Event::Run { runner: runner.clone(), event };
        self.at(at.max(self.now), Action::Tell(self.epoch, Box::new(event)));
    }

    fn disk_fails(&mut self) -> bool {
        self.weather.disk_full || self.disk_breaks()
    }

    /// Whether something fails that does not take new space.
    fn disk_breaks(&mut self) -> bool {
        self.weather.disk_broken || self.strikes(self.plan.faults.disk_failed)
    }

    pub(super) fn work(&mut self, work: Work) -> Result<(), Broken> {
        match work {
            Work::Fork(runner, machine, done) => self.fork(&runner, machine, done),
            Work::Start(runner, id, done) => return self.start(&runner, id, done),
            Work::Deadline(runner, at) => self.set_deadline(&runner, at),
            Work::PowerDown(runner) => {
                self.checker_on_stop(&runner, "its power button is pressed")?;
                self.press_power(&runner);
            }
            Work::Kill(runner) => return self.kill(&runner),
            Work::Read(runner) => self.read(&runner),
            Work::Promote(runner, machine, done) => return self.promote(&runner, machine, done),
            Work::Discard(runner, done) => return self.discard(&runner, done),
            Work::Forget(runner) => self.host.forget(&runner),
            Work::Record(..) if self.weather.disk_broken => {}
            Work::Record(runner, job) => {
                if let Some(run) = self.host.runs.get_mut(&runner) {
                    run.job = Some(job);
                }
            }
            Work::MarkBroken(machine, generation) => {
                if let Some(image) = self.host.images[machine].generations.get_mut(&generation) {
                    if image.broken && !image.marked {
                        self.cleared = self.now;
                    }
                    image.marked = true;
                }
            }
            Work::CheckSnapshot(machine) => self.check_snapshot(machine),
            Work::BuildSnapshot(machine) => self.build_snapshot(machine),
            Work::CancelSnapshot(machine) => {
                if let Some((build, _)) = self.host.snapshots[machine].building {
                    let delay = self.random.spread(10, 5 * SECOND);
                    self.after(delay, Action::SnapshotBuilt(machine, build));
                }
            }
            Work::DropSnapshot(machine) => self.host.snapshots[machine].of = None,
        }
        Ok(())
    }

    /// The image that a run of this machine type starts from now.
    fn start_image(&self, machine: usize) -> Option<StartImage> {
        let own = |index: usize| {
            let (generation, image) = self.host.images[index].current()?;
            let machine = self.plan.machines[index].name.clone();
            let image_ref = ImageRef::Machine { machine, generation };
            Some(StartImage { image: image_ref, made_at: image.made })
        };
        let src = || StartImage {
            image: ImageRef::Src { path: "/debian.img".into() },
            made_at: Timestamp(1),
        };
        let base = match &self.plan.machines[machine].base_machine {
            Some(base) => own(self.place(base)).or_else(|| Some(src())),
            None => Some(src()),
        };
        choose_start_image(UseBase::IfNewer, base, own(machine))
    }

    fn fork(&mut self, runner: &RunnerName, machine: usize, done: u64) {
        let fails = self.disk_fails();
        if self.weather.disk_broken {
            let trouble = Trouble::new("read-only file system");
            self.done(done, runner, RunEvent::Prepared(Err(trouble)));
            return;
        }
        let image = self.start_image(machine);
        let created = self.wall();
        self.host.runs.entry(runner.clone()).or_insert(RunDir {
            machine,
            created,
            made: self.now,
            disk: if fails { Disk::None } else { Disk::Forked },
            image: image.clone().filter(|_| !fails),
            used: Bytes::mib(1),
            runner_id: None,
            job: None,
            vm: Vm::None,
            persist: Persist::Absent,
            ran: None,
        });
        let result = match image {
            Some(image) if !fails => Ok(image),
            Some(_) | None => Err(Trouble::new("no space left on device")),
        };
        self.done(done, runner, RunEvent::Prepared(result));
    }

    fn start(&mut self, runner: &RunnerName, id: RunnerId, done: u64) -> Result<(), Broken> {
        // Killed before it was started, and perhaps put away already.
        let over = |run: &RunDir| matches!(run.vm, Vm::Ended(_));
        if self.host.runs.get(runner).map_or(self.checker.has_forgotten(runner), over) {
            return Ok(());
        }
        self.checker_on_start(runner, id)?;
        let Some(run) = self.host.runs.get_mut(runner) else { return Ok(()) };
        run.runner_id = Some(id);
        if self.strikes(self.plan.faults.start_failed) {
            // Either nothing was started, or it was and died: the outcome says the same.
            let end = VmEnd { reason: EndReason::QemuFailed, detail: None, at: self.wall() };
            if let Some(run) = self.host.runs.get_mut(runner) {
                run.vm = Vm::Ended(Some(end));
            }
            self.done(done, runner, RunEvent::StartFailed(Trouble::new("qemu: cannot allocate")));
        } else if self.restores(runner) && self.strikes(self.plan.faults.restore_failed) {
            let end = VmEnd { reason: EndReason::RestoreFailed, detail: None, at: self.wall() };
            if let Some(run) = self.host.runs.get_mut(runner) {
                run.vm = Vm::Ended(Some(end.clone()));
            }
            self.done(done, runner, RunEvent::VmExited(end));
        } else {
            let restored = self.start_guest(runner);
            self.done(done, runner, RunEvent::VmStarted { restored });
        }
        Ok(())
    }

    fn set_deadline(&mut self, runner: &RunnerName, at: Option<u64>) {
        let job = self.github.job_on(runner);
        let Some(guest) = self.host.guest(runner) else { return };
        guest.job_deadline = at.map(|at| (at, job));
        let Some(at) = at else { return };
        let number = guest.number;
        self.at(at, Action::Guest(runner.clone(), number, super::GuestStep::JobTimeout));
    }

    fn kill(&mut self, runner: &RunnerName) -> Result<(), Broken> {
        let wall = self.wall();
        match self.host.runs.get(runner).map(|run| &run.vm) {
            Some(Vm::Live(_)) => {
                self.checker_on_stop(runner, "it is killed")?;
                self.guest_ends(runner, EndReason::Killed);
            }
            Some(Vm::Ended(end)) => {
                let end = told_end(end, wall);
                self.done(self.now, runner, RunEvent::VmExited(end));
            }
            Some(Vm::None) | None => {
                let end = VmEnd { reason: EndReason::NeverStarted, detail: None, at: wall };
                if let Some(run) = self.host.runs.get_mut(runner) {
                    run.vm = Vm::Ended(Some(end.clone()));
                }
                self.done(self.now, runner, RunEvent::VmExited(end));
            }
        }
        Ok(())
    }

    fn read(&mut self, runner: &RunnerName) {
        let Some(run) = self.host.runs.get(runner) else { return };
        let persist = run.persist;
        let result =
            if self.disk_breaks() { Err(Trouble::new("input/output error")) } else { Ok(persist) };
        self.done(self.now, runner, RunEvent::ReadBack(result));
    }

    fn promote(&mut self, runner: &RunnerName, machine: usize, done: u64) -> Result<(), Broken> {
        let Some(run) = self.host.runs.get(runner) else { return Ok(()) };
        let disk = run.disk;
        let generation = match disk {
            Disk::Promoted(generation) => generation,
            Disk::Forked if self.strikes(self.plan.faults.refused) => {
                let why = "jobs of this branch do not make images";
                self.done(done, runner, RunEvent::PromotionRefused(why.into()));
                return Ok(());
            }
            Disk::Forked if self.disk_fails() => {
                let trouble = Trouble::new("no space left on device");
                self.done(done, runner, RunEvent::Promoted(Err(trouble)));
                return Ok(());
            }
            Disk::Forked => {
                let broken = self.strikes(self.plan.faults.image_broken);
                let image = Image { broken, marked: false, made: self.wall() };
                let images = &mut self.host.images[machine];
                let generation = images.next();
                images.generations.insert(generation, image);
                if let Some(run) = self.host.runs.get_mut(runner) {
                    run.disk = Disk::Promoted(generation);
                }
                self.tally.promotions += 1;
                self.note(|_| format!("host: {runner} becomes generation {generation}"));
                self.checker_on_promoted(runner, machine, generation)?;
                self.host.prune(machine, &self.plan.machines[machine].name);
                self.checker_on_pruned(machine)?;
                generation
            }
            Disk::None | Disk::Removed => {
                return Err(Broken(format!("the removed disk of {runner} is to be promoted")));
            }
        };
        // The disk is in its place, but what comes after that may still fail.
        let fails = self.disk_breaks();
        let result = if fails { Err(Trouble::new("input/output error")) } else { Ok(generation) };
        self.done(done, runner, RunEvent::Promoted(result));
        Ok(())
    }

    fn discard(&mut self, runner: &RunnerName, done: u64) -> Result<(), Broken> {
        if self.disk_breaks() {
            let trouble = Trouble::new("input/output error");
            self.done(done, runner, RunEvent::Discarded(Err(trouble)));
            return Ok(());
        }
        if let Some(run) = self.host.runs.get_mut(runner) {
            if let Vm::Live(_) = run.vm {
                return Err(Broken(format!("the disk of {runner} is removed under its guest")));
            }
            // A disk that is a generation already is not there any more.
            if run.disk == Disk::Forked || run.disk == Disk::None {
                run.disk = Disk::Removed;
            }
        }
        self.done(done, runner, RunEvent::Discarded(Ok(())));
        Ok(())
    }

    fn check_snapshot(&mut self, machine: usize) {
        let image = self.start_image(machine).map(|start| start.image);
        let fails = self.disk_breaks();
        let fits =
            self.host.snapshots[machine].of.is_some() && self.host.snapshots[machine].of == image;
        let event = Event::SnapshotChecked {
            machine: self.plan.machines[machine].name.clone(),
            fits: if fails { Err(Trouble::new("input/output error")) } else { Ok(fits) },
        };
        self.at(self.now, Action::Tell(self.epoch, Box::new(event)));
    }

    fn build_snapshot(&mut self, machine: usize) {
        let number = self.host.number();
        self.host.snapshots[machine].building = Some((number, self.now));
        if self.strikes(self.plan.faults.build_hangs) {
            return;
        }
        let delay = self.random.spread(20 * SECOND, 2 * MINUTE);
        self.after(delay, Action::SnapshotBuilt(machine, number));
    }

    /// A snapshot is built, or its build is given up.
    pub(super) fn build_ends(&mut self, machine: usize, build: u64) -> Result<(), Broken> {
        if self.host.snapshots[machine].building.is_none_or(|(number, _)| number != build) {
            return Ok(());
        }
        self.host.snapshots[machine].building = None;
        let Some(image) = self.start_image(machine).map(|start| start.image) else { return Ok(()) };
        let gave_way = self.random.chance(0.1);
        let result = if self.is_broken(&image) {
            Err(BuildTrouble::Guest { what: "boot-timeout".into(), image })
        } else if gave_way {
            Err(BuildTrouble::GaveWay)
        } else if self.strikes(self.plan.faults.start_failed) {
            Err(BuildTrouble::Host(Trouble::new("qemu: cannot allocate")))
        } else {
            self.host.snapshots[machine].of = Some(image);
            Ok(())
        };
        let machine = self.plan.machines[machine].name.clone();
        if self.daemon.is_some() {
            return self.tell(Event::SnapshotBuilt { machine, result });
        }
        Ok(())
    }
}
