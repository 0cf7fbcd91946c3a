//! The real binary in a process of its own, with no environment but what a test gives it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::app::PATIENCE;

/// A command that ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub output: String,
    pub errors: String,
}

impl Ended {
    /// Both streams, after the exit code was checked.
    #[track_caller]
    pub fn expect(&self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        format!("{}{}", self.output, self.errors)
    }
}

fn command(directory: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unified-backend"));
    command.env_clear().envs(settings.iter().copied()).args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub async fn run(directory: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Ended {
    run_with_input(directory, settings, arguments, b"").await
}

pub async fn run_with_input(directory: &Path, settings: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Ended {
    let mut child = command(directory, settings, arguments).spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A command that fails early does not read it.
    drop(stdin.write_all(input).await);
    drop(stdin);
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let ended = ended.unwrap_or_else(|_| panic!("{arguments:?} does not end")).expect("its output can be read");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ended {
        code: ended.status.code().expect("it ended by itself"),
        output: text(ended.stdout),
        errors: text(ended.stderr),
    }
}

/// A service that serves.
pub struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
    pub url: String,
}

impl Served {
    /// Waits for the line that names the address.
    pub async fn start(directory: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut child = command(directory, settings, arguments).spawn().expect("the binary starts");
        let mut served =
            Self { output: BufReader::new(child.stdout.take().expect("piped")), child, url: String::new() };
        let line = served.next_line().await;
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        served.url = url.unwrap_or_else(|| panic!("no URL in {line:?}")).to_owned();
        served
    }

    /// The next line of its standard output.
    pub async fn next_line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.output.read_line(&mut line)).await;
        read.expect("a line comes in time").expect("its output can be read");
        assert!(!line.is_empty(), "it ended: {}", self.read_errors().await);
        line
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).expect("a pid"))).expect("it runs");
        kill_process(pid, signal).expect("the signal is sent");
    }

    /// Its exit code and its log.
    pub async fn ended(mut self) -> (i32, String) {
        let log = self.read_errors().await;
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("it ran");
        (status.code().expect("it ended by itself"), log)
    }

    /// Whether it still runs after so long.
    pub async fn still_runs_after(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.child.wait()).await.is_err()
    }

    async fn read_errors(&mut self) -> String {
        let mut log = String::new();
        let mut errors = self.child.stderr.take().expect("piped");
        let read = tokio::time::timeout(PATIENCE, errors.read_to_string(&mut log)).await;
        read.expect("it ends in time").expect("UTF-8");
        log
    }
}
