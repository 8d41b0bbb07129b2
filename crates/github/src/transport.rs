//! One HTTP exchange: a request out, a bounded answer back, and what a failure means.
//!
//! Nothing here repeats anything, follows anything, or knows what a token is for.

use std::error::Error as _;
use std::time::Duration;

use forrest_core::model::Timestamp;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Url};
use secrecy::{ExposeSecret, SecretString};

use crate::clock;
use crate::error::foreign;
use crate::link::{self, ApiBase};
use crate::rate::RateHeaders;
use crate::wire::WireError;
use crate::{GitHubConfig, GitHubError};

/// The most bytes of an answer that are read. A page of 100 workflow runs is about 2 MB.
const BODY_MAX: usize = 16 << 20;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a whole exchange that only reads may take, from sending to the body's last byte.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The same for exchanges that change something. They are sent one after the other, so a hanging one
/// holds up the rest.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Unused connections are closed after this, before GitHub does it under a request that must not be
/// repeated.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Unused connections that are kept.
const IDLE_CONNECTIONS_MAX: usize = 2;

/// What happens if a request arrives twice, or perhaps not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It changes nothing.
    Reads,
    /// It changes something, and twice is the same as once.
    Repeatable,
    /// It changes something each time. Never repeated, and without an answer its fate is unknown.
    Once,
}

/// One request.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) effect: Effect,
    pub(crate) body: Option<&'a [u8]>,
    pub(crate) etag: Option<&'a str>,
}

/// One answer, whatever its status.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) etag: Option<String>,
    pub(crate) next: Option<String>,
    pub(crate) location: Option<String>,
    pub(crate) accepted_permissions: Option<String>,
    pub(crate) rate: RateHeaders,
    /// GitHub's clock.
    pub(crate) date: Option<Timestamp>,
}

impl Answer {
    /// GitHub's words on what is wrong, on one line and bounded.
    pub(crate) fn message(&self) -> String {
        let wire: WireError = serde_json::from_slice(&self.body).unwrap_or_default();
        let mut text = wire.message.unwrap_or_default();
        for detail in details(wire.errors.as_ref()) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&detail);
        }
        if text.is_empty() { "no explanation".to_owned() } else { foreign(&text) }
    }
}

fn details(errors: Option<&serde_json::Value>) -> Vec<String> {
    let one = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => Some(text.clone()),
        other => ["message", "code"].iter().find_map(|key| other.get(key)?.as_str()).map(|text| {
            match other.get("field").and_then(serde_json::Value::as_str) {
                Some(field) => format!("{field}: {text}"),
                None => text.to_owned(),
            }
        }),
    };
    match errors {
        Some(serde_json::Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The HTTP client.
#[derive(Debug)]
pub(crate) struct Transport {
    client: Client,
}

impl Transport {
    /// Builds the client: HTTP/1.1, no redirects, no repeats, the system's root certificates.
    ///
    /// # Errors
    /// [`GitHubError::Config`] for an unusable user agent or missing root certificates.
    pub(crate) fn new(config: &GitHubConfig, base: &ApiBase) -> Result<Self, GitHubError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.insert("x-github-api-version", HeaderValue::from_static("2022-11-28"));
        let mut builder = Client::builder()
            .default_headers(headers)
            .user_agent(&config.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        if base.is_plain_loopback() {
            // Saves reading the system's root certificates, and keeps a proxy out of the way.
            builder = builder.no_proxy().tls_certs_only(std::iter::empty());
        }
        let client = builder.build().map_err(|error| {
            GitHubError::Config(format!("the HTTP client cannot be set up: {}", chain(error)))
        })?;
        Ok(Self { client })
    }

    /// Sends one request, once, and reads the answer.
    ///
    /// # Errors
    /// [`GitHubError::Transient`] when the request had no effect or may be repeated,
    /// [`GitHubError::LostResponse`] when neither is certain, [`GitHubError::BadAnswer`] for an
    /// answer beyond [`BODY_MAX`].
    pub(crate) async fn exchange(
        &self,
        out: &Outgoing<'_>,
        token: &SecretString,
    ) -> Result<Answer, GitHubError> {
        let timeout = match out.effect {
            Effect::Reads => READ_TIMEOUT,
            Effect::Repeatable | Effect::Once => CHANGE_TIMEOUT,
        };
        let mut request = self
            .client
            .request(out.method.clone(), out.url.clone())
            .timeout(timeout)
            .header(header::AUTHORIZATION, bearer(token));
        if let Some(etag) = out.etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        if let Some(body) = out.body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_vec());
        }
        let response = request.send().await.map_err(|error| lost(out, error))?;
        let mut answer = Answer::from_headers(response.status().as_u16(), response.headers());
        answer.body = read(response, out).await?;
        Ok(answer)
    }
}

/// The `Authorization` header, marked so that no debug output shows it.
fn bearer(token: &SecretString) -> HeaderValue {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
        // A token with control characters cannot be sent; GitHub will say that it is wrong.
        .unwrap_or(HeaderValue::from_static("Bearer invalid"));
    value.set_sensitive(true);
    value
}

async fn read(mut response: reqwest::Response, out: &Outgoing<'_>) -> Result<Vec<u8>, GitHubError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| lost(out, error))? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(GitHubError::BadAnswer {
                request: out.name(),
                cause: format!("it is longer than {} MiB", BODY_MAX >> 20),
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an exchange without an answer means.
fn lost(out: &Outgoing<'_>, error: reqwest::Error) -> GitHubError {
    // Without a connection nothing went out.
    let unsent = error.is_connect() || error.is_builder();
    let what = if error.is_timeout() { "no answer in time" } else { "the connection failed" };
    let (request, cause) = (out.name(), format!("{what} ({})", chain(error)));
    if unsent || out.effect != Effect::Once {
        GitHubError::Transient { request, cause }
    } else {
        GitHubError::LostResponse { request, cause }
    }
}

impl Outgoing<'_> {
    /// Method and path, for messages.
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.url.path())
    }
}

/// An error with its causes; without the address, which every message already has.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    foreign(&text)
}

impl Answer {
    pub(crate) fn from_headers(status: u16, headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let date = text("date").and_then(clock::http_date);
        // Measured by GitHub's own clock where it shows it.
        let github_now = date.unwrap_or_else(clock::now);
        let number = |name: &str| text(name).and_then(|value| value.trim().parse::<u64>().ok());
        let rate = RateHeaders {
            retry_after: text("retry-after").and_then(|value| retry_after(value, github_now)),
            resource: text("x-ratelimit-resource").map(foreign),
            limit: number("x-ratelimit-limit"),
            remaining: number("x-ratelimit-remaining"),
            reset_in: number("x-ratelimit-reset")
                .map(|at_s| Timestamp(at_s.saturating_mul(1000)).since(github_now)),
        };
        Self {
            status,
            body: Vec::new(),
            etag: text("etag").map(str::to_owned),
            next: text("link").and_then(link::next).map(str::to_owned),
            location: text("location").map(str::to_owned),
            accepted_permissions: text("x-accepted-github-permissions").map(foreign),
            rate,
            date,
        }
    }
}

/// Seconds or a point in time (RFC 9110, section 10.2.3).
fn retry_after(text: &str, github_now: Timestamp) -> Option<Duration> {
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => clock::http_date(text).map(|at| at.since(github_now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn limits_are_measured_by_githubs_clock() {
        let answer = Answer::from_headers(
            403,
            &headers(&[
                ("date", "Wed, 21 Oct 2015 07:28:00 GMT"),
                ("x-ratelimit-reset", "1445412600"),
                ("x-ratelimit-remaining", "0"),
                ("retry-after", "Wed, 21 Oct 2015 07:29:00 GMT"),
            ]),
        );
        assert_eq!(answer.rate.reset_in, Some(Duration::from_secs(120)));
        assert_eq!(answer.rate.retry_after, Some(Duration::from_secs(60)));
        assert_eq!(answer.rate.remaining, Some(0));
        assert_eq!(retry_after("17", Timestamp(0)), Some(Duration::from_secs(17)));
        assert_eq!(retry_after("soon", Timestamp(0)), None);
    }

    #[test]
    fn githubs_words_are_found_in_every_form() {
        let message = |body: &str| {
            let mut answer = Answer::from_headers(422, &HeaderMap::new());
            answer.body = body.as_bytes().to_vec();
            answer.message()
        };
        assert_eq!(message(r#"{"message":"Not Found"}"#), "Not Found");
        assert_eq!(
            message(
                r#"{"message":"Validation Failed","errors":[{"field":"name","code":"bad"},"x"]}"#
            ),
            "Validation Failed: name: bad: x"
        );
        assert_eq!(message(r#"{"message":"a\nb","errors":"c"}"#), "a b: c");
        assert_eq!(message("<html>"), "no explanation");
        assert!(message(&format!(r#"{{"message":"{}"}}"#, "x".repeat(9999))).len() < 400);
    }

    #[test]
    fn a_token_is_never_shown() {
        assert_eq!(format!("{:?}", bearer(&"ghs_secret".into())), "Sensitive");
    }
}
