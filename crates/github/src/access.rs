//! Installations and their tokens: how the App gets to act on a repository.
//!
//! One token per repository, with nothing but the permissions that Forrest uses, so that a leaked
//! one is worth little. Tokens live in memory only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use forrest_core::model::{Repository, Timestamp};
use reqwest::Method;
use secrecy::SecretString;
use serde::Serialize;

use crate::client::{Account, Call, GitHub};
use crate::permissions::{self, Permissions};
use crate::transport::Effect;
use crate::wire::{WireInstallation, WireToken};
use crate::{GitHubError, clock};

/// A token is renewed when it has less than this left (GitHub's live an hour).
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);

/// An old token is still used, when renewing fails, while it has at least this left.
const USABLE_BEFORE: Duration = Duration::from_secs(30);

/// What is assumed of a token's life when GitHub does not say it, or says nonsense.
const LIFE_ASSUMED: Duration = Duration::from_secs(10 * 60);

/// A token's longest life; more is not believed.
const LIFE_MAX: Duration = Duration::from_secs(3600);

/// So long after its making a refused token may only be unknown to some of GitHub's machines yet.
const FRESH: Duration = Duration::from_secs(10);

/// The App on one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// GitHub's id of it.
    pub id: u64,
    /// The user or organisation.
    pub account: Option<String>,
    /// Whether its owner, or GitHub, has suspended it: then nothing works.
    pub suspended: bool,
    /// What the App may do there; `None` where GitHub does not say.
    pub permissions: Option<Permissions>,
    /// Which events it gets from there; `None` where GitHub does not say.
    pub events: Option<Vec<String>>,
    /// The page where its owner changes it.
    pub settings_url: Option<String>,
}

impl Installation {
    /// What Forrest needs and the installation lacks, each as `name: level`. Empty where GitHub
    /// does not say what it has.
    pub fn missing_permissions(&self) -> Vec<String> {
        self.permissions.as_ref().map(permissions::missing).unwrap_or_default()
    }
}

impl From<WireInstallation> for Installation {
    fn from(wire: WireInstallation) -> Self {
        Self {
            id: wire.id,
            account: wire.account.and_then(|account| account.login.or(account.slug)),
            suspended: wire.suspended_at.is_some(),
            permissions: wire.permissions.map(permissions::from_wire),
            events: wire.events,
            settings_url: wire.html_url,
        }
    }
}

/// A token with what is known of its life.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) secret: SecretString,
    made: Instant,
    renew: Instant,
    end: Instant,
    refused: AtomicBool,
}

impl Token {
    fn new(wire: WireToken, github_now: Timestamp) -> Self {
        let life = wire
            .expires_at
            .as_deref()
            .and_then(clock::rfc3339)
            .map(|end| end.since(github_now))
            .filter(|life| !life.is_zero())
            .unwrap_or(LIFE_ASSUMED)
            .min(LIFE_MAX);
        let made = Instant::now();
        let renew_after = life.saturating_sub(RENEW_BEFORE).max(life / 2);
        Self {
            secret: wire.token.into(),
            made,
            renew: made + renew_after,
            end: made + life.saturating_sub(USABLE_BEFORE),
            refused: AtomicBool::new(false),
        }
    }

    /// Whether the token is seconds old.
    pub(crate) fn is_fresh(&self) -> bool {
        self.made.elapsed() < FRESH
    }

    /// Notes that GitHub refused the token. Whether that may be GitHub's own delay in making it
    /// known: only for the first refusal of a fresh one.
    pub(crate) fn may_recover(&self) -> bool {
        let before = self.refused.swap(true, Ordering::Relaxed);
        self.is_fresh() && !before
    }
}

/// What a request on a repository is sent with.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) token: Arc<Token>,
    pub(crate) account: Arc<Account>,
    /// What the installation lacks, for messages.
    pub(crate) missing: Arc<[String]>,
}

/// What is known of one repository. Its lock makes the many askers wait for one fetch.
#[derive(Default)]
pub(crate) struct Slot {
    installation: Option<Installation>,
    access: Option<Access>,
    failed: Option<(Instant, GitHubError)>,
}

#[derive(Serialize)]
struct TokenRequest<'a> {
    repositories: [&'a str; 1],
    permissions: std::collections::BTreeMap<&'static str, &'static str>,
}

impl GitHub {
    /// Asks for the App's installation on a repository.
    ///
    /// # Errors
    /// [`GitHubError::NotFound`] where there is none, otherwise as every request.
    pub async fn installation(&self, repository: &Repository) -> Result<Installation, GitHubError> {
        let path = format!("/repos/{repository}/installation");
        let call = Call::get(path);
        let answer = self.call_as_app(&call).await?;
        if answer.status == 404 {
            return Err(GitHubError::NotFound {
                request: call.name(),
                message: answer.message(),
                hint: format!(
                    "install the App on {repository} (App settings, \"Install App\"), and check \
                     that the configuration spells the repository as GitHub does"
                ),
            });
        }
        let answer = self.expect_success(&call, answer, None)?;
        let wire: WireInstallation = call.parse(&answer.body)?;
        Ok(wire.into())
    }

    /// A token for a repository, from memory or newly made. Many askers make one request.
    pub(crate) async fn access(&self, repository: &Repository) -> Result<Access, GitHubError> {
        let asked = Instant::now();
        let slot = self.slot(repository)?;
        let mut slot = slot.lock().await;
        let now = Instant::now();
        if let Some(access) = &slot.access
            && now < access.token.renew
        {
            return Ok(access.clone());
        }
        if let Some((at, error)) = &slot.failed
            && *at >= asked
        {
            // The fetch that we waited for has failed just now.
            return Err(error.clone());
        }
        match self.grant(repository, &mut slot).await {
            Ok(access) => {
                slot.failed = None;
                slot.access = Some(access.clone());
                Ok(access)
            }
            Err(error) => match &slot.access {
                Some(access) if error.is_passing() && now < access.token.end => {
                    tracing::warn!(%repository, %error, "using the old installation token");
                    Ok(access.clone())
                }
                _ => {
                    slot.access = None;
                    slot.failed = Some((Instant::now(), error.clone()));
                    Err(error)
                }
            },
        }
    }

    /// Forgets a token that GitHub refused, and where it came from: the App may have been installed
    /// anew or allowed more. A newer token stays.
    pub(crate) async fn forget_access(&self, repository: &Repository, token: &Arc<Token>) {
        let Ok(slot) = self.slot(repository) else { return };
        let mut slot = slot.lock().await;
        if slot.access.as_ref().is_some_and(|access| Arc::ptr_eq(&access.token, token)) {
            slot.access = None;
            slot.installation = None;
        }
    }

    async fn grant(&self, repository: &Repository, slot: &mut Slot) -> Result<Access, GitHubError> {
        if let Some(installation) = slot.installation.take() {
            match self.create_token(repository, &installation).await {
                Ok(access) => {
                    slot.installation = Some(installation);
                    return Ok(access);
                }
                Err(error) if error.is_passing() => {
                    slot.installation = Some(installation);
                    return Err(error);
                }
                // It may have been replaced by another one: look again.
                Err(error) => {
                    tracing::debug!(%repository, %error, "looking the installation up again")
                }
            }
        }
        let installation = self.installation(repository).await?;
        let access = self.create_token(repository, &installation).await?;
        slot.installation = Some(installation);
        Ok(access)
    }

    async fn create_token(
        &self,
        repository: &Repository,
        installation: &Installation,
    ) -> Result<Access, GitHubError> {
        let path = format!("/app/installations/{}/access_tokens", installation.id);
        let request = TokenRequest {
            repositories: [repository.name()],
            permissions: permissions::to_ask_for(installation.permissions.as_ref()),
        };
        let call = Call {
            method: Method::POST,
            // A token too many does no harm: this one POST may be repeated.
            effect: Effect::Repeatable,
            body: Some(Call::body(&request)?),
            ..Call::get(path)
        };
        if installation.suspended {
            return Err(suspended(&call, installation));
        }
        let missing: Arc<[String]> = installation.missing_permissions().into();
        let answer = self.call_as_app(&call).await?;
        let hint = permissions::hint(Some(repository), &missing, None);
        let answer = self.expect_success(&call, answer, Some(hint))?;
        // No words of the parser: they could quote the token.
        let wire: WireToken = serde_json::from_slice(&answer.body).map_err(|_| {
            GitHubError::BadAnswer { request: call.name(), cause: "it holds no token".to_owned() }
        })?;
        let github_now = answer.date.unwrap_or_else(clock::now);
        Ok(Access {
            token: Arc::new(Token::new(wire, github_now)),
            account: self.account(installation.id),
            missing,
        })
    }

    fn slot(&self, repository: &Repository) -> Result<Arc<tokio::sync::Mutex<Slot>>, GitHubError> {
        let mut slots = self.slots().lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= REPOSITORIES_MAX && !slots.contains_key(repository) {
            return Err(GitHubError::Config(format!(
                "{REPOSITORIES_MAX} repositories are the most that one Forrest serves"
            )));
        }
        Ok(Arc::clone(slots.entry(repository.clone()).or_default()))
    }
}

/// The most repositories that access is kept for.
const REPOSITORIES_MAX: usize = 4096;

fn suspended(call: &Call, installation: &Installation) -> GitHubError {
    GitHubError::Auth {
        request: call.name(),
        status: 403,
        message: "the installation is suspended".to_owned(),
        hint: format!(
            "let the owner of {} unsuspend the App: {}",
            installation.account.as_deref().unwrap_or("the account"),
            installation
                .settings_url
                .as_deref()
                .unwrap_or("Settings, Applications, Installed Apps"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(expires_at: Option<&str>) -> Token {
        let wire =
            WireToken { token: "ghs_x".to_owned(), expires_at: expires_at.map(str::to_owned) };
        Token::new(wire, clock::rfc3339("2026-01-01T00:00:00Z").expect("a time"))
    }

    fn times(token: &Token) -> (u64, u64) {
        (
            token.renew.duration_since(token.made).as_secs(),
            token.end.duration_since(token.made).as_secs(),
        )
    }

    #[test]
    fn a_token_is_renewed_before_its_end() {
        assert_eq!(times(&token(Some("2026-01-01T01:00:00Z"))), (3300, 3570));
        assert_eq!(times(&token(Some("2026-01-01T00:02:00Z"))), (60, 90));
    }

    #[test]
    fn nonsense_about_a_tokens_life_is_not_believed() {
        assert_eq!(times(&token(Some("2999-01-01T00:00:00Z"))), (3300, 3570));
        for nonsense in [None, Some("soon"), Some("2025-01-01T00:00:00Z")] {
            assert_eq!(times(&token(nonsense)), (300, 570));
        }
    }

    /// A client that reaches nobody, with a token that is due and ends after `left`.
    async fn with_due_token(left: Duration) -> (GitHub, Repository) {
        let config = crate::GitHubConfig {
            api_url: "http://127.0.0.1:1".to_owned(),
            app_id: "1".to_owned(),
            key_pem: crate::test_key::TEST_KEY.private_pem.clone().into(),
            user_agent: "forrest-tests".to_owned(),
            changes_per_minute: 1,
        };
        let github = GitHub::new(config).expect("a sound configuration");
        let repository: Repository = "o/r".parse().expect("a name");
        let now = Instant::now();
        let due = Token { renew: now, end: now + left, ..token(None) };
        let access =
            Access { token: Arc::new(due), account: github.account(1), missing: Arc::new([]) };
        github.slot(&repository).expect("room").lock().await.access = Some(access);
        (github, repository)
    }

    #[tokio::test]
    async fn while_renewing_fails_the_old_token_is_used_to_its_end() {
        let (github, repository) = with_due_token(Duration::from_secs(600)).await;
        assert!(github.access(&repository).await.is_ok());
        let (github, repository) = with_due_token(Duration::ZERO).await;
        let error = github.access(&repository).await.err().expect("the token has ended");
        assert!(error.is_passing(), "{error:?}");
    }

    #[test]
    fn debug_output_hides_the_token() {
        assert!(!format!("{:?}", token(None)).contains("ghs_x"));
    }
}
