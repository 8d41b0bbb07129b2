//! Runners' side of the house: JIT configs, the stand-in runner's file and its protocol, and runners
//! that a test plays itself.

mod jit;
mod script;
mod session;
mod stand_in;
mod stream;
mod tarball;

pub use stand_in::VirtualRunner;
pub use tarball::{RUNNER_VERSION, Tarball, runner_tarball, tarball_name};

pub(crate) use jit::{jit_config, secret_of};
pub(crate) use session::Session;
pub(crate) use tarball::{ARCHITECTURES, run_sh};
