//! `import`: users or zones from a file. A line that is refused is told and does not hold up the others.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::records::{FORMATS, Format, Kind, Reader, UserRecord, explain, read_user, read_zone};
use super::store::OpenStore;
use super::{Exit, Settings, complain, is_standard, print, progress};
use crate::directory::store::Loaded;
use crate::directory::{Command, NewUser, NewZone, Refusal, UserPatch, ZonePatch};

const CHUNK: usize = 500;

/// Read users or zones from a file
#[derive(clap::Args)]
#[command(after_help = format!("\
{FORMATS}

Every refused line is told with its number, field and value; the others are imported, and the exit code
is 1. Import zones before the users who have them.

Examples:
  unified-backend import zones zones.csv
  unified-backend import users users.csv --dry-run
  unified-backend import users people.jsonl --existing update"))]
pub struct Arguments {
    kind: Kind,
    /// Where from; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Instead of what the file's extension says
    #[arg(long)]
    format: Option<Format>,
    /// What becomes of a line whose global_id or zone_id is there already
    #[arg(long, value_enum, default_value_t = Existing::Refuse, value_name = "WHAT")]
    existing: Existing,
    /// Check every line against the database and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Existing {
    /// The line is refused
    Refuse,
    /// It stays as it is in the database
    Keep,
    /// It becomes what the line says; where that says nothing of zones, they stay
    Update,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let config = settings.load()?;
    let format = Format::of(&arguments.file, arguments.format)?;
    let (input, size) = open(&arguments.file)?;
    let bar = progress::of_bytes(size, "importing");
    let mut reader = Reader::open(bar.wrap_read(input), format, arguments.kind)?;
    let store = OpenStore::open(&config).await?;
    let known = Known::of(store.directory.open_feed().await?.load().await?);
    let mut import =
        Import { store: &store, arguments: &arguments, known, waiting: Vec::new(), count: Count::default() };
    while let Some(record) = reader.next().with_context(|| format!("{} cannot be read", arguments.file.display()))? {
        import.count.read += 1;
        let parsed = record.object.map_err(|fault| vec![fault]).and_then(|object| match arguments.kind {
            Kind::Users => read_user(&object).map(|user| import.user_command(user)).map_err(|error| explain(&error)),
            Kind::Zones => read_zone(&object).map(|zone| import.zone_command(zone)).map_err(|error| explain(&error)),
        });
        match parsed {
            Ok(command) => import.take(record.line, command).await?,
            Err(faults) => bar.suspend(|| import.count.refuse(record.line, &faults)),
        }
    }
    import.flush().await?;
    let count = import.count;
    bar.finish_and_clear();
    store.close().await?;
    let note = if arguments.dry_run { " (dry run: nothing was written)" } else { "" };
    print(&format!(
        "{}: {} read, {} made, {} updated, {} kept, {} refused{note}",
        arguments.kind.name(),
        count.read,
        count.made,
        count.updated,
        count.kept,
        count.refused
    ))?;
    Ok(if count.refused == 0 { Exit::Done } else { Exit::Failed })
}

fn open(file: &Path) -> anyhow::Result<(Box<dyn Read>, Option<u64>)> {
    if is_standard(file) {
        return Ok((Box::new(io::stdin()), None));
    }
    let opened = File::open(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let size = opened.metadata().ok().map(|metadata| metadata.len());
    Ok((Box::new(opened), size))
}

struct Import<'a> {
    store: &'a OpenStore,
    arguments: &'a Arguments,
    known: Known,
    /// Valid lines with their numbers, until there is a chunk of them.
    waiting: Vec<(u64, Command)>,
    count: Count,
}

impl Import<'_> {
    fn user_command(&self, user: UserRecord) -> Command {
        let UserRecord { global_id, name, zone_ids } = user;
        match self.known.users.get(&global_id) {
            Some(id) if self.arguments.existing == Existing::Update => {
                Command::UpdateUser { id: *id, patch: UserPatch { name: Some(name), zone_ids } }
            }
            _ => Command::CreateUser(NewUser { global_id, name, zone_ids: zone_ids.unwrap_or_default() }),
        }
    }

    fn zone_command(&self, zone: NewZone) -> Command {
        if self.arguments.existing != Existing::Update || !self.known.zones.contains(&zone.zone_id) {
            return Command::CreateZone(zone);
        }
        let corners = zone.corners.map(|corner| corner.map(Some));
        Command::UpdateZone { zone_id: zone.zone_id, patch: ZonePatch { zone_name: Some(zone.zone_name), corners } }
    }

    async fn take(&mut self, line: u64, command: Command) -> anyhow::Result<()> {
        self.waiting.push((line, command));
        if self.waiting.len() >= CHUNK { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        let (lines, commands): (Vec<u64>, Vec<Command>) = self.waiting.drain(..).unzip();
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(()) };
        let is_update: Vec<bool> = commands
            .iter()
            .map(|command| matches!(command, Command::UpdateUser { .. } | Command::UpdateZone { .. }))
            .collect();
        let verdicts: Vec<Result<(), Refusal>> = if self.arguments.dry_run {
            commands.iter().map(|command| self.known.check(command)).collect()
        } else {
            let written = self.store.directory.write_all(commands).await.with_context(|| {
                format!("stopped at lines {first} to {last}; what came before is stored: go on with --existing keep")
            })?;
            written.into_iter().map(|verdict| verdict.map(drop)).collect()
        };
        for ((line, is_update), verdict) in lines.into_iter().zip(is_update).zip(verdicts) {
            match verdict {
                Ok(()) if is_update => self.count.updated += 1,
                Ok(()) => self.count.made += 1,
                Err(Refusal::UserExists { .. } | Refusal::ZoneExists { .. })
                    if self.arguments.existing == Existing::Keep =>
                {
                    self.count.kept += 1;
                }
                Err(refusal) => self.count.refuse(line, &[reason_of(&refusal)]),
            }
        }
        Ok(())
    }
}

fn reason_of(refusal: &Refusal) -> String {
    match refusal {
        Refusal::UserExists { .. } => format!("global_id: {refusal} (--existing keep or update)"),
        Refusal::ZoneExists { .. } => format!("zone_id: {refusal} (--existing keep or update)"),
        Refusal::UnknownZones { .. } => format!("zone_ids: {refusal} (import zones first)"),
        other => other.to_string(),
    }
}

#[derive(Default)]
struct Count {
    read: usize,
    made: usize,
    updated: usize,
    kept: usize,
    refused: usize,
}

impl Count {
    fn refuse(&mut self, line: u64, faults: &[String]) {
        self.refused += 1;
        faults.iter().for_each(|fault| complain(&format!("line {line}: {fault}")));
    }
}

/// What the database holds, as far as an import must know.
struct Known {
    /// `id` by `global_id`.
    users: HashMap<i64, i64>,
    zones: HashSet<String>,
}

impl Known {
    fn of(loaded: Loaded) -> Self {
        Self {
            users: loaded.users.iter().map(|user| (user.global_id, user.id)).collect(),
            zones: loaded.zones.iter().map(|zone| zone.zone_id.to_string()).collect(),
        }
    }

    /// What the store would say, had the lines before been written.
    fn check(&mut self, command: &Command) -> Result<(), Refusal> {
        let zone_ids = match command {
            Command::CreateUser(new) => {
                if self.users.contains_key(&new.global_id) {
                    return Err(Refusal::UserExists { global_id: new.global_id });
                }
                &new.zone_ids[..]
            }
            Command::UpdateUser { patch, .. } => patch.zone_ids.as_deref().unwrap_or_default(),
            Command::CreateZone(new) => {
                return match self.zones.insert(new.zone_id.clone()) {
                    true => Ok(()),
                    false => Err(Refusal::ZoneExists { zone_id: new.zone_id.clone() }),
                };
            }
            _ => &[],
        };
        let unknown: Vec<String> = zone_ids.iter().filter(|zone_id| !self.zones.contains(*zone_id)).cloned().collect();
        if !unknown.is_empty() {
            return Err(Refusal::UnknownZones { zone_ids: unknown });
        }
        if let Command::CreateUser(new) = command {
            self.users.insert(new.global_id, 0);
        }
        Ok(())
    }
}
