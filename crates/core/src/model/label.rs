//! Runner labels: how jobs and machine types find each other.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One label, in lower case: GitHub compares labels without case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// The label as text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Label {
    fn from(text: String) -> Self {
        Self(text.to_lowercase())
    }
}

impl From<&str> for Label {
    fn from(text: &str) -> Self {
        Self(text.to_lowercase())
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of labels; order and case do not matter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeSet<Label>);

impl Labels {
    /// Whether every label of `self` is also in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether the label is in the set.
    pub fn contains(&self, label: &Label) -> bool {
        self.0.contains(label)
    }

    /// Whether there is no label (`runs-on: {group: …}` alone gives none).
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels in order.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }
}

impl<L: Into<Label>> FromIterator<L> for Labels {
    fn from_iter<I: IntoIterator<Item = L>>(labels: I) -> Self {
        Self(labels.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_compared_without_case_and_in_any_order() {
        let labels: Labels = ["Self-Hosted", "Forrest", "build"].into_iter().collect();
        let all: Vec<_> = labels.iter().map(Label::as_str).collect();
        assert_eq!(all, ["build", "forrest", "self-hosted"]);
        assert!(labels.contains(&"FORREST".into()) && !labels.contains(&"test".into()));
        let some: Labels = ["forrest", "BUILD"].into_iter().collect();
        assert!(some.is_subset(&labels) && !labels.is_subset(&some));
        assert!(!some.is_empty() && Labels::default().is_empty());
    }

    #[test]
    fn a_label_is_a_text_in_lower_case_to_people_and_to_programs() {
        let label = Label::from("X86-64");
        assert_eq!(label.to_string(), "x86-64");
        assert_eq!(String::from(label), "x86-64");
    }
}
