//! The client against a server that does what GitHub does on bad days, and what only an attacker
//! would do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::app_key;
use crate::http_server::{Reply, Seen, Server};
use forrest_core::model::{JobId, Labels, Repository, RunnerId, RunnerName};
use forrest_github::{Deletion, DeliveryId, GitHub, GitHubError, RegisterError};
use serde_json::{Value, json};

const RUNNERS: &str = "/repos/o/r/actions/runners";
const JIT: &str = "/repos/o/r/actions/runners/generate-jitconfig";
const TOKENS: &str = "/app/installations/5/access_tokens";
const INSTALLATION: &str = "/repos/o/r/installation";

fn repository() -> Repository {
    "o/r".parse().expect("a name")
}

fn name() -> RunnerName {
    "forrest-build-aaaaaaaaaaaaaaaa".parse().expect("a name")
}

fn labels() -> Labels {
    ["self-hosted", "forrest", "build"].into_iter().collect()
}

/// The part of GitHub that works: the installation and its tokens. Each token has a number.
fn granting(seen: &Seen, tokens: &AtomicUsize) -> Option<Reply> {
    if seen.is("GET", INSTALLATION) {
        let permissions = json!({"administration": "write", "actions": "read", "metadata": "read"});
        return Some(Reply::json(200, &json!({"id": 5, "permissions": permissions})));
    }
    seen.is("POST", TOKENS).then(|| {
        let number = tokens.fetch_add(1, Ordering::Relaxed);
        Reply::json(
            201,
            &json!({"token": format!("ghs_TOKEN{number}"), "expires_at": in_an_hour()}),
        )
    })
}

fn in_an_hour() -> String {
    (jiff::Timestamp::now() + Duration::from_secs(3600)).to_string()
}

/// A server that grants tokens and answers everything else as said.
async fn server(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, GitHub) {
    let tokens = AtomicUsize::new(0);
    let server =
        Server::start(move |seen| granting(seen, &tokens).unwrap_or_else(|| answer(seen))).await;
    let github = app_key::github(&server.url);
    (server, github)
}

fn error(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({"message": message}))
}

fn runner(id: u64, labels: &[&str]) -> Value {
    let labels: Vec<Value> = labels.iter().map(|label| json!({"name": label})).collect();
    json!({"id": id, "name": name().as_str(), "status": "offline", "busy": false, "labels": labels})
}

#[tokio::test]
async fn a_registration_without_an_answer_is_unknown_and_not_repeated() {
    let cut = || Reply::CutShort { status: 201, body: b"{\"runner\":{".to_vec() };
    let cases: [fn() -> Reply; 5] = [
        || Reply::HangUp,
        cut,
        || error(502, "Bad Gateway"),
        || error(500, "Server Error"),
        || Reply::json(201, &json!({"runner": runner(1, &["build"])})),
    ];
    for case in cases {
        let (server, github) = server(move |_| case()).await;
        let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
        assert!(matches!(answer, Err(RegisterError::Unknown { .. })), "{:?}: {answer:?}", case());
        assert_eq!(server.count("POST", JIT), 1, "{:?} was answered with a second POST", case());
    }
}

#[tokio::test]
async fn a_registration_is_not_repeated_on_a_connection_that_github_closed() {
    // The first answer leaves a connection open that the server drops under the second request.
    let count = AtomicUsize::new(0);
    let (server, github) = server(move |seen| {
        if seen.method == "GET" {
            return Reply::json(200, &json!({"runners": []}));
        }
        count.fetch_add(1, Ordering::Relaxed);
        Reply::HangUp
    })
    .await;
    assert_eq!(github.find_runner(&repository(), &name()).await, Ok(None));
    let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
    assert!(matches!(answer, Err(RegisterError::Unknown { .. })), "{answer:?}");
    assert_eq!(server.count("POST", JIT), 1);
}

#[tokio::test]
async fn refusals_of_a_registration_are_told_apart() {
    let refused = |reply: Reply| async move {
        let (server, github) = server(move |_| reply.clone()).await;
        let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
        assert_eq!(server.count("POST", JIT), 1);
        answer.expect_err("a refusal")
    };
    let taken = refused(error(409, "Already exists - A runner exists with the same name")).await;
    assert!(matches!(taken, RegisterError::NameTaken { .. }), "{taken:?}");
    assert!(matches!(refused(error(404, "Not Found")).await, RegisterError::NoAccess { .. }));
    let forbidden = error(403, "Resource not accessible by integration")
        .with("x-accepted-github-permissions", "administration=write");
    let forbidden = refused(forbidden).await;
    assert!(matches!(forbidden, RegisterError::NoAccess { .. }));
    assert!(forbidden.to_string().contains("administration: write"), "{forbidden}");
    let invalid = refused(error(422, "Invalid labels")).await;
    assert!(invalid.to_string().contains("Invalid labels"), "{invalid}");
    assert!(matches!(invalid, RegisterError::GitHub(GitHubError::Refused { status: 422, .. })));
    let unauthorized = refused(error(401, "Bad credentials")).await;
    assert!(
        matches!(unauthorized, RegisterError::GitHub(GitHubError::Transient { .. })),
        "nothing happened and a new token may help: {unauthorized:?}"
    );
}

#[tokio::test]
async fn a_registration_without_a_label_that_was_asked_for_names_the_runner_to_delete() {
    let (_server, github) = server(|_| {
        let runner = runner(77, &["self-hosted", "Forrest"]);
        Reply::json(201, &json!({"runner": runner, "encoded_jit_config": "SECRETJIT"}))
    })
    .await;
    let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
    let Err(RegisterError::LabelsMissing { runner_id, missing, .. }) = &answer else {
        panic!("{answer:?}");
    };
    assert_eq!((*runner_id, missing.as_slice()), (RunnerId(77), ["build".into()].as_slice()));
}

#[tokio::test]
async fn many_askers_make_one_token() {
    let (server, github) = server(|_| Reply::json(200, &json!({"runners": []}))).await;
    let name = name();
    let repository = repository();
    let asks = (0..50).map(|_| github.find_runner(&repository, &name));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer, Ok(None));
    }
    assert_eq!(server.count("POST", TOKENS), 1);
    assert_eq!(server.count("GET", RUNNERS), 50);
}

#[tokio::test]
async fn many_askers_share_one_failure() {
    let server = Server::start(|_| error(503, "Unavailable")).await;
    let github = app_key::github(&server.url);
    let (name, repository) = (name(), repository());
    let asks = (0..50).map(|_| github.find_runner(&repository, &name));
    for answer in futures::future::join_all(asks).await {
        assert!(matches!(answer, Err(GitHubError::Transient { .. })), "{answer:?}");
    }
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn the_token_asks_for_this_repository_and_little_else() {
    let (server, github) = server(|_| Reply::json(200, &json!({"runners": []}))).await;
    github.list_runners(&repository()).await.expect("runners");
    let seen = server.seen();
    let request = seen.iter().find(|seen| seen.is("POST", TOKENS)).expect("a token request");
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    let permissions = json!({"actions": "read", "administration": "write", "metadata": "read"});
    assert_eq!(body, json!({"repositories": ["r"], "permissions": permissions}));
}

#[tokio::test]
async fn a_fresh_token_that_github_does_not_know_yet_is_tried_once_more() {
    let count = AtomicUsize::new(0);
    let (server, github) = server(move |_| match count.fetch_add(1, Ordering::Relaxed) {
        0 => error(401, "Bad credentials"),
        _ => Reply::json(200, &json!({"runners": []})),
    })
    .await;
    assert_eq!(github.find_runner(&repository(), &name()).await, Ok(None));
    assert_eq!(server.count("POST", TOKENS), 1, "the same token");
}

#[tokio::test]
async fn a_token_that_stays_refused_is_replaced_and_then_given_up() {
    let (server, github) = server(|_| error(401, "Bad credentials")).await;
    let answer = github.list_runners(&repository()).await.expect_err("no token works");
    assert!(matches!(answer, GitHubError::Auth { status: 401, .. }), "{answer:?}");
    assert_eq!((server.count("POST", TOKENS), server.count("GET", RUNNERS)), (2, 4));
}

#[tokio::test]
async fn a_registration_with_a_dead_token_gets_a_new_one_the_time_after_next() {
    let (server, github) = server(|seen| match seen.headers["authorization"].as_str() {
        "Bearer ghs_TOKEN0" => error(401, "Bad credentials"),
        _ => error(409, "Already exists"),
    })
    .await;
    for _ in 0..2 {
        let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
        assert!(matches!(answer, Err(RegisterError::GitHub(GitHubError::Transient { .. }))));
    }
    let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
    assert!(matches!(answer, Err(RegisterError::NameTaken { .. })), "{answer:?}");
    assert_eq!((server.count("POST", JIT), server.count("POST", TOKENS)), (3, 2));
}

#[tokio::test]
async fn a_limit_is_kept_without_asking_again() {
    let limits = [
        error(429, "Too Many Requests").with("retry-after", "600"),
        error(403, "API rate limit exceeded")
            .with("x-ratelimit-remaining", "0")
            .with("x-ratelimit-reset", &(jiff::Timestamp::now().as_second() + 600).to_string()),
        error(403, "You have exceeded a secondary rate limit."),
    ];
    for (limit, seconds) in limits.into_iter().zip([600, 600, 60]) {
        let (server, github) = server(move |seen| match seen.path() {
            "/app" => Reply::json(200, &json!({})),
            _ => limit.clone(),
        })
        .await;
        let first = github.generate_jit_config(&repository(), &name(), &labels()).await;
        let Err(RegisterError::GitHub(GitHubError::RateLimited { wait, until, .. })) = first else {
            panic!("{first:?}");
        };
        assert!((seconds - 10..=seconds + 1).contains(&wait.as_secs()), "{wait:?}");
        let before = server.seen().len();
        let again = github.list_runners(&repository()).await.expect_err("the limit holds");
        assert_eq!(again.until(), Some(until));
        assert_eq!(server.seen().len(), before, "a request was sent in spite of the limit");
        assert!(github.app().await.is_ok(), "the App's own limit is another one");
    }
}

#[tokio::test]
async fn who_waited_while_a_limit_was_hit_is_not_sent_either() {
    let (server, github) = server(|_| error(429, "Too Many Requests")).await;
    let repository = repository();
    let deletions = (0..8).map(|id| github.delete_runner(&repository, RunnerId(id)));
    let answers = futures::future::join_all(deletions).await;
    assert!(answers.iter().all(|a| matches!(a, Err(e) if e.until().is_some())), "{answers:?}");
    assert_eq!(server.seen().iter().filter(|seen| seen.method == "DELETE").count(), 1);
}

#[tokio::test]
async fn changes_are_sent_one_after_the_other_and_not_too_many() {
    let running = Arc::new(AtomicUsize::new(0));
    let (server, _) = server(move |_| {
        assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two changes at a time");
        std::thread::sleep(Duration::from_millis(2));
        running.fetch_sub(1, Ordering::SeqCst);
        Reply::Answer { status: 204, headers: Vec::new(), body: Vec::new() }
    })
    .await;
    let mut config = app_key::config(&server.url);
    config.changes_per_minute = 5;
    let github = GitHub::new(config).expect("a sound configuration");
    let repository = repository();
    let deletions = (0..8).map(|id| github.delete_runner(&repository, RunnerId(id)));
    let answers = futures::future::join_all(deletions).await;
    assert_eq!(answers.iter().filter(|a| **a == Ok(Deletion::Deleted)).count(), 5);
    assert_eq!(answers.iter().filter(|a| matches!(a, Err(e) if e.until().is_some())).count(), 3);
    let sent = server.seen().iter().filter(|seen| seen.method == "DELETE").count();
    assert_eq!(sent, 5);
}

#[tokio::test]
async fn a_busy_runner_stays_and_a_missing_one_must_be_provably_missing() {
    let answer = |delete: u16, list: u16| async move {
        let (_server, github) = server(move |seen| match seen.method.as_str() {
            "DELETE" => error(delete, "Bad request - Runner is still running a job"),
            _ if list == 200 => Reply::json(200, &json!({"runners": []})),
            _ => error(list, "Not Found"),
        })
        .await;
        github.delete_runner(&repository(), RunnerId(1)).await
    };
    assert_eq!(answer(422, 200).await, Ok(Deletion::Busy));
    assert_eq!(answer(404, 200).await, Ok(Deletion::AlreadyGone));
    let blind = answer(404, 404).await;
    assert!(matches!(blind, Err(GitHubError::NotFound { .. })), "{blind:?}");
    let broken = answer(500, 200).await;
    assert!(matches!(broken, Err(GitHubError::Transient { .. })), "{broken:?}");
}

#[tokio::test]
async fn a_token_never_goes_to_another_host() {
    let thief = Server::start(|_| Reply::json(200, &json!({"runners": []}))).await;
    let elsewhere = format!("{}/next", thief.url);
    let link = format!("<{elsewhere}>; rel=\"next\"");
    let pages = Reply::json(200, &json!({"runners": []})).with("link", &link);
    let redirect = error(307, "Moved").with("location", &elsewhere);
    for reply in [pages, redirect] {
        let (_server, github) = server(move |_| reply.clone()).await;
        let answer = github.list_runners(&repository()).await.expect_err("it must not follow");
        assert!(matches!(answer, GitHubError::BadAnswer { .. }), "{answer:?}");
    }
    assert_eq!(thief.seen().len(), 0);
}

#[tokio::test]
async fn a_renamed_repository_is_read_but_not_changed() {
    let (server, github) = server(|seen| match seen.path() {
        "/repositories/9/actions/runners" => {
            Reply::json(200, &json!({"runners": [runner(3, &[])]}))
        }
        _ => error(307, "Moved").with("location", "/repositories/9/actions/runners"),
    })
    .await;
    assert_eq!(github.list_runners(&repository()).await.expect("followed").len(), 1);
    let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
    assert!(answer.expect_err("not followed").to_string().contains("renamed"));
    assert_eq!(server.seen().iter().filter(|seen| seen.path() == JIT).count(), 1);
    let (_server, github) =
        self::server(|seen| error(302, "").with("location", &seen.target)).await;
    let looping = github.job(&repository(), JobId(1)).await;
    assert!(matches!(looping, Err(GitHubError::BadAnswer { .. })), "{looping:?}");
}

#[tokio::test]
async fn answers_beyond_every_bound_are_refused() {
    let (_server, github) =
        server(|_| Reply::Answer { status: 200, headers: Vec::new(), body: vec![b' '; 17 << 20] })
            .await;
    let answer = github.job(&repository(), JobId(1)).await.expect_err("17 MiB");
    assert!(matches!(answer, GitHubError::BadAnswer { .. }), "{answer:?}");

    let (endless, github) = server(|seen| {
        let next = format!("<{}>; rel=\"next\"", seen.target);
        Reply::json(200, &json!({"runners": [runner(1, &[])]})).with("link", &next)
    })
    .await;
    let answer = github.list_runners(&repository()).await.expect_err("pages without end");
    assert!(matches!(answer, GitHubError::BadAnswer { .. }), "{answer:?}");
    assert_eq!(endless.count("GET", RUNNERS), 100);
}

#[tokio::test]
async fn a_suspended_or_missing_installation_is_said_plainly() {
    let server = Server::start(|seen| match seen.path() {
        INSTALLATION => Reply::json(
            200,
            &json!({"id": 5, "suspended_at": "2026-01-01T00:00:00Z", "account": {"login": "o"}}),
        ),
        _ => error(404, "Not Found"),
    })
    .await;
    let github = app_key::github(&server.url);
    let text = github.list_runners(&repository()).await.expect_err("suspended").to_string();
    assert!(text.contains("suspended") && text.contains("owner of o"), "{text}");
    let other: Repository = "o/other".parse().expect("a name");
    let text = github.list_runners(&other).await.expect_err("not installed").to_string();
    assert!(text.contains("install the App on o/other"), "{text}");
    assert_eq!(server.count("POST", TOKENS), 0);
}

/// Grants tokens that have to be renewed at once, from the installation with the given number.
fn short_lived(seen: &Seen, installation: usize) -> Reply {
    let tokens = format!("/app/installations/{installation}/access_tokens");
    match seen.path() {
        INSTALLATION => Reply::json(200, &json!({"id": installation})),
        path if path == tokens => {
            let token = json!({"token": "t", "expires_at": "2026-01-01T00:00:00.001Z"});
            Reply::json(201, &token).with("date", "Thu, 01 Jan 2026 00:00:00 GMT")
        }
        RUNNERS => Reply::json(200, &json!({"runners": []})),
        _ => error(404, "Not Found"),
    }
}

#[tokio::test]
async fn a_new_installation_is_found_when_the_old_one_is_gone() {
    let id = Arc::new(AtomicUsize::new(5));
    let current = Arc::clone(&id);
    let server =
        Server::start(move |seen| short_lived(seen, current.load(Ordering::Relaxed))).await;
    let github = app_key::github(&server.url);
    assert_eq!(github.list_runners(&repository()).await, Ok(Vec::new()));
    id.store(6, Ordering::Relaxed);
    // The first token lives a millisecond; some of these requests may still be sent with it.
    let new_tokens = "/app/installations/6/access_tokens";
    for _ in 0..1000 {
        assert_eq!(github.list_runners(&repository()).await, Ok(Vec::new()));
        if server.count("POST", new_tokens) > 0 {
            break;
        }
    }
    assert_eq!(server.count("POST", new_tokens), 1);
    assert_eq!(server.count("GET", INSTALLATION), 2);
}

#[tokio::test]
async fn a_redelivery_without_an_answer_is_not_repeated() {
    let server = Server::start(|_| Reply::HangUp).await;
    let github = app_key::github(&server.url);
    let answer = github.redeliver(DeliveryId(8)).await;
    assert!(matches!(answer, Err(GitHubError::LostResponse { .. })), "{answer:?}");
    assert_eq!(server.seen().len(), 1);
    drop(server);
    let refused = app_key::github("http://127.0.0.1:1").redeliver(DeliveryId(8)).await;
    assert!(matches!(refused, Err(GitHubError::Transient { .. })), "never sent: {refused:?}");
}

#[tokio::test]
async fn no_error_shows_a_secret() {
    let replies = [
        error(401, "Bad credentials"),
        error(403, "no"),
        error(404, "no"),
        error(422, "no"),
        error(500, "no"),
        Reply::HangUp,
        Reply::json(201, &json!({"runner": {"id": 1}, "encoded_jit_config": ["ghs_TOKEN"]})),
        Reply::json(201, &json!({"runner": {"id": "ghs_TOKEN"}, "encoded_jit_config": "x"})),
    ];
    for reply in replies {
        let (_server, github) = server(move |_| reply.clone()).await;
        let answer = github.generate_jit_config(&repository(), &name(), &labels()).await;
        let text = format!("{answer:?} {github:?} {:?}", app_key::config("x"));
        for secret in ["ghs_TOKEN", "Bearer", "PRIVATE", "eyJ"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let text = Server::start(|seen| match seen.path() {
        INSTALLATION => Reply::json(200, &json!({"id": 5})),
        _ => Reply::json(201, &json!({"token": ["ghs_TOKEN"]})),
    })
    .await;
    let error = app_key::github(&text.url).list_runners(&repository()).await.expect_err("no token");
    assert!(!format!("{error} {error:?}").contains("ghs_TOKEN"), "{error}");
}
