//! `serve`: the service as a process: settings, log, signals, exit code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, Failure};
use super::{Settings, demo, print};
use crate::app::App;
use crate::config::Config;
use crate::telemetry::logging::{self, TraceGuard};

/// Run the service (the default command)
#[derive(clap::Args, Debug, Default, PartialEq)]
#[command(after_help = "\
Examples:
  unified-backend serve --demo
  unified-backend serve --config /etc/unified-backend.toml
  DATABASE_URL=postgres://app:secret@db/people KAFKA_BOOTSTRAP_SERVERS=kafka:9092 unified-backend serve

SIGTERM and SIGINT stop it in order: not ready, then nothing new, streams end, what is under way is
finished (SHUTDOWN_SETTLE_SECONDS, SHUTDOWN_DRAIN_SECONDS). A second signal ends it at once.")]
pub struct Arguments {
    /// Address to listen on (API_HOST)
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Port to listen on, 0 for any free one (API_PORT)
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// Fill an empty directory with sample people and zones, and simulate a site that publishes alerts
    #[arg(long)]
    pub demo: bool,
}

/// What is known before anything runs.
pub struct Prepared {
    config: Config,
    is_demo: bool,
    _traces: TraceGuard,
}

impl Prepared {
    /// The other cores are for the database, which mostly runs here too, and for the threads of the clients
    /// of SQLite and Kafka. Where they are not needed, more threads cost more than they bring: a round of
    /// readers that was validated together is answered for less by one thread (decision 11).
    pub fn count_threads(&self) -> usize {
        match self.config.api.threads {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
            threads => threads,
        }
    }
}

pub fn prepare(settings: &Settings, arguments: Arguments) -> anyhow::Result<Prepared> {
    let given = [("API_HOST", arguments.host), ("API_PORT", arguments.port)];
    let overrides = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let loaded = settings.load_with(overrides)?;
    let traces = logging::install(&loaded.config.logging)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(Prepared { config: loaded.config, is_demo: arguments.demo, _traces: traces })
}

pub async fn run(prepared: Prepared) -> anyhow::Result<Exit> {
    let Prepared { config, is_demo, _traces } = prepared;
    raise_descriptor_limit();
    // Before anything runs: a signal during start-up must not leave half of it behind.
    let mut signals = Signals::listen()?;
    let app = App::start(config).await?;
    let url = url_of(app.address);
    let lifecycle = app.state.lifecycle.clone();
    tracing::info!(url, version = env!("CARGO_PKG_VERSION"), "listening on {url}");
    // Nobody may be there to read it; the log has it too.
    let _is_also_logged = print(&format!("unified-backend {} listens on {url}", env!("CARGO_PKG_VERSION")));
    if is_demo {
        demo::start(&app.state, url);
    }
    let running = app.run_until_stopped();
    tokio::pin!(running);
    tokio::select! {
        outcome = &mut running => return outcome.map(|()| Exit::Done),
        name = signals.next() => tracing::info!(signal = name, "{name}: stopping in order; another signal stops at once"),
    }
    lifecycle.stop();
    tokio::select! {
        outcome = &mut running => {
            outcome?;
            tracing::info!("stopped");
            Ok(Exit::Done)
        }
        name = signals.next() => {
            lifecycle.abort();
            let message = format!("{name} for the second time: stopped at once");
            Err(Failure { exit: Exit::Interrupted, message }.into())
        }
    }
}

/// The signals that ask a process to end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one and tells its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The URL under which this machine reaches an address it listens on.
pub fn url_of(mut address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{address}")
}

/// A connection is a descriptor, and the usual soft limit of 1024 is for programs that use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => tracing::debug!(limit = ?limit.current, "file descriptor limit raised"),
        Err(error) => tracing::warn!(%error, "the file descriptor limit could not be raised"),
    }
}
