//! Connections: how the file is opened, the settings of a session, and whether the file that is open is
//! still the one at its path. Also the lock that keeps a second service away.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::error::{DEPENDENCY, translate};
use crate::store_error::StoreError;

/// Statements kept compiled per connection: all of ours.
const STATEMENTS: usize = 128;
/// Page caches, in KiB with a minus. The writer's holds the leaves of the alert log's indexes, which a batch
/// touches all over.
const READ_CACHE: i32 = -16 * 1024;
const WRITE_CACHE: i32 = -64 * 1024;
/// The write-ahead log is brought into the file after so many pages, 16 MiB.
const CHECKPOINT_PAGES: u32 = 4_000;
/// To which size a log that a burst left behind is cut.
const LOG_BYTES_KEPT: u32 = 64 * 1024 * 1024;
/// Steps of SQLite's machine between two looks at the clock.
const STEPS_BETWEEN_LOOKS: i32 = 20_000;
/// A service that restarts may meet the last moments of its predecessor.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading an existing file.
    Read,
    /// For writing to an existing file.
    Write,
    /// As `Write`; makes the file where there is none.
    Create,
}

/// A connection that is opened when it is needed, and anew after an unclean end or when the file at its
/// path has become another one.
pub struct Session {
    path: Arc<Path>,
    access: Access,
    busy_timeout: Duration,
    open: Option<Opened>,
    serial: u64,
    patience: Patience,
}

/// A connection of a session.
pub struct Opened {
    connection: Connection,
    file: FileId,
    /// Tells it from the session's connections before it.
    pub serial: u64,
}

impl Deref for Opened {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// Until when the statements of a connection may run; beyond, they are interrupted.
#[derive(Clone)]
struct Patience {
    base: Instant,
    /// Microseconds after `base`.
    until: Arc<AtomicU64>,
}

impl Session {
    pub fn new(path: Arc<Path>, access: Access, busy_timeout: Duration) -> Self {
        let patience = Patience { base: Instant::now(), until: Arc::new(AtomicU64::new(u64::MAX)) };
        Self { path, access, busy_timeout, open: None, serial: 0, patience }
    }

    pub fn connection(&mut self) -> Result<&Opened, StoreError> {
        let present = identify(&self.path).map_err(|error| file_error(&self.path, &error))?;
        if self.open.as_ref().is_some_and(|opened| opened.file != present) {
            tracing::warn!(path = %self.path.display(), "another file has taken the database's place: opening it");
            self.open = None;
        }
        let opened = match self.open.take() {
            Some(opened) => opened,
            None => {
                let connection = open(&self.path, self.access, self.busy_timeout)?;
                let patience = self.patience.clone();
                connection
                    .progress_handler(STEPS_BETWEEN_LOOKS, Some(move || patience.is_over()))
                    .map_err(|error| translate("open", 0, error))?;
                self.serial += 1;
                Opened { connection, file: present, serial: self.serial }
            }
        };
        Ok(self.open.insert(opened))
    }

    /// Closes it: after a failure nobody knows in which state it is.
    pub fn discard(&mut self) {
        self.open = None;
    }

    /// From now on its statements may run this long in all.
    pub fn allow(&self, limit: Duration) {
        let until = self.patience.base.elapsed().saturating_add(limit).as_micros();
        self.patience.until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Patience {
    fn is_over(&self) -> bool {
        self.base.elapsed().as_micros() > u128::from(self.until.load(Ordering::Relaxed))
    }
}

pub fn open(path: &Path, access: Access, busy_timeout: Duration) -> Result<Connection, StoreError> {
    // Readers too open for writing: the first one after a crash recovers the write-ahead log.
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if access == Access::Create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let opening = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(busy_timeout)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "cache_size", if access == Access::Read { READ_CACHE } else { WRITE_CACHE })?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        if access == Access::Read {
            connection.pragma_update(None, "query_only", true)?;
            return Ok(connection);
        }
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_KEPT, |_| Ok(()))?;
        Ok(connection)
    };
    opening().map_err(|error| translate("open", 0, error))
}

/// Makes the directory that the file is to stand in.
pub fn create_parent(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            std::fs::create_dir_all(parent).map_err(|error| file_error(parent, &error))
        }
        _ => Ok(()),
    }
}

/// Holds the database for one service while the returned file is open. Shells and the commands of our
/// own command line do not ask for it.
pub fn lock(path: &Path) -> Result<File, StoreError> {
    let lock_path = beside(path, ".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        // A read-only directory may hold one already.
        .or_else(|_| File::open(&lock_path))
        .map_err(|error| file_error(&lock_path, &error))?;
    let begun_at = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun_at.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::unavailable_because(
                    DEPENDENCY,
                    format!(
                        "another unified-backend serves {} already (it holds {}): stop it, or give this one a \
                         DATABASE_URL of its own; several instances on one database need PostgreSQL",
                        path.display(),
                        lock_path.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(file_error(&lock_path, &error)),
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn file_error(path: &Path, error: &io::Error) -> StoreError {
    StoreError::unavailable_because(DEPENDENCY, format!("{}: {error}", path.display()))
}

type FileId = (u64, u64);

#[cfg(unix)]
fn identify(path: &Path) -> io::Result<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Elsewhere a file that is open cannot be replaced.
#[cfg(not(unix))]
fn identify(path: &Path) -> io::Result<FileId> {
    std::fs::metadata(path).map(|_| (0, 0))
}
