//! Which operation a request means.

use hyper::Method;

/// `owner/name` as the request spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slug(pub(crate) String);

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident $(($($field:ty),+))? = $id:literal,)+) => {
        /// An operation of the API with what its path names.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) enum Operation {
            $($(#[$doc])* $name $(($($field),+))?,)+
        }

        impl Operation {
            /// GitHub's operation id.
            pub(crate) const fn id(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $id,)+
                }
            }
        }

        /// The ids of all operations that the simulator knows.
        pub const OPERATIONS: &[&str] = &[$($id),+];
    };
}

operations! {
    App = "apps/get-authenticated",
    Installations = "apps/list-installations",
    Installation(u64) = "apps/get-installation",
    CreateToken(u64) = "apps/create-installation-access-token",
    RepositoryInstallation(Slug) = "apps/get-repo-installation",
    OrganizationInstallation(String) = "apps/get-org-installation",
    UserInstallation(String) = "apps/get-user-installation",
    InstallationRepositories = "apps/list-repos-accessible-to-installation",
    RevokeToken = "apps/revoke-installation-access-token",
    HookConfig = "apps/get-webhook-config-for-app",
    Deliveries = "apps/list-webhook-deliveries",
    Delivery(u64) = "apps/get-webhook-delivery",
    Redeliver(u64) = "apps/redeliver-webhook-delivery",
    RateLimit = "rate-limit/get",
    Runs(Slug) = "actions/list-workflow-runs-for-repo",
    Run(Slug, u64) = "actions/get-workflow-run",
    RunJobs(Slug, u64) = "actions/list-jobs-for-workflow-run",
    AttemptJobs(Slug, u64, u64) = "actions/list-jobs-for-workflow-run-attempt",
    Job(Slug, u64) = "actions/get-job-for-workflow-run",
    CancelRun(Slug, u64) = "actions/cancel-workflow-run",
    ForceCancelRun(Slug, u64) = "actions/force-cancel-workflow-run",
    JobLogs(Slug, u64) = "actions/download-job-logs-for-workflow-run",
    Runners(Slug) = "actions/list-self-hosted-runners-for-repo",
    RunnerDownloads(Slug) = "actions/list-runner-applications-for-repo",
    GenerateJitConfig(Slug) = "actions/generate-runner-jitconfig-for-repo",
    Runner(Slug, u64) = "actions/get-self-hosted-runner-for-repo",
    DeleteRunner(Slug, u64) = "actions/delete-self-hosted-runner-from-repo",
    RunnerLabels(Slug, u64) = "actions/list-labels-for-self-hosted-runner-for-repo",
}

/// Finds the operation; `None` is a 404, as GitHub answers a wrong method too.
pub(crate) fn route(method: &Method, path: &str) -> Option<Operation> {
    use Operation as Op;
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let id = |text: &str| text.parse::<u64>().ok();
    let get = method == Method::GET || method == Method::HEAD;
    let post = method == Method::POST;
    let delete = method == Method::DELETE;
    Some(match segments.as_slice() {
        ["app"] if get => Op::App,
        ["app", "installations"] if get => Op::Installations,
        ["app", "installations", i] if get => Op::Installation(id(i)?),
        ["app", "installations", i, "access_tokens"] if post => Op::CreateToken(id(i)?),
        ["app", "hook", "config"] if get => Op::HookConfig,
        ["app", "hook", "deliveries"] if get => Op::Deliveries,
        ["app", "hook", "deliveries", d] if get => Op::Delivery(id(d)?),
        ["app", "hook", "deliveries", d, "attempts"] if post => Op::Redeliver(id(d)?),
        ["orgs", org, "installation"] if get => Op::OrganizationInstallation((*org).to_owned()),
        ["users", user, "installation"] if get => Op::UserInstallation((*user).to_owned()),
        ["installation", "repositories"] if get => Op::InstallationRepositories,
        ["installation", "token"] if delete => Op::RevokeToken,
        ["rate_limit"] if get => Op::RateLimit,
        ["repos", owner, name, "installation"] if get => {
            Op::RepositoryInstallation(Slug(format!("{owner}/{name}")))
        }
        ["repos", owner, name, "actions", rest @ ..] => {
            let slug = Slug(format!("{owner}/{name}"));
            match rest {
                ["runs"] if get => Op::Runs(slug),
                ["runs", r] if get => Op::Run(slug, id(r)?),
                ["runs", r, "jobs"] if get => Op::RunJobs(slug, id(r)?),
                ["runs", r, "attempts", n, "jobs"] if get => Op::AttemptJobs(slug, id(r)?, id(n)?),
                ["runs", r, "cancel"] if post => Op::CancelRun(slug, id(r)?),
                ["runs", r, "force-cancel"] if post => Op::ForceCancelRun(slug, id(r)?),
                ["jobs", j] if get => Op::Job(slug, id(j)?),
                ["jobs", j, "logs"] if get => Op::JobLogs(slug, id(j)?),
                ["runners"] if get => Op::Runners(slug),
                ["runners", "downloads"] if get => Op::RunnerDownloads(slug),
                ["runners", "generate-jitconfig"] if post => Op::GenerateJitConfig(slug),
                ["runners", r] if get => Op::Runner(slug, id(r)?),
                ["runners", r] if delete => Op::DeleteRunner(slug, id(r)?),
                ["runners", r, "labels"] if get => Op::RunnerLabels(slug, id(r)?),
                _ => return None,
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_operation() {
        let slug = || Slug("o/r".to_owned());
        let cases = [
            (Method::GET, "/app", Some(Operation::App)),
            (Method::POST, "/app", None),
            (Method::GET, "/repos/o/r/actions/runs/7000000001", {
                Some(Operation::Run(slug(), 7_000_000_001))
            }),
            (Method::GET, "/repos/o/r/actions/runners/downloads", {
                Some(Operation::RunnerDownloads(slug()))
            }),
            (Method::DELETE, "/repos/o/r/actions/runners/3", {
                Some(Operation::DeleteRunner(slug(), 3))
            }),
            (Method::GET, "/repos/o/r/actions/runners/x", None),
            (Method::GET, "/repos/o", None),
            (Method::GET, "app", None),
        ];
        for (method, path, wanted) in cases {
            assert_eq!(route(&method, path), wanted, "{method} {path}");
        }
    }
}
