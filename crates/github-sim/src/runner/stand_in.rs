//! A runner inside the test's own process, for tests without virtual machines.

use std::sync::Arc;

use super::jit::secret_of;
use super::session::Session;
use crate::error::SimError;
use crate::model::{Assignment, Conclusion, Orders, RunnerId};
use crate::shared::Shared;

/// A connected runner that a test plays. Dropping it breaks the connection, as when its machine
/// dies.
#[derive(Debug)]
pub struct VirtualRunner {
    session: Session,
}

impl VirtualRunner {
    pub(crate) fn connect(shared: &Arc<Shared>, jit_config: &str) -> Result<Self, SimError> {
        Ok(Self { session: Session::open(shared, &secret_of(jit_config)?)? })
    }

    /// The runner's id.
    pub const fn id(&self) -> RunnerId {
        self.session.runner
    }

    /// Waits for a job. It is the runner's only after [`VirtualRunner::pick_up`].
    ///
    /// # Errors
    /// [`SimError::RunnerGone`] when the runner was removed or replaced instead.
    pub async fn next_job(&self) -> Result<Assignment, SimError> {
        let gone = || SimError::RunnerGone(self.id());
        match self.session.orders_other_than(Orders::Wait).await {
            Orders::Run(job) => {
                let world = |world: &mut crate::model::World, _| world.assignment(job, self.id());
                self.session.shared().with(world).ok_or_else(gone)
            }
            Orders::Wait | Orders::Stop(_) | Orders::Leave => Err(gone()),
        }
    }

    /// Begins with the job: GitHub shows it as `in_progress`.
    ///
    /// # Errors
    /// [`SimError::RunnerGone`] when the job was taken back meanwhile.
    pub fn pick_up(&self, job: &Assignment) -> Result<(), SimError> {
        self.session.pick_up(job.job)
    }

    /// Prints something in the job's name.
    pub fn log(&self, job: &Assignment, text: &str) {
        let enter = |world: &mut crate::model::World, now| {
            world.job_output(job.job, text.as_bytes(), now);
        };
        self.session.shared().with(enter);
    }

    /// Waits until the job, picked up, is to be stopped, or the runner is no longer known.
    pub async fn cancelled(&self) {
        self.session.orders_other_than(Orders::Wait).await;
    }

    /// Reports the end of the job. GitHub removes the runner with it.
    ///
    /// # Errors
    /// [`SimError::RunnerGone`] when the job is no longer this runner's.
    pub fn complete(self, job: &Assignment, conclusion: Conclusion) -> Result<(), SimError> {
        self.session.finish(job.job, conclusion)
    }

    /// Waits for a job, picks it up, prints a line and ends it.
    ///
    /// # Errors
    /// As the parts.
    pub async fn run_one(self, conclusion: Conclusion) -> Result<Assignment, SimError> {
        let job = self.next_job().await?;
        self.pick_up(&job)?;
        self.log(&job, "run by a virtual runner\n");
        self.complete(&job, conclusion)?;
        Ok(job)
    }

    /// Breaks the connection.
    pub fn disconnect(self) {}
}
