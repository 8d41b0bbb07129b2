//! Questions before something is lost.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Asks a yes-or-no question on the terminal. `what` is the act, as an infinitive.
///
/// # Errors
/// [`Failure`] where the answer is not yes, or where nobody can be asked.
pub fn confirm(what: &str, question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "refused to {what}: standard input is no terminal to ask on; say --yes if you mean it"
        )));
    }
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{question} [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    // What cannot be read is no yes.
    let _ = io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed(format!("did not {what}: the answer was not yes"))),
    }
}
