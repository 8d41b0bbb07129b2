//! What the App has to be allowed, and what to say when it is not.

use std::collections::BTreeMap;

use forrest_core::model::Repository;

/// The repository permissions that Forrest needs, by GitHub's names, with the least sufficient level.
pub const REQUIRED_PERMISSIONS: [(&str, &str); 3] =
    [("actions", "read"), ("administration", "write"), ("metadata", "read")];

/// The events that the App has to be subscribed to, for webhooks.
pub const REQUIRED_EVENTS: [&str; 1] = ["workflow_job"];

/// Permission names with their levels (`read`, `write`, `admin`), as GitHub reports them.
pub type Permissions = BTreeMap<String, String>;

pub(crate) fn from_wire(wire: BTreeMap<String, Option<String>>) -> Permissions {
    wire.into_iter().filter_map(|(name, level)| Some((name, level?))).collect()
}

fn rank(level: &str) -> u8 {
    match level {
        "read" => 1,
        "write" => 2,
        "admin" => 3,
        _ => 0,
    }
}

fn granted(permissions: &Permissions, name: &str, level: &str) -> bool {
    permissions.get(name).is_some_and(|has| rank(has) >= rank(level))
}

/// Which of [`REQUIRED_PERMISSIONS`] are missing, each as `name: level`.
pub(crate) fn missing(permissions: &Permissions) -> Vec<String> {
    REQUIRED_PERMISSIONS
        .iter()
        .filter(|(name, level)| !granted(permissions, name, level))
        .map(|(name, level)| format!("{name}: {level}"))
        .collect()
}

/// What a token should be allowed: what Forrest needs, as far as the installation has it. GitHub
/// refuses a wish for more, and a token for less still does part of the work.
pub(crate) fn to_ask_for(has: Option<&Permissions>) -> BTreeMap<&'static str, &'static str> {
    REQUIRED_PERMISSIONS
        .into_iter()
        .filter(|(name, level)| {
            // `metadata: read` comes with every installation.
            *name == "metadata" || has.is_none_or(|has| granted(has, name, level))
        })
        .collect()
}

/// What to do about a request that was refused or found nothing.
///
/// `accepted`: GitHub's `X-Accepted-GitHub-Permissions` (`administration=write`).
pub(crate) fn hint(
    repository: Option<&Repository>,
    missing: &[String],
    accepted: Option<&str>,
) -> String {
    let place = match repository {
        Some(repository) => format!(" for {repository}"),
        None => String::new(),
    };
    let wanted = match (missing, accepted) {
        ([], None) => {
            return format!(
                "check that the repository exists and the App is installed{place}, with the \
                 permissions administration: write and actions: read"
            );
        }
        ([], Some(accepted)) => accepted.replace('=', ": "),
        (missing, _) => missing.join(", "),
    };
    format!(
        "give the App the repository permission {wanted} in its settings under \"Permissions & \
         events\" and accept the change in the installation{place}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(pairs: &[(&str, &str)]) -> Permissions {
        pairs.iter().map(|(name, level)| ((*name).to_owned(), (*level).to_owned())).collect()
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(&has(&[])).len(), 3);
        let some = has(&[("metadata", "read"), ("administration", "read"), ("actions", "write")]);
        assert_eq!(missing(&some), ["administration: write"]);
        let hint = hint(Some(&"o/r".parse().expect("a name")), &missing(&some), None);
        assert!(hint.contains("administration: write") && hint.contains("o/r"), "{hint}");
    }

    #[test]
    fn githubs_own_words_on_permissions_are_used() {
        assert!(hint(None, &[], Some("administration=write")).contains("administration: write"));
    }

    #[test]
    fn a_token_never_asks_for_more_than_there_is() {
        let all: Vec<_> = to_ask_for(None).into_iter().collect();
        assert_eq!(all, REQUIRED_PERMISSIONS);
        let some = has(&[("administration", "read"), ("actions", "admin")]);
        let asked: Vec<_> = to_ask_for(Some(&some)).into_iter().collect();
        assert_eq!(asked, [("actions", "read"), ("metadata", "read")]);
    }
}
