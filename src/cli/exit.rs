//! How a command ends, for scripts: the exit codes and what leads to each.

use std::io;
use std::process::ExitCode;

use crate::config::ConfigErrors;
use crate::lifecycle::StopFailure;
use crate::storage::MigrationError;
use crate::store_error::StoreError;

/// The exit codes of every command; 69 and 78 are those of `sysexits.h`, 124 is that
/// of `timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unavailable = 69,
    Config = 78,
    Overran = 124,
    Interrupted = 130,
}

impl Exit {
    const MEANINGS: [(Self, &str); 7] = [
        (Self::Done, "done; after a signal: stopped in order"),
        (Self::Failed, "failed, or the answer is no (pending migrations, a missing key, refused lines)"),
        (Self::Usage, "wrong usage of the command line"),
        (Self::Unavailable, "a dependency is not available: database, Redis, Kafka or the service"),
        (Self::Config, "the configuration is wrong; every fault was printed"),
        (Self::Overran, "stopped after the drain time, what was still under way was dropped"),
        (Self::Interrupted, "stopped at once by a second signal"),
    ];

    /// For `--help`.
    pub fn help() -> String {
        let mut text = String::from("Exit codes:");
        for (exit, meaning) in Self::MEANINGS {
            text.push_str(&format!("\n  {:>3}  {meaning}", exit as u8));
        }
        text
    }

    /// What an error of a command means to a script.
    pub fn of(error: &anyhow::Error) -> Self {
        let mut chain = error.chain();
        chain.find_map(Self::of_cause).unwrap_or(Self::Failed)
    }

    fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(failure.exit);
        }
        if cause.is::<ConfigErrors>() {
            return Some(Self::Config);
        }
        if let Some(StopFailure::Overran { .. }) = cause.downcast_ref::<StopFailure>() {
            return Some(Self::Overran);
        }
        if let Some(MigrationError::Store(error)) = cause.downcast_ref::<MigrationError>() {
            return Self::of_cause(error);
        }
        match cause.downcast_ref::<StoreError>()? {
            StoreError::Unavailable { .. } | StoreError::Deadline { .. } => Some(Self::Unavailable),
            StoreError::Conflict { .. } | StoreError::Corrupt { .. } => Some(Self::Failed),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An end with a code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Usage, message: message.into() }.into()
    }

    pub fn unavailable(message: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Unavailable, message: message.into() }.into()
    }
}

/// Whether the reader of our output went away, as `head` does: no failure of ours.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_finds_its_code_through_every_wrapping() {
        let away = || StoreError::unavailable_because("database", "gone");
        assert_eq!(Exit::of(&away().into()), Exit::Unavailable);
        assert_eq!(Exit::of(&MigrationError::Store(away()).into()), Exit::Unavailable);
        assert_eq!(Exit::of(&anyhow::Error::from(away()).context("while importing")), Exit::Unavailable);
        assert_eq!(Exit::of(&ConfigErrors(Vec::new()).into()), Exit::Config);
        let overran = StopFailure::Overran { drain: std::time::Duration::ZERO, tasks: 1 };
        assert_eq!(Exit::of(&overran.into()), Exit::Overran);
        assert_eq!(Exit::of(&Failure::usage("no")), Exit::Usage);
        assert_eq!(Exit::of(&MigrationError::Failed("no".to_owned()).into()), Exit::Failed);
        assert_eq!(Exit::of(&anyhow::anyhow!("anything")), Exit::Failed);
        assert!(is_broken_pipe(&io::Error::from(io::ErrorKind::BrokenPipe).into()));
    }
}
