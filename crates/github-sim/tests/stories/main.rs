//! The simulator over real HTTP. Every answer and every webhook is checked against GitHub's own
//! descriptions, where those are at hand.

mod apps;
mod assignment;
mod client;
mod faults;
mod hooks;
mod limits;
mod program;
mod receiver;
mod runners;
mod runs;
mod stand_in;
