//! What keeps a guest and its QEMU inside.
//!
//! Each QEMU runs as a user of its own, who has no name and no files. The kernel's packet filter knows
//! what that user's sockets may reach: user-mode networking makes every packet of the guest one of
//! QEMU's sockets, and root in the guest reaches neither that user nor the filter.
//!
//! - [`uids`]: the users, one for each live VM of the host.
//! - [`files`]: which files QEMU can open.
//! - [`calls`]: which system calls it can make.
//! - [`rules`]: the filter's rules, as text; pure.
//! - [`filter`]: putting the rules in place, keeping them there, taking them away.
//! - [`resolvers`]: the name servers, which guests may ask.
//! - [`privileges`]: what all this takes, and what of it is missing.
//!
//! What must not live here: QEMU's arguments and process (the `vm` crate), and which guest may reach
//! what (the configuration).

pub mod calls;
mod error;
mod events;
pub mod files;
pub mod filter;
pub mod privileges;
pub mod resolvers;
pub mod rules;
pub mod uids;

pub use error::ConfineError;
pub use filter::Filter;
pub use rules::{Destination, GuestRules};
pub use uids::Claim;
