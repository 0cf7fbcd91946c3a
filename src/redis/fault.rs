//! Why Redis did not do what it was asked, in words for operators: what is wrong and what to do.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// What keeps a call from being served.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    /// What is wrong and what to do; never a secret.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Cannot be reached, or does not answer in time.
    Away,
    /// The URL cannot be used.
    Url,
    Password,
    Loading,
    /// Reads work, writes do not.
    ReadOnly,
    OutOfMemory,
    /// It cannot save, and refuses writes for it.
    Disk,
    /// The user may not run the command.
    Permission,
    /// It answers, but not what we understand.
    Other,
}

impl FaultKind {
    /// The server answers and refuses this very call: a read that works says nothing about it.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::ReadOnly | Self::OutOfMemory | Self::Disk | Self::Permission)
    }

    /// A new connection may meet another server, or the same one with other rights.
    pub fn needs_new_connection(self) -> bool {
        matches!(self, Self::Away | Self::Password | Self::Loading | Self::ReadOnly)
    }
}

impl Fault {
    pub fn new(kind: FaultKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Of an error that is no answer to the call. `address` names the server to people.
    pub fn of(error: &RedisError, address: &str) -> Self {
        let kind = kind_of(error);
        let text = match kind {
            FaultKind::Away | FaultKind::Url => {
                format!(
                    "cannot work with Redis at {address}: {error}; is it running, and is REDIS_URL or REDIS_HOST right?"
                )
            }
            FaultKind::Password => {
                format!("Redis at {address} refuses the password: set REDIS_PASSWORD, or correct the one in REDIS_URL")
            }
            FaultKind::Loading => format!("Redis at {address} is still loading its data: it is ready by itself"),
            FaultKind::ReadOnly => {
                format!("Redis at {address} is a read-only replica: let REDIS_URL name the primary, or the sentinels")
            }
            FaultKind::OutOfMemory => format!(
                "Redis at {address} has reached maxmemory and refuses writes: raise it, or choose a maxmemory-policy that evicts"
            ),
            FaultKind::Disk => {
                format!("Redis at {address} cannot save to its disk and refuses writes: see its log and its disk")
            }
            FaultKind::Permission => {
                format!("Redis at {address} does not let our user run a command ({error}): extend its ACL")
            }
            FaultKind::Other => format!("Redis at {address} answered {error}"),
        };
        Self { kind, text }
    }

    pub fn timeout(address: &str, limit: std::time::Duration) -> Self {
        let limit_ms = limit.as_millis();
        let text = format!(
            "Redis at {address} did not answer within {limit_ms} ms: is it overloaded, or far away (REDIS_TIMEOUT_MS)?"
        );
        Self { kind: FaultKind::Away, text }
    }
}

fn kind_of(error: &RedisError) -> FaultKind {
    let by_code = match error.code() {
        Some("NOAUTH" | "WRONGPASS") => Some(FaultKind::Password),
        Some("LOADING" | "MASTERDOWN" | "CLUSTERDOWN") => Some(FaultKind::Loading),
        Some("READONLY") => Some(FaultKind::ReadOnly),
        Some("OOM") => Some(FaultKind::OutOfMemory),
        Some("MISCONF") => Some(FaultKind::Disk),
        Some("NOPERM") => Some(FaultKind::Permission),
        _ => None,
    };
    by_code.unwrap_or_else(|| match error.kind() {
        ErrorKind::AuthenticationFailed => FaultKind::Password,
        ErrorKind::InvalidClientConfig => FaultKind::Url,
        ErrorKind::Io
        | ErrorKind::Parse
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel => FaultKind::Away,
        _ => kind_in_text(&error.to_string()),
    })
}

/// Errors from within scripts of Redis before 7 carry the code in their text.
fn kind_in_text(text: &str) -> FaultKind {
    let codes = [
        ("READONLY", FaultKind::ReadOnly),
        ("OOM ", FaultKind::OutOfMemory),
        ("MISCONF", FaultKind::Disk),
        ("WRONGPASS", FaultKind::Password),
        ("NOAUTH", FaultKind::Password),
        ("max number of clients", FaultKind::Away),
    ];
    codes.iter().find(|(code, _)| text.contains(code)).map_or(FaultKind::Other, |(_, kind)| *kind)
}

/// The key holds another type of value than the command is for.
pub fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE")
}

/// The server does not have the script (any more).
pub fn is_missing_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.to_owned(), Some(detail.to_owned()))
    }

    #[test]
    fn what_the_server_says_is_told_apart() {
        for (code, kind) in [
            ("NOAUTH", FaultKind::Password),
            ("WRONGPASS", FaultKind::Password),
            ("OOM", FaultKind::OutOfMemory),
            ("MISCONF", FaultKind::Disk),
            ("UNKNOWN", FaultKind::Other),
        ] {
            assert_eq!(Fault::of(&answered(code, "as the server puts it"), "here:6379").kind, kind, "{code}");
        }
        let within_script =
            answered("ERR", "Error running script: -READONLY You can't write against a read only replica.");
        assert_eq!(Fault::of(&within_script, "here:6379").kind, FaultKind::ReadOnly);
        assert!(is_wrong_type(&answered("WRONGTYPE", "Operation against a key")));
    }

    #[test]
    fn a_refused_connection_says_what_to_do() {
        let error = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let fault = Fault::of(&error, "here:6379");
        assert_eq!(fault.kind, FaultKind::Away);
        assert!(fault.text.contains("here:6379") && fault.text.contains("REDIS_URL"), "{}", fault.text);
    }
}
