//! `config`: checked, printed as it counts, or as it is by default.

use super::{Exit, Settings, complain, print};
use crate::config::{render_defaults, render_effective};

/// Check or print the configuration
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  unified-backend config check --config production.toml
  unified-backend config print | grep database
  unified-backend config defaults > config.toml")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print `ok`, or everything that is wrong (exit code 78)
    Check,
    /// Print every setting as it counts and where it came from; secrets are redacted
    Print,
    /// Print every setting with its meaning, environment names and default, as a TOML file
    Defaults,
}

pub fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    if matches!(arguments.action, Action::Defaults) {
        print(render_defaults().trim_end())?;
        return Ok(Exit::Done);
    }
    let loaded = settings.load_with(Vec::new())?;
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    match arguments.action {
        Action::Print => print(render_effective(&loaded).trim_end())?,
        Action::Check | Action::Defaults => print("ok")?,
    }
    Ok(Exit::Done)
}
