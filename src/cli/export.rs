//! `export`: everybody or every zone, at one moment, into a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::records::{FORMATS, Format, Kind, Writer};
use super::store::OpenStore;
use super::{Exit, Settings, complain, is_standard, progress};
use crate::directory::store::Loaded;

/// Write all users or zones to a file
#[derive(clap::Args)]
#[command(after_help = format!("\
{FORMATS}

`import` reads what `export` writes. Import zones before the users who have them.

Examples:
  unified-backend export users users.csv
  unified-backend export zones | jq .zone_name"))]
pub struct Arguments {
    kind: Kind,
    /// Where to; - is standard output
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Instead of what the file's extension says
    #[arg(long)]
    format: Option<Format>,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let (kind, file) = (arguments.kind, &arguments.file);
    let format = Format::of(file, arguments.format)?;
    let store = OpenStore::open(&settings.load()?).await?;
    let loaded = store.directory.open_feed().await?.load().await?;
    store.close().await?;
    let count = if is_standard(file) {
        write(io::stdout().lock(), format, kind, &loaded)?
    } else {
        write_file(file, format, kind, &loaded)?
    };
    complain(&format!("{count} {} written", kind.name()));
    Ok(Exit::Done)
}

/// Under another name until it is whole: an export that was cut short must not look like one.
fn write_file(file: &Path, format: Format, kind: Kind, loaded: &Loaded) -> anyhow::Result<usize> {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let place = || format!("{} cannot be written", file.display());
    let output = File::create(&partial).with_context(place)?;
    let count = write(&output, format, kind, loaded).with_context(place)?;
    output.sync_all().with_context(place)?;
    std::fs::rename(&partial, file).with_context(place)?;
    Ok(count)
}

fn write(output: impl Write, format: Format, kind: Kind, loaded: &Loaded) -> anyhow::Result<usize> {
    let mut writer = Writer::open(BufWriter::new(output), format, kind)?;
    let count = match kind {
        Kind::Users => loaded.users.len(),
        Kind::Zones => loaded.zones.len(),
    };
    let bar = progress::of_items(count, "exporting");
    match kind {
        Kind::Users => bar.wrap_iter(loaded.users.iter()).try_for_each(|user| writer.write_user(user))?,
        Kind::Zones => bar.wrap_iter(loaded.zones.iter()).try_for_each(|zone| writer.write_zone(zone))?,
    }
    writer.finish()?;
    bar.finish_and_clear();
    Ok(count)
}
