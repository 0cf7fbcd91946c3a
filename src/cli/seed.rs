//! `seed`: sample people and zones, the same ones every time.

use super::store::OpenStore;
use super::{Exit, Settings, print, progress, sample};
use crate::directory::{Command, Refusal};

const CHUNK: usize = 500;

/// Put sample people and zones into the database
#[derive(clap::Args)]
#[command(after_help = "\
Always the same zones and, by number, the same people, so it can be repeated: what exists is kept as it is.
The schema must be there: `unified-backend migrate` first.

Examples:
  unified-backend migrate && unified-backend seed
  unified-backend seed --users 20000")]
pub struct Arguments {
    /// How many people
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    users: u32,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let store = OpenStore::open(&settings.load()?).await?;
    let commands = sample::commands(arguments.users as usize);
    let bar = progress::of_items(commands.len(), "seeding");
    let (mut zones, mut users) = (Count::default(), Count::default());
    for chunk in commands.chunks(CHUNK) {
        let verdicts = store.directory.write_all(chunk.to_vec()).await?;
        for (command, verdict) in chunk.iter().zip(verdicts) {
            let count = if matches!(command, Command::CreateZone(_)) { &mut zones } else { &mut users };
            match verdict {
                Ok(_) => count.made += 1,
                Err(Refusal::UserExists { .. } | Refusal::ZoneExists { .. }) => count.kept += 1,
                Err(refusal) => anyhow::bail!("{refusal}"),
            }
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    store.close().await?;
    print(&format!(
        "zones: {} made, {} kept\nusers: {} made, {} kept",
        zones.made, zones.kept, users.made, users.kept
    ))?;
    Ok(Exit::Done)
}

#[derive(Default)]
struct Count {
    made: usize,
    kept: usize,
}
