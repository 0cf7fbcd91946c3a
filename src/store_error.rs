//! What a store may answer besides its result. The vocabulary between ports and their callers;
//! knows no engine.

use std::error::Error;

/// A failed unit of work. "Not found" is never an error: it is an `Option` or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The dependency cannot be reached, refuses us, or lost the connection on the way.
    /// Whether a write took effect is unknown.
    #[error("{dependency} is unavailable: {detail}")]
    Unavailable {
        dependency: &'static str,
        detail: String,
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// No answer in time. Whether a write took effect is unknown.
    #[error("{dependency} did not answer `{operation}` within {limit_ms} ms")]
    Deadline { dependency: &'static str, operation: &'static str, limit_ms: u64 },
    /// Concurrent work made this one impossible and retries inside the deadline did not help.
    #[error("{dependency} could not finish `{operation}`: concurrent changes kept getting in its way")]
    Conflict { dependency: &'static str, operation: &'static str },
    /// The store answered something that our own code never writes.
    #[error("{dependency} holds something unexpected: {detail}")]
    Corrupt { dependency: &'static str, detail: String },
}

impl StoreError {
    pub fn unavailable(dependency: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { dependency, detail: describe(&source), source: Some(Box::new(source)) }
    }

    pub fn unavailable_because(dependency: &'static str, detail: impl Into<String>) -> Self {
        Self::Unavailable { dependency, detail: detail.into(), source: None }
    }

    pub fn corrupt(dependency: &'static str, detail: impl Into<String>) -> Self {
        Self::Corrupt { dependency, detail: detail.into() }
    }

    /// The same failure for another one who waited for it; the causes stand in its text.
    pub fn repeat(&self) -> Self {
        match self {
            Self::Unavailable { dependency, detail, .. } => Self::unavailable_because(dependency, detail.clone()),
            Self::Deadline { dependency, operation, limit_ms } => {
                Self::Deadline { dependency, operation, limit_ms: *limit_ms }
            }
            Self::Conflict { dependency, operation } => Self::Conflict { dependency, operation },
            Self::Corrupt { dependency, detail } => Self::corrupt(dependency, detail.clone()),
        }
    }

    /// The dependency's name as it is told to clients and operators.
    pub fn dependency(&self) -> &'static str {
        match self {
            Self::Unavailable { dependency, .. }
            | Self::Deadline { dependency, .. }
            | Self::Conflict { dependency, .. }
            | Self::Corrupt { dependency, .. } => dependency,
        }
    }

    /// The label of `store_errors_total`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Deadline { .. } => "deadline",
            Self::Conflict { .. } => "conflict",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

/// An error with its causes on one line, each cause once.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
