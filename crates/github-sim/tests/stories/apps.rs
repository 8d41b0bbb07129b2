//! Apps, installations, tokens.

use std::time::Duration;

use github_sim::RepositorySpec;
use github_sim::model::Settings;
use reqwest::Method;
use serde_json::json;

use crate::client::{GitHub, REPO, SOUND, Start, Times};

#[tokio::test]
async fn an_app_finds_its_installations() {
    let github = GitHub::start("an_app_finds_its_installations").await;
    github.sim.add_repository_as(&RepositorySpec {
        owner: "Orga".into(),
        name: "tool".into(),
        organization: true,
        private: true,
    });
    let app = github.as_app(Method::GET, "/app").await.expect(200);
    assert_eq!(app["id"], github.app.id.0);
    assert_eq!(app["permissions"]["administration"], "write");

    let all = github.as_app(Method::GET, "/app/installations").await.expect(200);
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    let id = all[0]["id"].as_u64().expect("an id");
    let one = github.as_app(Method::GET, &format!("/app/installations/{id}")).await.expect(200);
    assert_eq!(one["account"]["login"], "octo");
    let same = github.as_app(Method::GET, "/repos/OCTO/Hello/installation").await.expect(200);
    assert_eq!(same["id"], one["id"]);
    github.as_app(Method::GET, "/users/octo/installation").await.expect(200);
    let orga = github.as_app(Method::GET, "/orgs/orga/installation").await.expect(200);
    assert_eq!(orga["target_type"], "Organization");
    github.as_app(Method::GET, "/users/orga/installation").await.expect(404);
    github.as_app(Method::GET, "/repos/octo/nothing/installation").await.expect(404);
    github.as_app(Method::GET, "/app/installations/1").await.expect(404);

    let page = github.as_app(Method::GET, "/api/v3/app/installations?per_page=1").await;
    let link = page.header("link");
    let next = format!("<{}/api/v3/app/installations?per_page=1&page=2>", github.sim.url());
    assert!(link.starts_with(&format!("{next}; rel=\"next\"")), "{link}");
    github.check_requests();
}

#[tokio::test]
async fn an_app_token_must_be_right() {
    let github = GitHub::start("an_app_token_must_be_right").await;
    let now = github.sim.now().secs();
    let claims = json!({"iat": now - 60, "exp": now + 540, "iss": github.app.client_id});
    let rs256 = json!({"alg": "RS256"});
    let good = github.sign(&rs256, &claims);
    github.ask(Method::GET, "/app", Some(&good), None).await.expect(200);

    let stranger = json!({"iat": now - 60, "exp": now + 540, "iss": 1});
    let unsigned = github.sign(&json!({"alg": "none"}), &claims);
    let tampered = format!("{}x", &good[..good.len() - 1]);
    for (token, status) in [
        (github.jwt(Times { iat: 60, exp: 540 }), 401),
        (github.jwt(Times { iat: -60, exp: -1 }), 401),
        (github.jwt(Times { iat: -60, exp: 700 }), 401),
        (github.sign(&rs256, &stranger), 404),
        (unsigned, 401),
        (tampered, 401),
        ("a.b.c".to_owned(), 401),
        ("nonsense".to_owned(), 401),
    ] {
        let answer = github.ask(Method::GET, "/app", Some(&token), None).await;
        assert_eq!(answer.status, status, "{token}");
        assert!(answer.header("date").ends_with("GMT"));
    }
    github.ask(Method::GET, "/app", None, None).await.expect(401);
}

#[tokio::test]
async fn a_wrong_clock_shows_in_the_date() {
    let github = GitHub::start("a_wrong_clock_shows_in_the_date").await;
    github.sim.set_faults(|faults| faults.clock_skew_s = 3600);
    let answer = github.as_app(Method::GET, "/app").await;
    answer.expect(401);
    let date = answer.header("date").to_owned();
    let theirs = github.sim.now().skewed(3600).http_date();
    assert_eq!(date[..19], theirs[..19], "to the hour, give or take");
    let shifted = Times { iat: SOUND.iat + 3600, exp: SOUND.exp + 3600 };
    let token = github.jwt(shifted);
    github.ask(Method::GET, "/app", Some(&token), None).await.expect(200);
}

#[tokio::test]
async fn an_installation_token_is_as_narrow_as_asked() {
    let github = GitHub::start("an_installation_token_is_as_narrow_as_asked").await;
    github.sim.add_repository("octo", "other");
    let wide = github.create_token(&json!({})).await.expect(201);
    assert_eq!(wide["repository_selection"], "all");
    let wide = wide["token"].as_str().expect("a token").to_owned();
    let seen = github.get(&wide, "/installation/repositories").await.expect(200);
    assert_eq!(seen["total_count"], 2);

    let body = json!({"repositories": ["hello"], "permissions": {"actions": "read"}});
    let narrow = github.create_token(&body).await.expect(201);
    assert_eq!(narrow["permissions"], json!({"actions": "read", "metadata": "read"}));
    assert_eq!(narrow["repositories"][0]["full_name"], REPO);
    let narrow = narrow["token"].as_str().expect("a token").to_owned();
    github.get(&narrow, &format!("/repos/{REPO}/actions/runs")).await.expect(200);
    github.get(&narrow, &format!("/repos/{REPO}/actions/runners")).await.expect(403);
    github.get(&narrow, "/repos/octo/other/actions/runs").await.expect(404);
    github.get(&narrow, "/app").await.expect(401);
    let seen = github.get(&narrow, "/installation/repositories").await.expect(200);
    assert_eq!(seen["total_count"], 1);

    for body in [
        json!({"repositories": ["octo/hello"]}),
        json!({"repositories": ["nothing"]}),
        json!({"permissions": {"issues": "write"}}),
        json!({"permissions": {"actions": "write"}}),
    ] {
        github.create_token(&body).await.expect(422);
    }
    let jwt = github.jwt(SOUND);
    let path = format!("/repos/{REPO}/actions/runs");
    github.ask(Method::GET, &path, Some(&jwt), None).await.expect(401);
    github.ask(Method::DELETE, "/installation/token", Some(&narrow), None).await.expect(204);
    github.get(&narrow, &path).await.expect(401);
}

#[tokio::test]
async fn tokens_end_and_installations_are_suspended() {
    let settings = Settings { token_lag: Duration::from_secs(5), ..Settings::default() };
    let start = Start { settings, ..Start::default() };
    let github = GitHub::start_with("tokens_end_and_installations_are_suspended", start).await;
    let path = format!("/repos/{REPO}/actions/runs");
    let token = github.token().await;
    github.get(&token, &path).await.expect(401);
    github.sim.advance(Duration::from_secs(5));
    github.get(&token, &path).await.expect(200);
    github.sim.advance(Duration::from_secs(3600));
    github.get(&token, &path).await.expect(401);

    let token = github.token().await;
    github.sim.advance(Duration::from_secs(5));
    let installation = github.sim.installation(github.app.id, REPO).expect("one");
    github.sim.suspend(installation, true).expect("suspended");
    github.get(&token, &path).await.expect(403);
    github.create_token(&json!({})).await.expect(403);
    let shown = github.as_app(Method::GET, "/app/installations").await.expect(200);
    assert!(shown[0]["suspended_at"].is_string());
    github.sim.suspend(installation, false).expect("lifted");
    github.get(&token, &path).await.expect(200);
    github.sim.expire_tokens();
    github.get(&token, &path).await.expect(401);
}
