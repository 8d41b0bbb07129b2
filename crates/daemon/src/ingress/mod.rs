//! How webhooks come in: verified, put into the driver's inbox, answered. Nothing else happens on the
//! way, so that GitHub gets its answer at once.
//!
//! Everybody on the network may talk to this, so every resource that a client can hold is bounded:
//! connections, bytes of bodies in memory, and time.

mod crowd;
mod listen;
mod webhook;

pub(crate) use listen::{Listener, Strangers, serve};
pub(crate) use webhook::{Webhooks, router};
