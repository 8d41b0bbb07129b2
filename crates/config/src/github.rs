//! `github`: how to reach GitHub.

use std::time::Duration;

use crate::decode::{Decoder, Slot};
use crate::defaults;
use crate::diagnostic::Code;
use crate::path::{Bases, ConfigPath};
use crate::problem::Problem;
use crate::read;
use crate::secret::Secret;
use crate::tables::GITHUB;

/// How to reach GitHub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitHub {
    /// The App's id (digits) or client id.
    pub app_id: String,
    /// The App's private key.
    pub jwt_key_file: ConfigPath,
    /// What webhooks are signed with.
    pub webhook_secret: Secret,
    /// How often GitHub is asked for jobs whose webhook never came.
    pub polling_interval: Duration,
    /// The API's URL without a slash at its end; paths are appended to it.
    pub api_url: String,
}

/// Reads the section.
pub(crate) fn decode(d: &mut Decoder<'_>, slot: &Slot, bases: &Bases) -> Option<GitHub> {
    let r = d.object(slot, &GITHUB)?;
    let app_id = r.required("app_id", |s| app_id(d, s));
    let jwt_key_file = r.required("jwt_key_file", |s| read::path(d, s, bases));
    let webhook_secret = read::secret(d, &r, "webhook_secret", bases);
    let polling_interval = r.optional("polling_interval", |s| d.duration(s));
    let api_url = r.optional("api_url", |s| api_url(d, s));
    if webhook_secret.as_ref().is_some_and(Option::is_none) {
        let message = "the section github lacks \"webhook_secret\"";
        let help = "add webhook_secret: <text>, or webhook_secret_file: <path>; it is the secret \
                    that was given to the GitHub App";
        d.report(slot, Problem::error(Code::MissingField, slot.key, message).help(help));
    }
    Some(GitHub {
        app_id: app_id?,
        jwt_key_file: jwt_key_file?,
        webhook_secret: webhook_secret??,
        polling_interval: polling_interval?.unwrap_or(defaults::POLLING_INTERVAL),
        api_url: api_url?.unwrap_or_else(|| defaults::API_URL.to_owned()),
    })
}

fn app_id(d: &mut Decoder<'_>, slot: &Slot) -> Option<String> {
    let text = d.text(slot)?;
    // Client ids look like "Iv23liABCDEF".
    let sound = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if !sound {
        let message = format!("{} is not an App's id", d.quote(slot));
        d.bad(slot, message, "write the number under \"App ID\" on the App's settings page");
        return None;
    }
    Some(text)
}

fn api_url(d: &mut Decoder<'_>, slot: &Slot) -> Option<String> {
    let text = d.text(slot)?;
    let url = text.trim_end_matches('/');
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let visible = url.chars().all(|c| c.is_ascii_graphic());
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default()).unwrap_or_default();
    if host.is_empty() || !visible || !is_host(host) || url.contains(['?', '#']) {
        let message = format!("{} is not the URL of an API", d.quote(slot));
        let help = "write https://HOST/api/v3 for GitHub Enterprise Server, without a user name, \
                    query or fragment";
        d.bad(slot, message, help);
        return None;
    }
    if url.starts_with("http://") && !is_loopback(host) {
        // The client refuses it as well, when the daemon starts.
        let message = "tokens would travel unencrypted to this URL".to_owned();
        d.bad(slot, message, "write https://");
        return None;
    }
    Some(url.to_owned())
}

/// A host name or address with an optional port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(inside) => match inside.split_once(']') {
            Some((v6, port)) if v6.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
            _ => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let named = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    named && port
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, p)| p.parse::<u16>().is_ok());
    let name = name.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{is_host, is_loopback};

    #[test]
    fn hosts_have_names_or_addresses_and_maybe_a_port() {
        for host in ["github.example", "127.0.0.1:8080", "[::1]:80", "[::1]", "a-b_c"] {
            assert!(is_host(host), "{host}");
        }
        for host in ["", ":80", "a:b", "a@b", "[x]:80", "[::1", "a:99999"] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for host in ["localhost", "localhost:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["github.example", "10.0.0.1", "[fd00::1]:80", "localhost.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
