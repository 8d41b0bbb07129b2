//! Everything that this GitHub knows, and the parts that do not move by themselves: accounts, Apps,
//! installations, tokens, repositories.

use std::collections::{BTreeMap, BTreeSet};

use super::account::{
    Account, AccountKind, App, Hook, Installation, Permissions, Selection, Token,
};
use super::delivery::DeliveryLog;
use super::event::{Announcement, Timeline};
use super::fault::Faults;
use super::ids::{AppId, Ids, InstallationId, JobId, RepositoryId, RunId, RunnerId};
use super::job::Job;
use super::limit::Limits;
use super::log::JobLog;
use super::random::Random;
use super::repository::Repository;
use super::runner::Runner;
use super::settings::Settings;
use super::time::Moment;
use super::timer::Timer;
use super::workflow::WorkflowRun;
use crate::error::SimError;
use crate::key::AppKey;

/// How many tokens are kept; the oldest are dropped, and refused from then on.
pub const MAX_TOKENS: usize = 2_000;

/// The account that strangers' forks belong to.
pub const STRANGER: &str = "stranger";

/// The state of this GitHub. Changes only through its methods, which take the time as an argument;
/// chance comes from the seed.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) ids: Ids,
    pub(crate) apps: BTreeMap<AppId, App>,
    /// By name in lower case.
    pub(crate) accounts: BTreeMap<String, Account>,
    pub(crate) installations: BTreeMap<InstallationId, Installation>,
    pub(crate) tokens: BTreeMap<String, Token>,
    pub(crate) repositories: BTreeMap<RepositoryId, Repository>,
    /// By `owner/name` in lower case.
    pub(crate) repository_names: BTreeMap<String, RepositoryId>,
    pub(crate) runners: BTreeMap<RunnerId, Runner>,
    pub(crate) runner_secrets: BTreeMap<String, RunnerId>,
    pub(crate) idle_runners: BTreeSet<RunnerId>,
    pub(crate) runs: BTreeMap<RunId, WorkflowRun>,
    pub(crate) finished_runs: BTreeSet<(Moment, RunId)>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// Jobs that wait for a runner, longest first.
    pub(crate) queue: BTreeSet<(Moment, JobId)>,
    pub(crate) logs: BTreeMap<JobId, JobLog>,
    /// What all logs take together.
    pub(crate) log_bytes: usize,
    pub(crate) timers: BTreeSet<(Moment, Timer)>,
    pub(crate) deliveries: DeliveryLog,
    pub(crate) faults: Faults,
    pub(crate) limits: Limits,
    pub(crate) timeline: Timeline,
    /// What is to be announced by webhook; emptied by the shell.
    pub(crate) outbox: Vec<Announcement>,
    /// Counts changes that no event tells of.
    pub(crate) touched: u64,
}

impl World {
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            random: Random::new(seed),
            ids: Ids::default(),
            apps: BTreeMap::new(),
            accounts: BTreeMap::new(),
            installations: BTreeMap::new(),
            tokens: BTreeMap::new(),
            repositories: BTreeMap::new(),
            repository_names: BTreeMap::new(),
            runners: BTreeMap::new(),
            runner_secrets: BTreeMap::new(),
            idle_runners: BTreeSet::new(),
            runs: BTreeMap::new(),
            finished_runs: BTreeSet::new(),
            jobs: BTreeMap::new(),
            queue: BTreeSet::new(),
            logs: BTreeMap::new(),
            log_bytes: 0,
            timers: BTreeSet::new(),
            deliveries: DeliveryLog::default(),
            faults: Faults::default(),
            limits: Limits::default(),
            timeline: Timeline::default(),
            outbox: Vec::new(),
            touched: 0,
        }
    }

    /// Registers an App; its id is the number of Apps so far over 1000.
    pub(crate) fn add_app(
        &mut self,
        slug: &str,
        key: AppKey,
        hook: Option<Hook>,
        permissions: Permissions,
        now: Moment,
    ) -> AppId {
        let id = AppId(1_000 + self.apps.len() as u64 + 1);
        let client_id = format!("Iv23{}", self.random.alphanumeric(16));
        let slug = slug.to_owned();
        let app = App { id, client_id, slug, key, hook, permissions, created_at: now };
        self.apps.insert(id, app);
        id
    }

    /// The account of this name; made when there is none.
    pub(crate) fn account(&mut self, login: &str, kind: AccountKind) -> &Account {
        let ids = &mut self.ids;
        self.accounts.entry(login.to_lowercase()).or_insert_with(|| Account {
            id: ids.account(),
            login: login.to_owned(),
            kind,
        })
    }

    /// Installs an App on an account; returns the installation that is there already, if any.
    pub(crate) fn install(&mut self, app: AppId, login: &str, now: Moment) -> InstallationId {
        let account = login.to_lowercase();
        if let Some(there) =
            self.installations.values().find(|i| i.app == app && i.account == account)
        {
            return there.id;
        }
        let id = self.ids.installation();
        let selection = Selection::All;
        let installation =
            Installation { id, app, account, selection, suspended_at: None, created_at: now };
        self.installations.insert(id, installation);
        id
    }

    /// Makes a repository and installs every App on its owner. Returns the one that is there
    /// already, if any.
    pub(crate) fn add_repository(
        &mut self,
        owner: &str,
        name: &str,
        kind: AccountKind,
        private: bool,
        now: Moment,
    ) -> RepositoryId {
        let id = self.insert_repository(owner, name, kind, private, false, now);
        for app in self.apps.keys().copied().collect::<Vec<_>>() {
            self.install(app, owner, now);
        }
        id
    }

    fn insert_repository(
        &mut self,
        owner: &str,
        name: &str,
        kind: AccountKind,
        private: bool,
        fork: bool,
        now: Moment,
    ) -> RepositoryId {
        let key = format!("{owner}/{name}").to_lowercase();
        if let Some(there) = self.repository_names.get(&key) {
            return *there;
        }
        let owner = self.account(owner, kind).login.clone();
        let id = self.ids.repository();
        let name = name.to_owned();
        let repository =
            Repository { id, owner, name, private, fork, created_at: now, run_count: 0 };
        self.repositories.insert(id, repository);
        self.repository_names.insert(key, id);
        id
    }

    /// A stranger's fork of a repository; made when there is none.
    pub(crate) fn fork_of(&mut self, repository: RepositoryId, now: Moment) -> RepositoryId {
        let name =
            self.repositories.get(&repository).map_or_else(String::new, |repo| repo.name.clone());
        self.insert_repository(STRANGER, &name, AccountKind::User, false, true, now)
    }

    /// Finds a repository by `owner/name`, in any case.
    pub(crate) fn repository_named(&self, full_name: &str) -> Result<RepositoryId, SimError> {
        self.repository_names
            .get(&full_name.to_lowercase())
            .copied()
            .ok_or_else(|| SimError::UnknownRepository(full_name.to_owned()))
    }

    /// The repositories that an installation's selection covers, without strangers' forks.
    pub(crate) fn covered<'w>(
        &'w self,
        installation: &'w Installation,
        selection: &'w Selection,
    ) -> impl Iterator<Item = &'w Repository> {
        self.repositories.values().filter(move |repo| {
            repo.owner.to_lowercase() == installation.account
                && installation.selection.covers(repo.id)
                && selection.covers(repo.id)
        })
    }

    /// The installations, not suspended, that cover a repository.
    pub(crate) fn listeners(&self, repository: RepositoryId) -> Vec<(AppId, InstallationId)> {
        let Some(repo) = self.repositories.get(&repository) else {
            return Vec::new();
        };
        let owner = repo.owner.to_lowercase();
        self.installations
            .values()
            .filter(|i| i.account == owner && i.suspended_at.is_none())
            .filter(|i| i.selection.covers(repository))
            .map(|i| (i.app, i.id))
            .collect()
    }

    /// Makes a token for an installation. `now` is the time by the API's clock.
    pub(crate) fn add_token(
        &mut self,
        installation: InstallationId,
        selection: Selection,
        permissions: Permissions,
        now: Moment,
    ) -> (String, Moment) {
        self.tokens.retain(|_, token| token.expires_at > now);
        while self.tokens.len() >= MAX_TOKENS {
            let oldest = self
                .tokens
                .iter()
                .min_by_key(|(_, token)| token.expires_at)
                .map(|(text, _)| text.clone());
            oldest.and_then(|text| self.tokens.remove(&text));
        }
        let len = self.settings.token_length.saturating_sub(4).max(16);
        let text = format!("ghs_{}", self.random.alphanumeric(len));
        let expires_at = now.after(self.settings.token_lifetime);
        let valid_from = now.after(self.settings.token_lag);
        self.tokens.insert(
            text.clone(),
            Token { installation, selection, permissions, valid_from, expires_at },
        );
        (text, expires_at)
    }

    /// Suspends an installation or lifts the suspension.
    pub(crate) fn suspend(
        &mut self,
        installation: InstallationId,
        suspended: bool,
        now: Moment,
    ) -> Result<(), SimError> {
        let there = self
            .installations
            .get_mut(&installation)
            .ok_or(SimError::UnknownInstallation(installation))?;
        there.suspended_at = suspended.then_some(now);
        Ok(())
    }
}
