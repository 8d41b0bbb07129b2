//! The binary: the command line of Forrest, one file per verb in [`verbs`].
//!
//! What must not live here: anything that another program could want. The daemon is the crate
//! `forrest-daemon`; this one asks, shows and explains.

mod cli;
mod failure;
mod find;
mod logging;
mod terminal;
mod verbs;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    // The supervisor of a virtual machine lives as long as that and has to stay small: nothing else
    // comes before it.
    if args.next_if(|verb| verb == forrest_daemon::SHIM_VERB).is_some() {
        return forrest_daemon::shim_main(args);
    }
    verbs::main()
}
