//! The command line.

use std::process::ExitCode;

/// Parses the arguments of the process, runs the command, tells the exit code.
pub fn main() -> ExitCode {
    todo!()
}
