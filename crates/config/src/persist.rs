//! `persist_from`: whose disks may become machine images.

use std::collections::BTreeSet;

use crate::decode::{Decoder, Slot};
use crate::diagnostic::Code;
use crate::problem::Problem;
use crate::suggest;

/// Which jobs may change a machine image, provided that they have the token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PersistFrom {
    events: Option<BTreeSet<String>>,
    forks: bool,
}

/// The word that lets in pull requests from forks. It is no event of GitHub's.
const FORKS: &str = "forks";

/// GitHub's events that start workflows.
const EVENTS: [&str; 37] = [
    "branch_protection_rule",
    "check_run",
    "check_suite",
    "create",
    "delete",
    "deployment",
    "deployment_status",
    "discussion",
    "discussion_comment",
    "dynamic",
    "fork",
    "gollum",
    "image_version",
    "issue_comment",
    "issues",
    "label",
    "merge_group",
    "milestone",
    "page_build",
    "project",
    "project_card",
    "project_column",
    "public",
    "pull_request",
    "pull_request_review",
    "pull_request_review_comment",
    "pull_request_target",
    "push",
    "registry_package",
    "release",
    "repository_dispatch",
    "schedule",
    "status",
    "watch",
    "workflow_call",
    "workflow_dispatch",
    "workflow_run",
];

impl PersistFrom {
    /// Whether a job may change the machine image.
    ///
    /// `event` is what started its workflow; `from_fork` says whether that was a pull request whose
    /// branch is in another repository.
    pub fn allows(&self, event: &str, from_fork: bool) -> bool {
        let listed = self.events.as_ref().is_none_or(|events| events.contains(event));
        listed && (self.forks || !from_fork)
    }
}

/// Reads the list.
pub(crate) fn decode(d: &mut Decoder<'_>, slot: &Slot) -> Option<PersistFrom> {
    let mut events = BTreeSet::new();
    let mut forks = false;
    let mut sound = true;
    for item in d.list(slot)? {
        let Some(text) = d.text(&item) else {
            sound = false;
            continue;
        };
        if text == FORKS {
            forks = true;
        } else if EVENTS.contains(&text.as_str()) {
            events.insert(text);
        } else if let Some(near) = suggest::nearest(&text, EVENTS.iter().copied().chain([FORKS])) {
            let message = format!("GitHub has no event {}", d.quote(&item));
            d.bad(&item, message, format!("did you mean \"{near}\"?"));
            sound = false;
        } else if text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            // GitHub's list grows.
            let message = format!("{} is no event that Forrest knows", d.quote(&item));
            let problem = Problem::warning(Code::BadValue, item.at, message)
                .help("check the name: an event that GitHub does not have never matches");
            d.report(&item, problem);
            events.insert(text);
        } else {
            let message = format!("{} cannot be an event", d.quote(&item));
            d.bad(&item, message, "write names such as push, schedule, workflow_dispatch");
            sound = false;
        }
    }
    sound.then_some(PersistFrom { events: Some(events), forks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_must_be_let_in_by_name() {
        let usual = PersistFrom::default();
        assert!(usual.allows("push", false));
        assert!(usual.allows("pull_request", false));
        assert!(!usual.allows("pull_request", true));

        let events = Some(["push".to_owned(), "pull_request".to_owned()].into());
        let listed = PersistFrom { events, forks: false };
        assert!(listed.allows("push", false));
        assert!(!listed.allows("schedule", false));
        assert!(!listed.allows("pull_request", true));
        assert!(PersistFrom { forks: true, ..listed }.allows("pull_request", true));
    }

    #[test]
    fn nothing_listed_means_nobody() {
        let nobody = PersistFrom { events: Some(BTreeSet::new()), forks: false };
        assert!(!nobody.allows("push", false));
    }
}
