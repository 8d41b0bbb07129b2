//! Identifiers. Most start above 2³², as GitHub's do, so that a client which cuts them short is
//! found out.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A GitHub App.
    AppId
);
id!(
    /// A user or an organisation.
    AccountId
);
id!(
    /// An App's installation on an account.
    InstallationId
);
id!(
    /// A repository.
    RepositoryId
);
id!(
    /// A workflow run; its attempts share the id.
    RunId
);
id!(
    /// A job of one attempt of a workflow run.
    JobId
);
id!(
    /// A self-hosted runner.
    RunnerId
);
id!(
    /// One attempt to deliver a webhook.
    DeliveryId
);

/// Hands out identifiers, each kind from its own start.
#[derive(Debug)]
pub(crate) struct Ids {
    account: u64,
    installation: u64,
    repository: u64,
    run: u64,
    job: u64,
    runner: u64,
    delivery: u64,
}

impl Default for Ids {
    fn default() -> Self {
        Self {
            account: 583_000,
            installation: 41_000_000,
            repository: 1_296_000,
            run: 7_000_000_000,
            job: 21_000_000_000,
            runner: 20,
            delivery: 93_000_000_000,
        }
    }
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter
}

impl Ids {
    pub(crate) fn account(&mut self) -> AccountId {
        AccountId(next(&mut self.account))
    }

    pub(crate) fn installation(&mut self) -> InstallationId {
        InstallationId(next(&mut self.installation))
    }

    pub(crate) fn repository(&mut self) -> RepositoryId {
        RepositoryId(next(&mut self.repository))
    }

    pub(crate) fn run(&mut self) -> RunId {
        RunId(next(&mut self.run))
    }

    pub(crate) fn job(&mut self) -> JobId {
        JobId(next(&mut self.job))
    }

    pub(crate) fn runner(&mut self) -> RunnerId {
        RunnerId(next(&mut self.runner))
    }

    pub(crate) fn delivery(&mut self) -> DeliveryId {
        DeliveryId(next(&mut self.delivery))
    }
}
