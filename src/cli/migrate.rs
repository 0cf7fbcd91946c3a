//! `migrate`: the schema, brought forward by hand or only looked at.

use super::{Exit, Settings, print};
use crate::storage;

/// Bring the database schema forward, or tell what is pending
#[derive(clap::Args)]
#[command(after_help = "\
`serve` does this too when it starts. Run it by hand to see that it works before the new version serves.
A database that the Python version made is adopted; nothing is lost.

Examples:
  unified-backend migrate
  unified-backend migrate --check && echo up to date")]
pub struct Arguments {
    /// Change nothing; list what is pending and exit with 1 if anything is
    #[arg(long)]
    check: bool,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let config = settings.load()?;
    if arguments.check {
        let report = storage::check_migrations(&config.database).await?;
        if report.pending.is_empty() {
            print("up to date")?;
            return Ok(Exit::Done);
        }
        for name in &report.pending {
            print(&format!("pending {name}"))?;
        }
        return Ok(Exit::Failed);
    }
    let report = storage::migrate(&config.database).await?;
    if report.applied.is_empty() {
        print("up to date")?;
    }
    for name in &report.applied {
        print(&format!("applied {name}"))?;
    }
    Ok(Exit::Done)
}
