//! For the tests of this crate only: what the `forrest` binary does for its hidden verb `shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(verb) if verb == forrest_vm::shim::VERB => forrest_vm::shim::main(args),
        _ => ExitCode::from(64),
    }
}
