//! Addresses: where a request goes, and which `Link` and `Location` headers may be followed.
//!
//! The one rule: a token leaves only for the origin that the configuration names.

use std::net::IpAddr;

use reqwest::Url;

use crate::GitHubError;

/// The address of GitHub's REST API, with whatever path it has (`/api/v3` on Enterprise Server).
#[derive(Debug, Clone)]
pub(crate) struct ApiBase {
    /// Without a slash at the end.
    text: String,
    url: Url,
}

impl ApiBase {
    /// Checks the configured address.
    ///
    /// # Errors
    /// [`GitHubError::Config`] for what is no URL, has a query, a fragment or credentials in it, or
    /// would send tokens unencrypted to another machine.
    pub(crate) fn new(text: &str) -> Result<Self, GitHubError> {
        let wrong = |why: &str| {
            GitHubError::Config(format!(
                "github.api_url {text:?} {why}; write https://api.github.com, or \
                 https://HOST/api/v3 for an Enterprise Server"
            ))
        };
        let trimmed = text.trim().trim_end_matches('/');
        let url = Url::parse(trimmed).map_err(|error| wrong(&format!("is no URL ({error})")))?;
        if !url.username().is_empty() || url.password().is_some() {
            // Not `wrong`: that would repeat the password.
            return Err(GitHubError::Config("github.api_url must not hold a password".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("has a query or a fragment"));
        }
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            "http" => return Err(wrong("would send tokens unencrypted to another machine")),
            _ => return Err(wrong("is neither https nor http")),
        }
        Ok(Self { text: trimmed.to_owned(), url })
    }

    /// The address of `path` (and query), appended to the base and never resolved against its root.
    ///
    /// # Errors
    /// [`GitHubError::BadAnswer`] where no URL comes of it.
    pub(crate) fn join(&self, path: &str) -> Result<Url, GitHubError> {
        Url::parse(&format!("{}{path}", self.text)).map_err(|error| GitHubError::BadAnswer {
            request: path.to_owned(),
            cause: format!("there is no such address ({error})"),
        })
    }

    /// Reads an address that GitHub sent, if it has the same origin.
    pub(crate) fn same_origin(&self, text: &str) -> Option<Url> {
        let url = self.url.join(text).ok()?;
        (url.origin() == self.url.origin() && url.username().is_empty() && url.password().is_none())
            .then_some(url)
    }

    /// Whether requests stay on this machine and unencrypted: then neither root certificates nor
    /// proxies are needed.
    pub(crate) fn is_plain_loopback(&self) -> bool {
        self.url.scheme() == "http"
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The target of `rel="next"` in a `Link` header (RFC 8288), verbatim.
pub(crate) fn next(header: &str) -> Option<&str> {
    let mut rest = header;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let (parameters, more) = split_parameters(after);
        if parameters.split(';').any(is_next) {
            return Some(target);
        }
        rest = more;
    }
}

fn is_next(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.trim().eq_ignore_ascii_case("rel")
            && value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"))
    })
}

/// Splits at the first comma outside quotes.
fn split_parameters(text: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> ApiBase {
        ApiBase::new(text).expect("a sound address")
    }

    #[test]
    fn paths_are_appended() {
        for text in ["https://ghe.example/api/v3", "https://ghe.example/api/v3/"] {
            let url = base(text).join("/repos/o/r?x=1").expect("a URL");
            assert_eq!(url.as_str(), "https://ghe.example/api/v3/repos/o/r?x=1");
        }
        let url = base("http://127.0.0.1:8080").join("/app").expect("a URL");
        assert_eq!(url.as_str(), "http://127.0.0.1:8080/app");
    }

    #[test]
    fn addresses_that_would_leak_are_refused() {
        for text in [
            "",
            "api.github.com",
            "ftp://api.github.com",
            "http://api.github.com",
            "http://10.0.0.1",
            "https://api.github.com?x=1",
            "https://api.github.com#x",
            "https://user:hunter2@api.github.com",
        ] {
            let error = ApiBase::new(text).expect_err(text).to_string();
            assert!(error.contains("github.api_url"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        for text in ["http://localhost:1", "http://[::1]:1", "http://127.3.2.1"] {
            base(text);
        }
    }

    #[test]
    fn only_the_own_origin_is_followed() {
        let base = base("https://ghe.example/api/v3");
        let next = base.same_origin("https://ghe.example/api/v3/x?page=2");
        assert_eq!(next.expect("same origin").as_str(), "https://ghe.example/api/v3/x?page=2");
        assert!(base.same_origin("/api/v3/y").is_some());
        for text in [
            "https://evil.example/api/v3/x",
            "http://ghe.example/api/v3/x",
            "https://ghe.example:8443/x",
            "//evil.example/x",
            "https://ghe.example@evil.example/x",
            "https://token@ghe.example/x",
            "https://",
        ] {
            assert_eq!(base.same_origin(text), None, "{text}");
        }
    }

    #[test]
    fn the_next_page_is_found() {
        let github = r#"<https://api.github.com/r?page=1>; rel="prev", <https://api.github.com/r?a=b,c&page=3>; rel="next", <https://api.github.com/r?page=9>; rel="last""#;
        assert_eq!(next(github), Some("https://api.github.com/r?a=b,c&page=3"));
        assert_eq!(next("<x>; rel=next"), Some("x"));
        assert_eq!(next(r#"<x>; title="a, <b>; rel=\"q"; rel="last next""#), Some("x"));
        for none in ["", "<x>", "<x", r#"<x>; rel="nextish""#, r#"<x>; rel="prev""#, ",,,<>;"] {
            assert_eq!(next(none), None, "{none}");
        }
    }
}
