//! A client of the simulator that asks as Forrest would, but with code of its own.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use github_sim::contract::{self, Contract};
use github_sim::model::{Hook, HookContent, HookTarget, Permissions, Settings};
use github_sim::{AppHandle, AppSpec, Sim, SimConfig};
use reqwest::Method;
use serde_json::{Value, json};

/// The repository that most tests use.
pub const REPO: &str = "octo/hello";
/// The webhook secret that all tests use.
pub const SECRET: &str = "It's a Secret to Everybody";

/// An answer, checked against the contract.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a text"))
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// The JSON body of an answer with this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "answered {body}");
        if self.body.is_empty() { Value::Null } else { self.json() }
    }
}

/// A simulator with one App and one repository, and a client that may ask as the App.
#[derive(Debug, Clone)]
pub struct GitHub {
    pub sim: Sim,
    pub app: AppHandle,
    pub http: reqwest::Client,
    contract: Option<&'static Contract>,
    key: Arc<Vec<u8>>,
}

/// What the JWT says of its own time, in seconds from now.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    pub iat: i64,
    pub exp: i64,
}

pub const SOUND: Times = Times { iat: -60, exp: 540 };

/// How to start.
#[derive(Debug, Default)]
pub struct Start {
    pub settings: Settings,
    pub hook: Option<HookTarget>,
    pub form: bool,
    pub permissions: Option<Permissions>,
}

impl GitHub {
    pub async fn start(test: &str) -> Self {
        Self::start_with(test, Start::default()).await
    }

    pub async fn start_with(test: &str, start: Start) -> Self {
        let config = SimConfig { settings: start.settings, seed: 7, ..SimConfig::default() };
        let sim = Sim::start(config).await.expect("a simulator");
        let content = if start.form { HookContent::Form } else { HookContent::Json };
        let hook = start.hook.map(|target| Hook { target, secret: Some(SECRET.into()), content });
        let mut spec = AppSpec { hook, ..AppSpec::default() };
        if let Some(permissions) = start.permissions {
            spec.permissions = permissions;
        }
        let app = sim.add_app(spec).expect("an App");
        let (owner, name) = REPO.split_once('/').expect("owner/name");
        sim.add_repository(owner, name);
        let pem: String =
            app.private_key_pem.lines().filter(|line| !line.starts_with("-----")).collect();
        Self {
            key: Arc::new(STANDARD.decode(pem).expect("PEM")),
            http: reqwest::Client::builder()
                .user_agent("forrest-test")
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .build()
                .expect("a client"),
            contract: contract::for_test(test),
            sim,
            app,
        }
    }

    /// A token of the App.
    pub fn jwt(&self, times: Times) -> String {
        let now = i64::try_from(self.sim.now().secs()).expect("now");
        let claims = json!({
            "iat": now + times.iat, "exp": now + times.exp, "iss": self.app.id.to_string(),
        });
        self.sign(&json!({"alg": "RS256", "typ": "JWT"}), &claims)
    }

    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let pair = KeyPair::from_der(&self.key).expect("a key");
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Asks with any token; the answer is checked.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        self.try_ask(method, path, token, body, None).await.expect("an answer")
    }

    pub async fn try_ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        if_none_match: Option<&str>,
    ) -> reqwest::Result<Answer> {
        let mut request = self
            .http
            .request(method.clone(), format!("{}{path}", self.sim.url()))
            .header("accept", "application/vnd.github+json");
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(tag) = if_none_match {
            request = request.header("if-none-match", tag);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.bytes().await?.to_vec();
        let bare = path.split('?').next().unwrap_or_default();
        let bare = bare.strip_prefix("/api/v3").unwrap_or(bare);
        if let Some(contract) = self.contract
            && !bare.starts_with("/_sim")
        {
            contract
                .check_response(method.as_str(), bare, status, &body)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        Ok(Answer { status, headers, body })
    }

    /// Asks as the App.
    pub async fn as_app(&self, method: Method, path: &str) -> Answer {
        self.ask(method, path, Some(&self.jwt(SOUND)), None).await
    }

    /// A token of the installation on the repository's owner.
    pub async fn token(&self) -> String {
        let answer = self.create_token(&json!({})).await;
        answer.expect(201)["token"].as_str().expect("a token").to_owned()
    }

    pub async fn create_token(&self, body: &Value) -> Answer {
        let id = self.sim.installation(self.app.id, REPO).expect("an installation");
        let path = format!("/app/installations/{id}/access_tokens");
        self.ask(Method::POST, &path, Some(&self.jwt(SOUND)), Some(body)).await
    }

    pub async fn get(&self, token: &str, path: &str) -> Answer {
        self.ask(Method::GET, path, Some(token), None).await
    }

    /// Registers a runner with these labels; returns its JIT config.
    pub async fn register(&self, token: &str, name: &str, labels: &[&str]) -> String {
        let body = registration(name, labels);
        let answer = self.ask(Method::POST, &jit_path(), Some(token), Some(&body)).await;
        answer.expect(201)["encoded_jit_config"].as_str().expect("a config").to_owned()
    }

    /// Checks every request so far against the contract: this client is to be a good example.
    pub fn check_requests(&self) {
        let requests = self.sim.requests();
        assert!(!requests.is_empty(), "nothing was asked");
        if let Some(contract) = self.contract {
            for request in requests {
                contract.check_request(&request).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

pub fn jit_path() -> String {
    format!("/repos/{REPO}/actions/runners/generate-jitconfig")
}

pub fn registration(name: &str, labels: &[&str]) -> Value {
    json!({"name": name, "runner_group_id": 1, "labels": labels, "work_folder": "_work"})
}
