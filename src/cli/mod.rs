//! The command line: one file per command. Owns arguments, what people and scripts are shown, and the
//! exit codes; what a command does is asked of the rest of the house.

mod cache;
mod completions;
mod config;
mod demo;
mod doctor;
mod exit;
mod export;
mod healthcheck;
mod import;
mod migrate;
mod openapi;
mod progress;
mod records;
mod sample;
mod seed;
mod serve;
mod simulate;
mod store;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::Builder;

pub use self::exit::Exit;
use crate::config::{Config, ConfigErrors, Loaded, Sources};
use crate::store_error::describe;

const EXAMPLES: &str = "\
Examples:
  unified-backend serve --demo         a service with sample people, zones and alerts, nothing to install
  unified-backend serve                the service as configured; SQLite in ./data when nothing is set
  unified-backend doctor               what is wrong with this installation, and what to do
  unified-backend config defaults      every setting, its meaning, default and environment name

Settings come from the command line, the environment, .env in the working directory and the file of
--config, the first of them that has one.";

/// People directory and alert log for sites with person recognition.
///
/// Serves users, zones and the users dict with reads that are never stale, stores alerts from Kafka and
/// HTTP exactly once, and shows them live. Without a command: serve.
#[derive(Parser)]
#[command(name = "unified-backend", version, after_help = format!("{EXAMPLES}\n\n{}", Exit::help()))]
struct Cli {
    /// Read settings from this TOML file; the environment and .env win over it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    serve: serve::Arguments,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Migrate(migrate::Arguments),
    Seed(seed::Arguments),
    Import(import::Arguments),
    Export(export::Arguments),
    Cache(cache::Arguments),
    Config(config::Arguments),
    Doctor(doctor::Arguments),
    Simulate(simulate::Arguments),
    Healthcheck(healthcheck::Arguments),
    Openapi(openapi::Arguments),
    Completions(completions::Arguments),
}

/// Parses the arguments of the process, runs the command, tells the exit code.
pub fn main() -> ExitCode {
    let outcome = match Cli::try_parse().and_then(one_command) {
        Ok((config, command)) => run(&Settings { file: config }, command),
        Err(error) => {
            let printed = error.print();
            return if printed.is_ok() && error.exit_code() == 0 { Exit::Done.into() } else { Exit::Usage.into() };
        }
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) if exit::is_broken_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            complain(&describe(error.as_ref()));
            Exit::of(&error).into()
        }
    }
}

/// No command is `serve`; options of `serve` before another command are a slip.
fn one_command(cli: Cli) -> Result<(Option<PathBuf>, Command), clap::Error> {
    let is_misplaced = cli.command.is_some() && cli.serve != serve::Arguments::default();
    if is_misplaced {
        let message = "--host, --port and --demo belong to `serve`: write them after it";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
    }
    Ok((cli.config, cli.command.unwrap_or(Command::Serve(cli.serve))))
}

fn run(settings: &Settings, command: Command) -> anyhow::Result<Exit> {
    let mut builder = Builder::new_multi_thread();
    match command {
        Command::Serve(arguments) => {
            let prepared = serve::prepare(settings, arguments)?;
            block_on(builder.worker_threads(prepared.count_threads()), serve::run(prepared))
        }
        Command::Migrate(arguments) => block_on(&mut builder, migrate::run(settings, arguments)),
        Command::Seed(arguments) => block_on(&mut builder, seed::run(settings, arguments)),
        Command::Import(arguments) => block_on(&mut builder, import::run(settings, arguments)),
        Command::Export(arguments) => block_on(&mut builder, export::run(settings, arguments)),
        Command::Cache(arguments) => block_on(&mut builder, cache::run(settings, arguments)),
        Command::Config(arguments) => config::run(settings, arguments),
        Command::Doctor(arguments) => block_on(&mut builder, doctor::run(settings, arguments)),
        Command::Simulate(arguments) => block_on(&mut builder, simulate::run(settings, arguments)),
        Command::Healthcheck(arguments) => block_on(&mut builder, healthcheck::run(settings, arguments)),
        Command::Openapi(arguments) => openapi::run(arguments),
        Command::Completions(arguments) => completions::run(arguments),
    }
}

fn block_on(builder: &mut Builder, future: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = builder.enable_all().build()?;
    let outcome = runtime.block_on(future);
    // Whatever still runs is of no use to anybody: all that had to be finished was waited for.
    runtime.shutdown_background();
    outcome
}

/// Where a command finds its settings.
struct Settings {
    file: Option<PathBuf>,
}

impl Settings {
    fn load(&self) -> Result<Config, ConfigErrors> {
        self.load_with(Vec::new()).map(|loaded| loaded.config)
    }

    /// `overrides`: (environment name, value) from the command line.
    fn load_with(&self, overrides: Vec<(String, String)>) -> Result<Loaded, ConfigErrors> {
        crate::config::load(&Sources::from_process(self.file.as_deref(), overrides))
    }
}

/// One line or more for the reader of standard output.
fn print(text: &str) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{text}")?;
    output.flush()
}

/// One line or more for the person at the terminal.
fn complain(text: &str) {
    let _nobody_to_tell = writeln!(std::io::stderr().lock(), "{text}");
}

/// How a file is named in messages; `-` is standard input or output.
fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_serves_and_options_of_serve_belong_to_it() {
        let parse =
            |arguments: &[&str]| Cli::try_parse_from([&["unified-backend"], arguments].concat()).and_then(one_command);
        assert!(matches!(parse(&[]), Ok((None, Command::Serve(_)))));
        let Ok((Some(_), Command::Serve(serve))) = parse(&["--demo", "--config", "x.toml"]) else { panic!("serve") };
        assert_eq!(serve, serve::Arguments { demo: true, ..serve::Arguments::default() });
        assert!(matches!(parse(&["serve", "--port", "0"]), Ok((None, Command::Serve(_)))));
        assert!(matches!(parse(&["--config", "x.toml", "migrate"]), Ok((Some(_), Command::Migrate(_)))));
        assert!(matches!(parse(&["migrate", "--config", "x.toml"]), Ok((Some(_), Command::Migrate(_)))));
        assert!(parse(&["--demo", "migrate"]).is_err());
    }
}
