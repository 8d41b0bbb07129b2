//! The modules of the command line that face a guest's bytes. It is a program without a library, so they
//! are compiled in here.

#![expect(unreachable_pub, reason = "the command line uses all of them")]
#![cfg_attr(not(test), expect(dead_code, reason = "the command line uses all of them"))]

#[path = "../../forrest/src/terminal/guard.rs"]
pub mod guard;
#[path = "../../forrest/src/terminal/neutral.rs"]
pub mod neutral;
#[path = "../../forrest/src/terminal/sequences.rs"]
mod sequences;
