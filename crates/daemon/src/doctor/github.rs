//! GitHub, the App and its installations, and the clock.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use forrest_config::Config;
use forrest_core::model::Repository;
use forrest_github::{AppFacts, GitHub, GitHubConfig, GitHubError};
use futures::StreamExt;
use secrecy::SecretString;

use super::config::counted;
use super::{Area, Findings};

/// How long GitHub may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the questions about all repositories may take together.
const REPOSITORIES_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions at a time.
const QUESTIONS_MAX: usize = 8;
/// The largest private key that is read, in bytes.
const KEY_LEN_MAX: u64 = 64 << 10;
/// From this difference on, clocks that are apart deserve a warning. Forrest dates its signatures a
/// minute back and follows GitHub's clock when one is refused.
const SKEW_S_MAX: i64 = 20;

const NETWORK_ADVICE: &str =
    "see that this host can reach it (name resolution, firewall, proxy), or say --offline";

pub(super) async fn examine(config: &Config, findings: &mut Findings) {
    let Some(github) = client(config, findings) else { return };
    match in_time("GitHub", github.app()).await {
        Ok(app) => {
            judge_app(&app, &config.github.api_url, findings);
            judge_clock(github.clock_ahead_s(), findings);
        }
        Err(error) => {
            // An answer that refuses the signature shows the clock, no answer shows nothing.
            if matches!(error.error, Some(GitHubError::Auth { .. })) {
                judge_clock(github.clock_ahead_s(), findings);
            }
            return findings.problem(
                Area::GitHub,
                error.text,
                error.advice.unwrap_or("see that github.app_id and github.jwt_key_file belong to the same App, and github.api_url to its GitHub"),
            );
        }
    }
    webhook(&github, findings).await;
    installations(config, &github, findings).await;
}

fn client(config: &Config, findings: &mut Findings) -> Option<GitHub> {
    let path = config.github.jwt_key_file.resolve();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(KEY_LEN_MAX).read_to_string(&mut text));
    if read.is_err() {
        // The configuration's findings say so.
        return None;
    }
    let github = GitHub::new(GitHubConfig {
        api_url: config.github.api_url.clone(),
        app_id: config.github.app_id.clone(),
        key_pem: SecretString::from(text),
        user_agent: concat!("forrest/", env!("CARGO_PKG_VERSION")).to_owned(),
        changes_per_minute: GitHubConfig::CHANGES_PER_MINUTE,
    });
    match github {
        Ok(github) => Some(github),
        Err(error) => {
            let advice = "generate a new key on the App's settings page (docs/github.md)";
            findings.problem(Area::GitHub, error.to_string(), advice);
            None
        }
    }
}

/// Why a question has no answer.
struct NoAnswer {
    text: String,
    advice: Option<&'static str>,
    /// GitHub's own words, where it answered.
    error: Option<GitHubError>,
}

async fn in_time<T>(
    what: &str,
    question: impl Future<Output = Result<T, GitHubError>>,
) -> Result<T, NoAnswer> {
    match tokio::time::timeout(ANSWER_TIMEOUT, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let advice = error.is_passing().then_some(NETWORK_ADVICE);
            Err(NoAnswer { text: error.to_string(), advice, error: Some(error) })
        }
        Err(_) => Err(NoAnswer {
            text: format!("{what} did not answer within {} s", ANSWER_TIMEOUT.as_secs()),
            advice: Some(NETWORK_ADVICE),
            error: None,
        }),
    }
}

fn judge_app(app: &AppFacts, api_url: &str, findings: &mut Findings) {
    let name = app.name.as_deref().or(app.slug.as_deref()).unwrap_or("without a name");
    findings.ok(Area::GitHub, format!("{api_url} knows the App {name:?} and accepts its key"));
    let missing = app.missing_permissions();
    if !missing.is_empty() {
        findings.problem(
            Area::GitHub,
            format!("the App lacks the repository permissions {}", missing.join(", ")),
            "add them in the App's settings under \"Permissions & events\", and accept the change in each installation",
        );
    }
    let events = app.missing_events();
    if !events.is_empty() {
        findings.warning(
            Area::GitHub,
            format!(
                "the App is not subscribed to the event {}: jobs are found by polling only",
                events.join(", ")
            ),
            "tick \"Workflow job\" in the App's settings under \"Permissions & events\"",
        );
    }
    if missing.is_empty() && events.is_empty() {
        findings.ok(Area::GitHub, "the App has the permissions and the event that Forrest needs");
    }
}

fn judge_clock(ahead_s: i64, findings: &mut Findings) {
    if ahead_s.abs() <= SKEW_S_MAX {
        return findings.ok(Area::GitHub, "this host's clock agrees with GitHub's");
    }
    let direction = if ahead_s > 0 { "behind" } else { "ahead of" };
    findings.warning(
        Area::GitHub,
        format!("this host's clock is {} s {direction} GitHub's", ahead_s.abs()),
        "let it be set over the network (systemd-timesyncd or chrony)",
    );
}

async fn webhook(github: &GitHub, findings: &mut Findings) {
    match in_time("GitHub", github.hook_config()).await {
        Ok(hook) => match hook.url.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => findings.ok(Area::GitHub, format!("GitHub sends webhooks to {url}")),
            None => findings.warning(
                Area::GitHub,
                "the App has no webhook: jobs are found by polling only",
                "fine without a public address (docs/github.md); otherwise enter its URL in the App's settings",
            ),
        },
        Err(NoAnswer { error: Some(GitHubError::NotFound { .. }), .. }) => findings.warning(
            Area::GitHub,
            "the App has no webhook: jobs are found by polling only",
            "fine without a public address (docs/github.md); otherwise switch it on in the App's settings",
        ),
        Err(error) => findings.warning(
            Area::GitHub,
            format!("could not ask where webhooks go: {}", error.text),
            error.advice.unwrap_or("see \"Webhook\" in the App's settings"),
        ),
    }
}

/// Whether the App is installed on every repository, with what it needs.
async fn installations(config: &Config, github: &GitHub, findings: &mut Findings) {
    let repositories: Vec<Repository> = config.repositories.keys().cloned().collect();
    let questions = repositories.iter().cloned().map(|repository| async move {
        let answer = in_time("GitHub", github.installation(&repository)).await;
        (repository, answer)
    });
    let mut answers = futures::stream::iter(questions).buffered(QUESTIONS_MAX);
    let deadline = tokio::time::Instant::now() + REPOSITORIES_TIMEOUT;
    let (mut asked, mut sound) = (0, 0);
    while let Ok(Some((repository, answer))) =
        tokio::time::timeout_at(deadline, answers.next()).await
    {
        asked += 1;
        let before = findings.0.len();
        match answer {
            Ok(installation) => {
                let page =
                    installation.settings_url.as_deref().unwrap_or("the installation's page");
                let missing = installation.missing_permissions();
                if installation.suspended {
                    findings.problem(
                        Area::GitHub,
                        format!("the App's installation on {repository} is suspended"),
                        format!("let the owner unsuspend it: {page}"),
                    );
                }
                if !missing.is_empty() {
                    findings.problem(
                        Area::GitHub,
                        format!(
                            "the App's installation on {repository} lacks {}",
                            missing.join(", ")
                        ),
                        format!("let the owner accept the App's new permissions: {page}"),
                    );
                }
            }
            Err(error) => findings.problem(
                Area::GitHub,
                error.text,
                error.advice.unwrap_or("install the App on it (docs/github.md)"),
            ),
        }
        sound += usize::from(findings.0.len() == before);
    }
    if asked < repositories.len() {
        findings.warning(
            Area::GitHub,
            format!(
                "{} of {} repositories could not be asked about in time",
                repositories.len() - asked,
                repositories.len()
            ),
            NETWORK_ADVICE,
        );
    }
    if sound > 0 {
        let repositories = counted(sound, "repository", "repositories");
        findings.ok(Area::GitHub, format!("the App is installed on {repositories}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn app() -> AppFacts {
        let permissions = [("actions", "read"), ("administration", "write"), ("metadata", "read")];
        let permissions = permissions.map(|(name, level)| (name.to_owned(), level.to_owned()));
        AppFacts {
            id: Some(1),
            slug: None,
            name: Some("forrest".to_owned()),
            page_url: None,
            permissions: Some(permissions.into()),
            events: Some(vec!["workflow_job".to_owned()]),
        }
    }

    fn levels(check: impl FnOnce(&mut Findings)) -> Vec<Level> {
        let mut findings = Findings::default();
        check(&mut findings);
        findings.0.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn permissions_are_needed_and_events_are_wanted() {
        assert_eq!(levels(|f| judge_app(&app(), "url", f)), [Level::Ok, Level::Ok]);
        let bare = AppFacts { events: Some(Vec::new()), ..app() };
        assert_eq!(levels(|f| judge_app(&bare, "url", f)), [Level::Ok, Level::Warning]);
        let bare = AppFacts { permissions: Some([].into()), ..app() };
        assert_eq!(levels(|f| judge_app(&bare, "url", f)), [Level::Ok, Level::Problem]);
    }

    #[test]
    fn clocks_may_be_a_little_apart() {
        assert_eq!(levels(|f| judge_clock(-3, f)), [Level::Ok]);
        assert_eq!(levels(|f| judge_clock(300, f)), [Level::Warning]);
    }
}
