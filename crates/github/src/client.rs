//! The client: how one call is authenticated, paced, sent and judged.
//!
//! The typed methods are in the modules named after what they deal with. The rules here hold for all
//! of them:
//!
//! - A request that changes something each time it arrives is sent once. Not after a 401, not after a
//!   5xx, not after a lost connection: the caller decides.
//! - A limit that GitHub announced is kept without asking again: the error comes from here.
//! - Requests of one installation that change something go one after the other.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forrest_core::model::Repository;
use reqwest::{Method, Url};
use secrecy::SecretString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;

use crate::GitHubError;
use crate::access::{Access, Slot};
use crate::app_key::AppKey;
use crate::cache::{Cache, Page};
use crate::clock::{self, Skew};
use crate::error::foreign;
use crate::link::ApiBase;
use crate::permissions;
use crate::rate::{Blocked, Pace, RateLimit, RateLimits, Resource};
use crate::transport::{Answer, Effect, Outgoing, Transport};

/// The most requests at a time; GitHub allows 100.
const CONCURRENT_MAX: usize = 16;

/// The most requests that are being sent or wait for their turn; further ones fail at once.
const WAITING_MAX: usize = 512;

/// The most redirects of one reading request (a renamed repository takes one).
const REDIRECTS_MAX: usize = 3;

/// How long to wait before a token that is only seconds old is tried again.
const FRESH_TOKEN_PAUSE: Duration = Duration::from_millis(500);

/// What the client needs to know.
pub struct GitHubConfig {
    /// Address of the REST API: `https://api.github.com`, or `https://HOST/api/v3`.
    pub api_url: String,
    /// The App's id, or its client id.
    pub app_id: String,
    /// The App's private key (PEM).
    pub key_pem: SecretString,
    /// How Forrest names itself to GitHub, such as `forrest/1.0`.
    pub user_agent: String,
    /// The most requests a minute and installation that change something. GitHub suggests
    /// [`GitHubConfig::CHANGES_PER_MINUTE`].
    pub changes_per_minute: u32,
}

impl GitHubConfig {
    /// GitHub's general advice on requests that change something.
    pub const CHANGES_PER_MINUTE: u32 = 80;
}

/// Shows the address and the App, never the key.
impl fmt::Debug for GitHubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHubConfig")
            .field("api_url", &self.api_url)
            .field("app_id", &self.app_id)
            .finish_non_exhaustive()
    }
}

/// GitHub, as one App sees it. Clones share everything.
#[derive(Clone)]
pub struct GitHub(Arc<Inner>);

struct Inner {
    base: ApiBase,
    transport: Transport,
    key: AppKey,
    app_id: String,
    skew: Skew,
    cache: Cache,
    app: Account,
    installations: Mutex<BTreeMap<u64, Arc<Account>>>,
    slots: Mutex<BTreeMap<Repository, Arc<tokio::sync::Mutex<Slot>>>>,
    sending: Semaphore,
    waiting: Semaphore,
    changes_per_minute: u32,
}

impl fmt::Debug for GitHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHub").field("key", &self.0.key).finish_non_exhaustive()
    }
}

/// Whose limits count: the App's own or an installation's.
#[derive(Default)]
pub(crate) struct Account {
    limits: Mutex<RateLimits>,
    /// Held while a change is under way.
    changes: tokio::sync::Mutex<Pace>,
}

/// One call, before it is known what it is sent with.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) effect: Effect,
    pub(crate) resource: Resource,
    /// Whether it counts as a change: one at a time, so many a minute.
    pub(crate) paced: bool,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) etag: Option<String>,
}

/// Where a call goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A path and query below the API's address.
    Path(String),
    /// An address that GitHub gave, known to have the right origin.
    Url(Url),
}

impl Call {
    /// Reads `path`.
    pub(crate) fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            target: Target::Path(path),
            effect: Effect::Reads,
            resource: Resource::Core,
            paced: false,
            body: None,
            etag: None,
        }
    }

    /// Method and path, for messages.
    pub(crate) fn name(&self) -> String {
        let path = match &self.target {
            Target::Path(path) => path.split('?').next().unwrap_or_default(),
            Target::Url(url) => url.path(),
        };
        format!("{} {path}", self.method)
    }

    /// Writes a request's body.
    pub(crate) fn body(value: &impl Serialize) -> Result<Vec<u8>, GitHubError> {
        serde_json::to_vec(value)
            .map_err(|error| GitHubError::Config(format!("a request cannot be written: {error}")))
    }

    /// Reads an answer that holds no secret.
    pub(crate) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, GitHubError> {
        serde_json::from_slice(body).map_err(|error| self.bad(&error.to_string()))
    }

    pub(crate) fn bad(&self, cause: &str) -> GitHubError {
        GitHubError::BadAnswer { request: self.name(), cause: foreign(cause) }
    }

    fn blocked(&self, blocked: Blocked) -> GitHubError {
        GitHubError::RateLimited {
            request: self.name(),
            cause: blocked.cause,
            wait: blocked.until.since(clock::now()),
            until: blocked.until,
        }
    }
}

impl GitHub {
    /// Builds the client. Sends nothing.
    ///
    /// # Errors
    /// [`GitHubError::Config`] for an address, App id or key that cannot work.
    pub fn new(config: GitHubConfig) -> Result<Self, GitHubError> {
        let base = ApiBase::new(&config.api_url)?;
        let key = AppKey::new(&config.app_id, &config.key_pem)?;
        let transport = Transport::new(&config, &base)?;
        Ok(Self(Arc::new(Inner {
            base,
            transport,
            key,
            app_id: config.app_id,
            skew: Skew::default(),
            cache: Cache::default(),
            app: Account::default(),
            installations: Mutex::default(),
            slots: Mutex::default(),
            sending: Semaphore::new(CONCURRENT_MAX),
            waiting: Semaphore::new(WAITING_MAX),
            changes_per_minute: config.changes_per_minute,
        })))
    }

    /// What GitHub said of its limits so far: the App's own (`None`) and each installation's.
    pub fn rate_limits(&self) -> Vec<(Option<u64>, RateLimit)> {
        let installations = self.0.installations.lock().unwrap_or_else(PoisonError::into_inner);
        let app = self.0.app.known().into_iter().map(|limit| (None, limit));
        let rest = installations
            .iter()
            .flat_map(|(id, account)| account.known().into_iter().map(|limit| (Some(*id), limit)));
        app.chain(rest).collect()
    }

    /// How many seconds GitHub's clock is ahead of this host's, as its last answer showed it; 0
    /// before the first one.
    pub fn clock_ahead_s(&self) -> i64 {
        self.0.skew.seconds()
    }

    /// Sends as the App itself.
    pub(crate) async fn call_as_app(&self, call: &Call) -> Result<Answer, GitHubError> {
        let mut tried = false;
        loop {
            let jwt = self.0.key.jwt(self.0.skew.signing_time(clock::now()))?;
            let answer = self.send(&self.0.app, call, &jwt).await?;
            if answer.status != 401 {
                return self.judge(call, answer);
            }
            let message = answer.message();
            if !self.0.skew.correct() || tried {
                return Err(self.bad_signature(call, message));
            }
            let ahead = self.0.skew.seconds();
            tracing::warn!(ahead, "this host's clock differs from GitHub's; signing with GitHub's");
            if call.effect == Effect::Once {
                return Err(GitHubError::Transient {
                    request: call.name(),
                    cause: format!("this host's clock was {ahead} s behind GitHub's"),
                });
            }
            tried = true;
        }
    }

    /// Sends with a token for a repository. Also tells what the installation lacks, for messages.
    pub(crate) async fn call(
        &self,
        repository: &Repository,
        call: &Call,
    ) -> Result<(Answer, Arc<[String]>), GitHubError> {
        let mut renewed = false;
        loop {
            let Access { token, account, missing } = self.access(repository).await?;
            let answer = self.send(&account, call, &token.secret).await?;
            if answer.status == 403 && !token.is_fresh() {
                // The App may have been allowed more meanwhile: find out next time.
                self.forget_access(repository, &token).await;
            }
            if answer.status != 401 {
                return Ok((self.judge(call, answer)?, missing));
            }
            // A token that is seconds old may not be known everywhere yet; any other is dead.
            let wait = token.may_recover();
            if !wait {
                self.forget_access(repository, &token).await;
            }
            if call.effect == Effect::Once {
                let cause = format!("GitHub refused the token (401: {})", answer.message());
                return Err(GitHubError::Transient { request: call.name(), cause });
            }
            if wait {
                tokio::time::sleep(FRESH_TOKEN_PAUSE).await;
            } else if !renewed {
                renewed = true;
            } else {
                return Err(GitHubError::Auth {
                    request: call.name(),
                    status: 401,
                    message: answer.message(),
                    hint: permissions::hint(Some(repository), &missing, None),
                });
            }
        }
    }

    /// Makes every status but success an error.
    pub(crate) fn expect_success(
        &self,
        call: &Call,
        answer: Answer,
        hint: Option<String>,
    ) -> Result<Answer, GitHubError> {
        let status = answer.status;
        if (200..300).contains(&status) || status == 304 {
            return Ok(answer);
        }
        let (request, message) = (call.name(), answer.message());
        let hint = hint.unwrap_or_else(|| {
            permissions::hint(None, &[], answer.accepted_permissions.as_deref())
        });
        Err(match status {
            404 | 410 => GitHubError::NotFound { request, message, hint },
            300..400 => {
                let hint = "the repository has probably been renamed or moved: write its new name \
                            in the configuration"
                    .to_owned();
                GitHubError::Refused { request, status, message, hint }
            }
            _ => GitHubError::Refused { request, status, message, hint },
        })
    }

    /// One page of a list, from memory when GitHub says that nothing has changed.
    pub(crate) async fn page<T: Send + Sync + 'static>(
        &self,
        repository: &Repository,
        target: Target,
        parse: fn(&[u8], &Repository) -> Result<Vec<T>, serde_json::Error>,
    ) -> Result<Page<T>, GitHubError> {
        let url = self.url(&target)?;
        let known = self.0.cache.get::<T>(&url);
        let etag = known.as_ref().map(|known| known.etag.clone());
        let call = Call { target, etag, ..Call::get(String::new()) };
        let (answer, missing) = self.call(repository, &call).await?;
        let hint =
            permissions::hint(Some(repository), &missing, answer.accepted_permissions.as_deref());
        let answer = self.expect_success(&call, answer, Some(hint))?;
        if answer.status == 304 {
            return match known {
                Some(known) => Ok(known.page),
                None => Err(call.bad("304 to a request without a condition")),
            };
        }
        let next = match &answer.next {
            Some(text) => Some(self.0.base.same_origin(text).ok_or_else(|| {
                call.bad("its next page is at another address than github.api_url")
            })?),
            None => None,
        };
        let items = parse(&answer.body, repository).map_err(|e| call.bad(&e.to_string()))?;
        let page = Page { items: Arc::new(items), next };
        match answer.etag {
            Some(etag) => self.0.cache.put(&url, etag, &page),
            None => self.0.cache.forget(&url),
        }
        Ok(page)
    }

    /// All pages of a list, at most `pages_max`. Says whether these were all.
    pub(crate) async fn pages<T: Send + Sync + 'static>(
        &self,
        repository: &Repository,
        path: String,
        pages_max: usize,
        parse: fn(&[u8], &Repository) -> Result<Vec<T>, serde_json::Error>,
    ) -> Result<(Vec<Arc<Vec<T>>>, bool), GitHubError> {
        let mut pages = Vec::new();
        let mut target = Target::Path(path);
        loop {
            let page = self.page(repository, target, parse).await?;
            pages.push(page.items);
            match page.next {
                Some(next) if pages.len() < pages_max => target = Target::Url(next),
                more => return Ok((pages, more.is_none())),
            }
        }
    }

    /// An address that GitHub gave, if it may be followed.
    pub(crate) fn same_origin(&self, text: &str) -> Option<Url> {
        self.0.base.same_origin(text)
    }

    /// GitHub's time, as far as it is known.
    pub(crate) fn github_now(&self) -> forrest_core::model::Timestamp {
        self.0.skew.github_now()
    }

    /// The limits of an installation.
    pub(crate) fn account(&self, installation: u64) -> Arc<Account> {
        let mut all = self.0.installations.lock().unwrap_or_else(PoisonError::into_inner);
        // Grows with the installations that the configured repositories have had, one small entry
        // each.
        Arc::clone(all.entry(installation).or_default())
    }

    pub(crate) fn slots(&self) -> &Mutex<BTreeMap<Repository, Arc<tokio::sync::Mutex<Slot>>>> {
        &self.0.slots
    }

    fn url(&self, target: &Target) -> Result<Url, GitHubError> {
        match target {
            Target::Path(path) => self.0.base.join(path),
            Target::Url(url) => Ok(url.clone()),
        }
    }

    /// Sends a call when its turn comes, and follows a reading one where GitHub redirects it.
    async fn send(
        &self,
        account: &Account,
        call: &Call,
        token: &SecretString,
    ) -> Result<Answer, GitHubError> {
        let too_many = || GitHubError::Transient {
            request: call.name(),
            cause: format!("{WAITING_MAX} requests wait for GitHub already"),
        };
        let _waiting = self.0.waiting.try_acquire().map_err(|_| too_many())?;
        let check = || account.check(call);
        check()?;
        let mut change = if call.paced { Some(account.changes.lock().await) } else { None };
        // The semaphore is never closed.
        let _sending = self.0.sending.acquire().await.map_err(|_| too_many())?;
        // While we waited, an answer to somebody else may have told us to stop.
        check()?;
        if let Some(pace) = &mut change {
            let taken = pace.take(clock::now(), self.0.changes_per_minute);
            taken.map_err(|blocked| call.blocked(blocked))?;
        }
        // `change` is held until the answer is here: changes go one after the other.
        self.follow(account, call, token).await
    }

    async fn follow(
        &self,
        account: &Account,
        call: &Call,
        token: &SecretString,
    ) -> Result<Answer, GitHubError> {
        let mut url = self.url(&call.target)?;
        for _ in 0..=REDIRECTS_MAX {
            let out = Outgoing {
                method: call.method.clone(),
                url: url.clone(),
                effect: call.effect,
                body: call.body.as_deref(),
                etag: call.etag.as_deref(),
            };
            let answer = self.0.transport.exchange(&out, token).await?;
            self.note(account, call, &answer)?;
            let redirected = matches!(answer.status, 301 | 302 | 307 | 308);
            match answer.location.as_deref() {
                Some(to) if redirected && call.effect == Effect::Reads => {
                    url = self.same_origin(to).ok_or_else(|| {
                        call.bad("it redirects to another address than github.api_url")
                    })?;
                }
                _ => return Ok(answer),
            }
        }
        Err(call.bad("it redirects again and again"))
    }

    /// Learns from an answer's headers; an error if the answer is a limit's refusal.
    fn note(&self, account: &Account, call: &Call, answer: &Answer) -> Result<(), GitHubError> {
        let now = clock::now();
        if let Some(date) = answer.date {
            self.0.skew.saw(now, date);
        }
        let says_so = matches!(answer.status, 403 | 429) && {
            let message = answer.message().to_lowercase();
            message.contains("rate limit") || message.contains("abuse")
        };
        let mut limits = account.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match limits.answered(now, call.resource, answer.status, says_so, &answer.rate) {
            Some(blocked) => Err(call.blocked(blocked)),
            None => Ok(()),
        }
    }

    /// Makes a 5xx an error.
    fn judge(&self, call: &Call, answer: Answer) -> Result<Answer, GitHubError> {
        if answer.status < 500 {
            return Ok(answer);
        }
        let request = call.name();
        let cause = format!("GitHub answered {} ({})", answer.status, answer.message());
        Err(match call.effect {
            // A gateway may time out on a request that GitHub then carries out.
            Effect::Once => GitHubError::LostResponse { request, cause },
            Effect::Reads | Effect::Repeatable => GitHubError::Transient { request, cause },
        })
    }

    fn bad_signature(&self, call: &Call, message: String) -> GitHubError {
        GitHubError::Auth {
            request: call.name(),
            status: 401,
            message,
            hint: format!(
                "check that github.app_id ({}) and github.jwt_key_file belong to the same App, and \
                 that the key has not been deleted in the App's settings",
                self.0.app_id
            ),
        }
    }
}

impl Account {
    fn check(&self, call: &Call) -> Result<(), GitHubError> {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.check(clock::now(), call.resource).map_err(|blocked| call.blocked(blocked))
    }

    fn known(&self) -> Vec<RateLimit> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).known().to_vec()
    }
}
