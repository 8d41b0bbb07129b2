//! Apps, accounts, installations and their tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::ids::{AccountId, AppId, InstallationId, RepositoryId};
use super::time::Moment;
use crate::error::SimError;
use crate::key::AppKey;

/// What an App, an installation or a token may do: permission to `read` or `write`.
pub type Permissions = BTreeMap<String, String>;

/// The permissions that Forrest's documentation asks for.
pub fn default_permissions() -> Permissions {
    [("administration", "write"), ("actions", "read"), ("metadata", "read")]
        .map(|(name, access)| (name.to_owned(), access.to_owned()))
        .into()
}

/// Whether `held` grants `access` (`read` or `write`) to `permission`; `write` includes `read`.
pub(crate) fn grants(held: &Permissions, permission: &str, access: &str) -> bool {
    held.get(permission).is_some_and(|have| have == access || have == "write")
}

/// Where webhooks are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookTarget {
    /// `http://HOST:PORT/PATH`.
    Tcp {
        /// `HOST:PORT`.
        authority: String,
        /// The path, with its slash.
        path: String,
    },
    /// A unix socket, as a reverse proxy would reach it.
    Unix {
        /// The socket.
        socket: PathBuf,
        /// The path of the request.
        path: String,
    },
}

impl std::str::FromStr for HookTarget {
    type Err = SimError;

    /// Reads `http://HOST[:PORT][/PATH]` and `unix:SOCKET[:/PATH]`.
    fn from_str(text: &str) -> Result<Self, SimError> {
        let wrong = || SimError::WebhookAddress(text.to_owned());
        if let Some(rest) = text.strip_prefix("unix:") {
            let (socket, path) = match rest.split_once(":/") {
                Some((socket, path)) => (socket, format!("/{path}")),
                None => (rest, "/webhook".to_owned()),
            };
            if socket.is_empty() {
                return Err(wrong());
            }
            return Ok(Self::Unix { socket: socket.into(), path });
        }
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, "/".to_owned()),
        };
        if authority.is_empty() {
            return Err(wrong());
        }
        let authority = match authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
            _ => format!("{authority}:80"),
        };
        Ok(Self::Tcp { authority, path })
    }
}

impl std::fmt::Display for HookTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { authority, path } => write!(f, "http://{authority}{path}"),
            Self::Unix { socket, path } => write!(f, "unix:{}:{path}", socket.display()),
        }
    }
}

/// How a webhook's body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HookContent {
    /// `application/json`.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`, with the JSON in `payload`.
    Form,
}

/// An App's webhook.
#[derive(Debug, Clone)]
pub struct Hook {
    /// Where events are sent.
    pub target: HookTarget,
    /// The secret that signs them; without one they are not signed.
    pub secret: Option<String>,
    /// How the body is packed.
    pub content: HookContent,
}

/// A GitHub App.
#[derive(Debug)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Its client id, which may stand for the id in a token.
    pub client_id: String,
    /// Its name in addresses.
    pub slug: String,
    /// Its key pair.
    pub key: AppKey,
    /// Its webhook, if it has one.
    pub hook: Option<Hook>,
    /// What it may do.
    pub permissions: Permissions,
    /// When it was registered.
    pub created_at: Moment,
}

/// Whether an account is a person or an organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountKind {
    /// A person.
    User,
    /// An organisation.
    Organization,
}

/// A user or an organisation.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// Its name.
    pub login: String,
    /// What it is.
    pub kind: AccountKind,
}

/// Which repositories of the account an installation covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of them, later ones too.
    All,
    /// These.
    Selected(BTreeSet<RepositoryId>),
}

impl Selection {
    /// Whether the repository is covered.
    pub fn covers(&self, repository: RepositoryId) -> bool {
        match self {
            Self::All => true,
            Self::Selected(chosen) => chosen.contains(&repository),
        }
    }
}

/// An App's installation on an account.
#[derive(Debug, Clone)]
pub struct Installation {
    /// Its id.
    pub id: InstallationId,
    /// Whose.
    pub app: AppId,
    /// The account, by its name in lower case.
    pub account: String,
    /// Which repositories.
    pub selection: Selection,
    /// When it was suspended, if it is.
    pub suspended_at: Option<Moment>,
    /// When the App was installed.
    pub created_at: Moment,
}

/// An installation's access token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Whose.
    pub installation: InstallationId,
    /// Which repositories.
    pub selection: Selection,
    /// What it may do.
    pub permissions: Permissions,
    /// From when it is accepted: replication takes a moment.
    pub valid_from: Moment,
    /// Until when it is accepted.
    pub expires_at: Moment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_addresses_read_back() {
        for text in ["http://127.0.0.1:8080/webhook", "unix:/run/forrest.sock:/hooks/x"] {
            let target: HookTarget = text.parse().expect("a sound address");
            assert_eq!(target.to_string(), text);
        }
        assert_eq!(
            "http://localhost".parse::<HookTarget>().expect("sound").to_string(),
            "http://localhost:80/"
        );
        assert_eq!(
            "unix:/x.sock".parse::<HookTarget>().expect("sound").to_string(),
            "unix:/x.sock:/webhook"
        );
        for text in ["", "https://x/", "unix:", "http:///x"] {
            assert!(text.parse::<HookTarget>().is_err(), "{text:?} was taken for an address");
        }
    }
}
