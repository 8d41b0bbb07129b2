//! The one error type of this crate.

use std::path::PathBuf;

use forrest_core::model::UidRange;

/// Why something could not be confined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfineError {
    /// The program `nft` is not there.
    #[error("the program nft is not in PATH: install the package nftables")]
    NoNft,
    /// `nft` could not be executed, or did not end.
    #[error("could not run nft: {0}")]
    Nft(String),
    /// `nft` or the kernel refused the rules.
    #[error("nft refused the egress filter: {0}")]
    Refused(String),
    /// The kernel does not tell of changes of its packet filter.
    #[error("could not watch the kernel's packet filter: {0}")]
    Watch(std::io::Error),
    /// Every user of the range is taken.
    #[error(
        "all users from {0} have a virtual machine already: give `host.vm_uids` a longer range"
    )]
    NoUidLeft(UidRange),
    /// The record of the users that are taken cannot be kept, or not be relied upon.
    #[error("who has which user cannot be kept on record in {}: {reason}", path.display())]
    UidDirectory {
        /// The directory: [`crate::uids::DIRECTORY`].
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A user could not be claimed.
    #[error("could not claim the user {uid}: {source}")]
    Claim {
        /// The user.
        uid: u32,
        /// The operating system's answer.
        source: std::io::Error,
    },
}
