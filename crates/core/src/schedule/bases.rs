//! Machine types that wait for the image that they start from.

use crate::core::Core;
use crate::model::{JobId, MachineTypeName, RunnerName, WorkflowRunId};

/// What a machine type is based on is about to change.
pub(super) struct Base<'a> {
    /// By this run, which is past its job.
    leaving: Option<&'a RunnerName>,
    /// By these runs, which have a job of a workflow run.
    busy: Vec<(WorkflowRunId, &'a RunnerName)>,
}

impl<'a> Base<'a> {
    /// What the runs of the base do.
    pub(super) fn of(core: &'a Core, base: &MachineTypeName) -> Self {
        let workflow = |(runner, job)| Some((core.jobs.get(job)?.job.workflow_run, runner));
        let busy = core.runs.busy(base).filter_map(workflow).collect();
        Self { leaving: core.runs.leaving(base), busy }
    }

    /// One of the runs that are waited for; `None` when nobody has to wait.
    pub(super) fn a_run(&self) -> Option<&'a RunnerName> {
        self.leaving.or_else(|| self.busy.first().map(|(_, runner)| *runner))
    }

    /// Whether a job has to wait for the base. Nobody waits for unrelated runs for longer than jobs
    /// can be overtaken: a base that is always busy would starve whatever is based on it.
    pub(super) fn keeps(&self, core: &Core, job: JobId, overdue: bool) -> bool {
        if self.leaving.is_some() && !overdue {
            return true;
        }
        let workflow_run = core.jobs.get(job).map(|entry| entry.job.workflow_run);
        self.busy.iter().any(|(of, _)| Some(*of) == workflow_run)
    }
}
