//! Names of repositories, machine types and runners.
//!
//! All of them become parts of file names, so the constructors accept nothing that could leave its
//! directory.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// One part has a character that is not allowed, is empty, too long, or nothing but dots.
    #[error(
        "{0:?} is not a usable name: use 1 to 100 letters, digits, '-', '_' or '.', and not only dots"
    )]
    Part(String),
    /// A machine type has three parts.
    #[error("{0:?} does not name a machine type: write owner/repository/machine")]
    MachineType(String),
    /// A repository has two parts.
    #[error("{0:?} does not name a repository: write owner/repository")]
    Repository(String),
    /// A runner's name has a fixed form.
    #[error("{0:?} is not a name that Forrest gave to a runner")]
    Runner(String),
}

fn part(text: &str) -> Result<&str, NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    // GitHub lets a repository start with a dot (".github"); as directory names those are harmless,
    // but "." and ".." are not.
    let sound = (1..=100).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.bytes().all(|b| b == b'.');
    if sound { Ok(text) } else { Err(NameError::Part(text.to_owned())) }
}

/// Text that is never changed. Names are copied and compared all the time: a copy costs no
/// allocation, and copies of one name are equal at first sight.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Text(Arc<str>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A repository, `owner/name`, as GitHub spells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository {
    /// Both parts, with a slash between them: one comparison instead of two.
    text: Text,
    owner_len: usize,
}

impl Repository {
    /// Checks both parts.
    ///
    /// # Errors
    /// [`NameError::Part`] for the first part that cannot be used in a file name.
    pub fn new(owner: &str, name: &str) -> Result<Self, NameError> {
        let text = format!("{}/{}", part(owner)?, part(name)?);
        Ok(Self { text: Text(text.into()), owner_len: owner.len() })
    }

    /// Whether both names are of one repository: GitHub does not tell upper from lower case.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.text.0.eq_ignore_ascii_case(&other.text.0)
    }

    /// The account that owns the repository.
    pub fn owner(&self) -> &str {
        &self.text.0[..self.owner_len]
    }

    /// The repository's name without its owner.
    pub fn name(&self) -> &str {
        &self.text.0[self.owner_len + 1..]
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((owner, name)) => Self::new(owner, name),
            None => Err(NameError::Repository(text.to_owned())),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// A machine type, `owner/repository/machine`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineTypeName {
    /// All three parts, with slashes between them.
    text: Text,
    repository: Repository,
}

impl MachineTypeName {
    /// Checks the machine's own name; jobs ask for it in `runs-on`.
    ///
    /// # Errors
    /// [`NameError::Part`] where it cannot be used in a file name.
    pub fn new(repository: Repository, machine: &str) -> Result<Self, NameError> {
        let text = format!("{repository}/{}", part(machine)?);
        Ok(Self { text: Text(text.into()), repository })
    }

    /// The repository whose jobs run on it.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The last part: the label that jobs ask for.
    pub fn machine(&self) -> &str {
        &self.text.0[self.repository.text.0.len() + 1..]
    }
}

impl FromStr for MachineTypeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(owner), Some(name), Some(machine), None) => {
                Self::new(Repository::new(owner, name)?, machine)
            }
            _ => Err(NameError::MachineType(text.to_owned())),
        }
    }
}

impl fmt::Display for MachineTypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

/// The name of a runner and of the one run that it serves: `forrest-<machine>-<16 alphanumerics>`.
///
/// It identifies a run everywhere: in the core, on disk, on GitHub and on the command line. Names are
/// ordered by their random part, which tells any two of them apart at first sight.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunnerName {
    /// The first half of the random part.
    key: u64,
    text: Text,
}

impl RunnerName {
    const PREFIX: &str = "forrest-";
    const RANDOM_LEN: usize = 16;

    /// Builds a name from 16 random bytes, each reduced to one of 36 lower-case alphanumerics.
    pub fn from_random(machine: &MachineTypeName, random: [u8; Self::RANDOM_LEN]) -> Self {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let suffix: String =
            random.iter().map(|b| ALPHABET[usize::from(*b) % ALPHABET.len()] as char).collect();
        Self::of(format!("{}{}-{suffix}", Self::PREFIX, machine.machine()).into())
    }

    /// The text has to end in a random part.
    fn of(text: Arc<str>) -> Self {
        let random = &text.as_bytes()[text.len() - Self::RANDOM_LEN..];
        let mut half = [0; 8];
        half.copy_from_slice(&random[..8]);
        Self { key: u64::from_be_bytes(half), text: Text(text) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.text.0
    }

    /// The machine's own name inside the runner's name.
    pub fn machine(&self) -> &str {
        let text = self.as_str();
        &text[Self::PREFIX.len()..text.len() - Self::RANDOM_LEN - 1]
    }
}

impl FromStr for RunnerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sound = text
            .strip_prefix(Self::PREFIX)
            .and_then(|rest| rest.rsplit_once('-'))
            .is_some_and(|(machine, random)| {
                part(machine).is_ok()
                    && random.len() == Self::RANDOM_LEN
                    && random.bytes().all(|b| b.is_ascii_alphanumeric())
            });
        if sound { Ok(Self::of(text.into())) } else { Err(NameError::Runner(text.to_owned())) }
    }
}

impl fmt::Debug for RunnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RunnerName").field(&self.text).finish()
    }
}

impl fmt::Display for RunnerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

macro_rules! through_text {
    ($name:ty) => {
        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }
    };
}

through_text!(Repository);
through_text!(MachineTypeName);
through_text!(RunnerName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        for text in ["", ".", "..", "a/b", "a b", "a\0", "ü", &"x".repeat(101)] {
            assert!(part(text).is_err(), "{text:?} was taken for a name");
            assert!(Repository::new("o", text).is_err() && Repository::new(text, "r").is_err());
        }
        assert!(part(".github").is_ok());
    }

    #[test]
    fn names_are_taken_apart_as_they_were_put_together() {
        let machine: MachineTypeName = "o-1/r.x/build".parse().expect("a sound name");
        assert_eq!(machine.to_string(), "o-1/r.x/build");
        assert_eq!(machine.machine(), "build");
        let repository = machine.repository();
        assert_eq!((repository.owner(), repository.name()), ("o-1", "r.x"));
        assert_eq!(Repository::new("o-1", "r.x").as_ref(), Ok(repository));
        assert!("o/r".parse::<MachineTypeName>().is_err());
        assert!("o/r/m/x".parse::<MachineTypeName>().is_err());
        assert!("o/r/m".parse::<Repository>().is_err());
    }

    #[test]
    fn machine_types_of_a_repository_stand_together() {
        let mut names: Vec<MachineTypeName> = ["a/b/x", "a/b-c/x", "a/b/y", "a/bc/x", "a/b.c/x"]
            .map(|name| name.parse().expect("a sound name"))
            .into();
        names.sort();
        names.dedup_by_key(|name| name.repository().clone());
        assert_eq!(names.len(), 4);
    }

    #[test]
    fn runner_names_read_back() {
        let machine: MachineTypeName = "o/r/build-big".parse().expect("a sound name");
        let name = RunnerName::from_random(&machine, [7; 16]);
        assert_eq!(name.to_string(), "forrest-build-big-hhhhhhhhhhhhhhhh");
        assert_eq!(name.machine(), "build-big");
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!("forrest-x-short".parse::<RunnerName>().is_err());
        assert!("other-build-aaaaaaaaaaaaaaaa".parse::<RunnerName>().is_err());
    }
}
