//! `./dev bench [NAME…]`: measures the service against its goals, a plain peer and the bare limit. What is
//! measured how stands in `docs/performance.md`. Starts and ends everything it needs; loopback only.

mod database;
mod figures;
mod load;
mod measure;
mod process;
mod proxy;
mod report;
mod servers;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use self::database::Database;
use self::process::Process;
use self::report::Report;

/// Measures the service against its goals.
#[derive(Parser)]
#[command(name = "bench", after_help = "A missed goal is told and is no failure; a wrong answer is one.")]
struct Arguments {
    /// What to measure; everything but `growth` when none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Seconds instead of minutes: whether everything works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// How many reads `soak` checks
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    reads: u64,
    /// Be one of the servers that are measured
    #[arg(long, hide = true)]
    server: bool,
}

/// What every figure needs.
pub struct Bench {
    quick: bool,
    reads: u64,
    report: Report,
    directory: tempfile::TempDir,
    postgres: String,
}

impl Bench {
    fn new(arguments: &Arguments, figures: usize) -> anyhow::Result<Self> {
        Ok(Self {
            quick: arguments.quick,
            reads: arguments.reads,
            report: Report::new(figures),
            directory: tempfile::tempdir()?,
            postgres: variable("TEST_POSTGRES_URL")?,
        })
    }

    /// The whole of a full run, or what is enough to see it work.
    fn scaled<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    fn rounds(&self) -> usize {
        self.scaled(5, 1)
    }

    fn round_duration(&self) -> Duration {
        Duration::from_millis(self.scaled(1000, 200))
    }

    /// A migrated database with so many people.
    async fn database(&self, users: u64) -> anyhow::Result<Database> {
        self.report.doing(format!("filling a database with {users} people"));
        let database = Database::create(&self.postgres).await?;
        // The service migrates when it starts.
        drop(Process::ready_service(self.directory.path(), &[("DATABASE_URL", &database.url)]).await?);
        if users > 0 {
            database.fill(users).await?;
        }
        Ok(database)
    }

    async fn service(&self, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        Ok(Process::ready_service(self.directory.path(), settings).await?.0)
    }

    /// A logical database of Redis that nobody else of a run uses.
    fn redis(&self, number: u32) -> anyhow::Result<String> {
        Ok(format!("{}/{number}", variable("TEST_REDIS_URL")?.trim_end_matches('/')))
    }

    fn kafka(&self) -> anyhow::Result<String> {
        variable("TEST_KAFKA_BOOTSTRAP_SERVERS")
    }
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; `./dev bench` starts the servers and sets it"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        if arguments.server {
            return servers::run(&arguments.names).await.map(|()| true);
        }
        raise_descriptor_limit()?;
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        // Whatever was started ends with the future that is dropped.
        tokio::select! {
            outcome = measure(arguments) => outcome,
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| false).context("signals cannot be heard"),
            _ = terminated.recv() => Ok(false),
        }
    });
    // A load may still run: nobody waits for it any more.
    runtime.shutdown_background();
    outcome
}

async fn measure(arguments: &Arguments) -> anyhow::Result<bool> {
    let names: Vec<&str> = match arguments.names.as_slice() {
        [] => figures::NAMES.to_vec(),
        [name] if name == "growth" => figures::ON_REQUEST.to_vec(),
        names => names.iter().map(String::as_str).collect(),
    };
    let known = [figures::NAMES, figures::ON_REQUEST].concat();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        anyhow::bail!("there is no figure {unknown}; there are: {}, growth", known.join(", "));
    }
    let mut bench = Bench::new(arguments, names.len())?;
    let mut is_right = true;
    for name in names {
        if let Err(error) = figures::run(&mut bench, name).await {
            bench.report.say(&format!("\n{name} failed: {error:#}"));
            is_right = false;
        }
        bench.report.next_figure();
    }
    bench.report.finish();
    Ok(is_right)
}

/// A thousand connections are more than the usual soft limit.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
