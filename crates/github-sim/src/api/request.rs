//! Requests as the API's handlers see them, and what is kept of them for tests.

use bytes::Bytes;
use hyper::{HeaderMap, Method};
use serde::Serialize;
use serde_json::Value;

use crate::model::Moment;

/// How many requests the log keeps.
pub const MAX_RECORDED: usize = 5_000;
/// How much of a body the log keeps, in bytes.
pub const MAX_RECORDED_BODY: usize = 64 << 10;

/// The prefix of the API on Enterprise Server.
const ENTERPRISE_PREFIX: &str = "/api/v3";

/// A request, its body read.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// The path behind the prefix, decoded.
    pub(crate) path: String,
    /// `/api/v3` or nothing.
    pub(crate) prefix: &'static str,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn new(method: Method, uri: &hyper::Uri, headers: HeaderMap, body: Bytes) -> Self {
        let path = percent_decode(uri.path());
        let (prefix, path) = match path.strip_prefix(ENTERPRISE_PREFIX) {
            Some(rest) if rest.starts_with('/') => (ENTERPRISE_PREFIX, rest.to_owned()),
            Some(_) | None => ("", path),
        };
        let query = uri.query().unwrap_or_default();
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let decode = |text: &str| percent_decode(&text.replace('+', " "));
                (decode(name), decode(value))
            })
            .collect();
        Self { method, path, prefix, query, headers, body }
    }

    #[cfg(test)]
    pub(crate) fn for_test(method: &str, uri: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("host", hyper::header::HeaderValue::from_static("sim"));
        let method = method.parse().expect("a method");
        Self::new(method, &uri.parse().expect("an address"), headers, Bytes::new())
    }

    /// The first value of a query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// A header, where it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as a JSON object; an empty body is an empty object.
    pub(crate) fn object(&self) -> Option<serde_json::Map<String, Value>> {
        if self.body.is_empty() {
            return Some(serde_json::Map::new());
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(object)) => Some(object),
            Ok(_) | Err(_) => None,
        }
    }

    /// The address that was asked for, with these query parameters in place of what they were.
    pub(crate) fn address_with(&self, changes: &[(&str, &str)]) -> String {
        let host = self.header("host").unwrap_or("localhost");
        let mut address = format!("http://{host}{}{}", self.prefix, self.path);
        let kept = self
            .query
            .iter()
            .filter(|(name, _)| !changes.iter().any(|(change, _)| change == name))
            .map(|(name, value)| (name.as_str(), value.as_str()));
        for (i, (name, value)) in kept.chain(changes.iter().copied()).enumerate() {
            address.push(if i == 0 { '?' } else { '&' });
            address.push_str(&percent_encode(name));
            address.push('=');
            address.push_str(&percent_encode(value));
        }
        address
    }

    /// What is kept of it.
    pub(crate) fn record(&self, at: Moment, operation: Option<&'static str>) -> Recorded {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                let text = if name == "authorization" { redacted(&text) } else { text };
                (name.as_str().to_owned(), text)
            })
            .collect();
        let kept = &self.body[..self.body.len().min(MAX_RECORDED_BODY)];
        Recorded {
            at,
            method: self.method.as_str().to_owned(),
            path: self.path.clone(),
            query: self.query.clone(),
            headers,
            body: String::from_utf8_lossy(kept).into_owned(),
            operation,
            status: None,
            response: None,
        }
    }
}

/// A request that the simulator received.
#[derive(Debug, Clone, Serialize)]
pub struct Recorded {
    /// When it had arrived.
    pub at: Moment,
    /// The method.
    pub method: String,
    /// The path, decoded, without `/api/v3`.
    pub path: String,
    /// The query parameters, decoded.
    pub query: Vec<(String, String)>,
    /// The headers, names in lower case; of `authorization` only its scheme and kind.
    pub headers: Vec<(String, String)>,
    /// The body, up to [`MAX_RECORDED_BODY`].
    pub body: String,
    /// GitHub's operation id, where the simulator knows the path.
    pub operation: Option<&'static str>,
    /// The status that was answered; `None`: no answer was sent.
    pub status: Option<u16>,
    /// The answer's body, where [`Settings::record_responses`](crate::model::Settings) asks for it.
    pub response: Option<String>,
}

impl Recorded {
    /// The first value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }
}

fn redacted(authorization: &str) -> String {
    let (scheme, token) = authorization.split_once(' ').unwrap_or(("", authorization));
    let kind = if token.split('.').count() == 3 {
        "<app token>"
    } else if token.starts_with("ghs_") {
        "<installation token>"
    } else {
        "<something else>"
    };
    format!("{scheme} {kind}")
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let decoded = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Encodes everything but RFC 3986's unreserved characters.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_kept_for_links() {
        let request = Request::for_test("GET", "/api/v3/a%20b?created=%3E%3D2026&x=1");
        assert_eq!(request.path, "/a b");
        assert_eq!(request.query("created"), Some(">=2026"));
        assert_eq!(
            request.address_with(&[("x", "2")]),
            "http://sim/api/v3/a b?created=%3E%3D2026&x=2"
        );
        assert_eq!(Request::for_test("GET", "/api/v33").path, "/api/v33");
    }

    #[test]
    fn no_secret_is_recorded() {
        assert_eq!(redacted("Bearer ghs_abc"), "Bearer <installation token>");
        assert_eq!(redacted("Bearer a.b.c"), "Bearer <app token>");
        assert_eq!(redacted("hunter2"), " <something else>");
    }
}
