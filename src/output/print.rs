//! Messages of a program: results on standard output, everything else on the error output.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::error::{Error, Result};

/// Prints a text and a line break on standard output. A closed pipe (`| head`) is not an error.
///
/// Errors: `Value` if standard output cannot be written, for example on a full disk.
pub fn print(program: &str, text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    // One call with the whole text: formatting straight into the stream would write it in pieces.
    match out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::value(program, format!("standard output: {e}: send it elsewhere")))
        }
        _ => Ok(()),
    }
}

/// Writes a line to the error output. A failure is ignored: a program does not end because nobody listens.
pub fn tell(line: impl Display) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Returns the exit code of a program. An error is told in one line and gives exit code 1.
pub fn ended(done: Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|e| {
        tell(format_args!("error: {e}"));
        ExitCode::FAILURE
    })
}
