//! A PostgreSQL server of a test's own, for what nobody may do to a shared one: crash it, promote its
//! standby, restore it from a dump.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Stopped and deleted at the end of the test.
pub struct Cluster {
    directory: tempfile::TempDir,
    port: u16,
    programs: PathBuf,
}

impl Cluster {
    /// `None`: PostgreSQL is not among the servers of this test run.
    pub fn start() -> Option<Self> {
        super::backends::find_postgres_url()?;
        let cluster = Self::place();
        cluster.run("initdb", &["-A", "trust", "-U", "postgres", "--encoding", "UTF8", "--no-sync", "-D"], true);
        cluster.resume();
        Some(cluster)
    }

    /// A standby that follows this server.
    pub fn standby(&self) -> Self {
        let standby = Self::place();
        let port = self.port.to_string();
        standby.run("pg_basebackup", &["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-R", "-D"], true);
        standby.resume();
        standby
    }

    /// As `DATABASE_URL` takes it.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// `host:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the server again after [`Self::crash`].
    pub fn resume(&self) {
        let options = format!(
            "-c port={} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c shared_buffers=16MB -c wal_level=logical",
            self.port,
            self.directory.path().display()
        );
        let log = self.directory.path().join("log");
        self.run("pg_ctl", &["start", "-w", "-l", &log.display().to_string(), "-o", &options, "-D"], true);
    }

    /// In order: everything is flushed.
    pub fn stop(&self) {
        self.run("pg_ctl", &["stop", "-m", "fast", "-w", "-D"], true);
    }

    /// Copies the files of a server that is stopped.
    pub fn copy_files(&self) {
        self.copy("data", "copy");
    }

    /// Puts the copy in the place of the files.
    pub fn put_copy_back(&self) {
        std::fs::remove_dir_all(self.directory.path().join("data")).expect("the files are removed");
        self.copy("copy", "data");
    }

    fn copy(&self, from: &str, to: &str) {
        let status = Command::new("cp").args(["-a", from, to]).current_dir(self.directory.path()).status();
        assert!(status.expect("cp runs").success(), "the files were not copied");
    }

    /// As the power going off would: nothing is flushed, the next start recovers.
    pub fn crash(&self) {
        self.run("pg_ctl", &["stop", "-m", "immediate", "-D"], true);
    }

    /// Makes a standby a server of its own.
    pub fn promote(&self) {
        self.run("pg_ctl", &["promote", "-w", "-D"], true);
    }

    /// The whole database as SQL that drops and makes everything anew.
    pub fn dump(&self) -> Vec<u8> {
        let mut command = self.command("pg_dump");
        command.args(["--clean", "--if-exists", "-d", &self.url()]).stderr(Stdio::inherit());
        let output = command.output().expect("pg_dump runs");
        assert!(output.status.success(), "pg_dump failed");
        output.stdout
    }

    /// Plays SQL through `psql`.
    pub fn restore(&self, sql: &[u8]) {
        let file = self.directory.path().join("restore.sql");
        std::fs::write(&file, sql).expect("the dump is written");
        let mut command = self.command("psql");
        command.args(["-q", "-v", "ON_ERROR_STOP=1", "-1", "-d", &self.url(), "-f"]).arg(&file);
        assert!(command.stdout(Stdio::null()).status().expect("psql runs").success(), "the dump was not restored");
    }

    fn place() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        if let Some((user, group)) = find_server_user() {
            chown(directory.path(), Some(user), Some(group)).expect("the directory is given to the server's user");
        }
        Self { directory, port: super::free_port(), programs: find_programs() }
    }

    fn run(&self, program: &str, arguments: &[&str], must_succeed: bool) {
        let mut command = self.command(program);
        command.args(arguments).arg(self.directory.path().join("data")).stdout(Stdio::null());
        let status = command.status().unwrap_or_else(|error| panic!("{program}: {error}"));
        let log = || std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        assert!(status.success() || !must_succeed, "{program} {arguments:?}: {status}\n{}", log());
    }

    /// As the user that a server may run as: PostgreSQL refuses root.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((user, group)) = find_server_user() {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run("pg_ctl", &["stop", "-m", "immediate", "-D"], false);
    }
}

/// `None`: the tests' own user will do.
fn find_server_user() -> Option<(u32, u32)> {
    let own = std::fs::metadata("/proc/self").expect("Linux");
    if std::os::unix::fs::MetadataExt::uid(&own) != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("users");
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("the user `postgres` exists");
    let mut fields = line.split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok()).expect("a user's numbers");
    Some((number(), number()))
}

fn find_programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed.map(|entry| entry.path().join("bin")).filter(|path| path.join("initdb").exists()).max();
    newest.unwrap_or_else(|| {
        let from_path = std::env::var_os("PATH").expect("PATH");
        let found = std::env::split_paths(&from_path).find(|path: &PathBuf| Path::join(path, "initdb").exists());
        found.expect("PostgreSQL's own programs (initdb) are installed")
    })
}
