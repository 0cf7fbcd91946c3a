//! The processes that are measured: the service, the servers of this binary (see `servers`), nginx. Each
//! listens on loopback, and none outlives its value here.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::load::{self, Connection};

const START_TIME: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
    /// Closed with the process: a server of this binary ends when its standard input does.
    output: Option<BufReader<ChildStdout>>,
    pub pid: u32,
    pub address: SocketAddr,
}

/// A program of the same build as this one.
fn beside_this(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing; `./dev bench` builds it", path.display());
    }
    Ok(path)
}

impl Process {
    /// The service, as soon as it listens. It sees no environment but `settings`.
    pub async fn service(directory: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut command = Command::new(beside_this("unified-backend")?);
        command.arg("serve").env_clear().envs([("API_PORT", "0"), ("SHUTDOWN_SETTLE_SECONDS", "0")]);
        command.envs(settings.iter().copied());
        Self::listening(command, directory).await
    }

    /// The service, as soon as it is ready, and how long that took.
    pub async fn ready_service(directory: &Path, settings: &[(&str, &str)]) -> anyhow::Result<(Self, Duration)> {
        let begun_at = Instant::now();
        let service = Self::service(directory, settings).await?;
        let mut connection = Connection::open(service.address).await?;
        while connection.exchange(&load::get("/health/ready", "")).await?.status != 200 {
            if begun_at.elapsed() > START_TIME {
                bail!("the service does not become ready");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok((service, begun_at.elapsed()))
    }

    /// A server of this binary.
    pub async fn server(directory: &Path, arguments: &[&OsStr]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--server").args(arguments);
        Self::listening(command, directory).await
    }

    /// nginx with the files of a directory, where it is installed.
    pub async fn nginx(files: &Path) -> anyhow::Result<Option<Self>> {
        let places = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx", "/usr/local/bin/nginx"];
        let Some(program) = places.into_iter().find(|place| Path::new(place).exists()) else { return Ok(None) };
        let address = free_address().await?;
        let configuration = files.join("nginx.conf");
        tokio::fs::write(&configuration, nginx_configuration(files, address)).await?;
        let mut command = Command::new(program);
        command.arg("-p").arg(files).arg("-e").arg(files.join("nginx.log")).arg("-c").arg(configuration);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = child.spawn()?;
        let pid = child.id().context("nginx ended")?;
        let nginx = Self { child, output: None, pid, address };
        let begun_at = Instant::now();
        while Connection::open(address).await.is_err() {
            if begun_at.elapsed() > Duration::from_secs(5) {
                let log = tokio::fs::read_to_string(files.join("nginx.log")).await.unwrap_or_default();
                bail!("nginx does not start: {log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Some(nginx))
    }

    async fn listening(mut command: Command, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join("stderr.log");
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = child.id().context("it ended at once")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        tokio::time::timeout(START_TIME, output.read_line(&mut line)).await.context("it does not start")??;
        let address = line.split_once("http://").and_then(|(_, address)| address.trim().parse().ok());
        let Some(address) = address else {
            bail!("it did not start: {}", tokio::fs::read_to_string(log).await.unwrap_or_default());
        };
        Ok(Self { child, output: Some(output), pid, address })
    }

    pub fn cpu_micros(&self) -> anyhow::Result<f64> {
        cpu_micros(self.pid)
    }

    pub fn resident_bytes(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx ends its workers only when it is asked to; the others are killed when `child` goes.
        if self.output.is_none()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
            && kill_process(pid, Signal::TERM).is_ok()
        {
            let begun_at = Instant::now();
            while matches!(self.child.try_wait(), Ok(None)) && begun_at.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

async fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(tokio::net::TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

fn nginx_configuration(files: &Path, address: SocketAddr) -> String {
    let files = files.display();
    format!(
        "daemon off; pid {files}/nginx.pid; worker_processes auto;\n\
         {user}\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
             access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type application/json;\n\
             open_file_cache max=100; gzip_static on;\n\
             client_body_temp_path {files}; proxy_temp_path {files}; fastcgi_temp_path {files};\n\
             uwsgi_temp_path {files}; scgi_temp_path {files};\n\
             server {{ listen {address}; root {files}; }}\n\
         }}\n",
        // Its workers would not be allowed to read our files as another user.
        user = if rustix::process::getuid().is_root() { "user root;\n" } else { "" },
    )
}

/// CPU time of a process, of its children and of those it waited for.
pub fn cpu_micros(pid: u32) -> anyhow::Result<f64> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let own = cpu_ticks(pid, &[11, 12, 13, 14])?;
    let theirs: f64 = children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        // One that ended meanwhile counts as waited for the next time.
        .filter_map(|child| cpu_ticks(child, &[11, 12]).ok())
        .sum();
    Ok((own + theirs) * 1e6 / rustix::param::clock_ticks_per_second() as f64)
}

/// CPU time of the children of this process that ended.
pub fn waited_cpu_micros() -> anyhow::Result<f64> {
    Ok(cpu_ticks(std::process::id(), &[13, 14])? * 1e6 / rustix::param::clock_ticks_per_second() as f64)
}

/// `fields` of /proc/PID/stat, counted behind the name in parentheses.
fn cpu_ticks(pid: u32, fields: &[usize]) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, values) = stat.rsplit_once(')').context("an unreadable stat")?;
    let values: Vec<&str> = values.split_whitespace().collect();
    fields.iter().map(|field| Ok(values.get(*field).context("a short stat")?.parse::<f64>()?)).sum()
}

pub fn parent_of(pid: u32) -> anyhow::Result<u32> {
    Ok(cpu_ticks(pid, &[1])? as u32)
}
