//! Repositories.

use super::ids::RepositoryId;
use super::time::Moment;

/// A repository.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Its id.
    pub id: RepositoryId,
    /// The account that owns it, as it spells itself.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Whether only its people see it.
    pub private: bool,
    /// Whether it is a stranger's copy of another repository.
    pub fork: bool,
    /// When it was made.
    pub created_at: Moment,
    /// How many workflow runs it had so far.
    pub run_count: u64,
}

impl Repository {
    /// `owner/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}
