//! `DirectoryFeed` over a thread and connection of its own: what was committed after a number of the
//! change log, together with the rows as they are now, in one read transaction and so at one moment.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, params};

use super::codec;
use super::connection::{Access, Opened, open};
use super::directory::{find_user, find_zone, user_of, zone_of};
use super::error::{DEPENDENCY, translate};
use super::pool::{Pool, Queue};
use crate::directory::store::{Changes, DirectoryFeed, Loaded, Progress, ResetReason};
use crate::directory::{Cursor, User, Zone};
use crate::store_error::StoreError;

/// More changed keys than this are loaded together with everything else.
const MAX_KEYS: i64 = 50_000;

pub struct Feed {
    pool: Pool,
    queue: Queue,
    seen: Arc<Mutex<Option<Seen>>>,
}

/// What a connection saw when the log ended where it did.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    view: View,
    epoch: i64,
    last: i64,
}

/// A connection's view of the file, for the cheapest question there is: did anything change?
#[derive(Clone, Copy, PartialEq, Eq)]
struct View {
    connection: u64,
    /// Moves with each commit of another connection, whichever process holds it.
    data_version: i64,
}

impl Feed {
    pub async fn open(pool: &Pool) -> Result<Self, StoreError> {
        let (queue, seen) = (pool.open_private("sqlite-feed")?, Arc::default());
        // A file that cannot be read is found out now.
        queue.ask("open_feed", pool.limit(), |connection| Ok(find_end(connection)?)).await?;
        Ok(Self { pool: pool.clone(), queue, seen })
    }
}

#[async_trait]
impl DirectoryFeed for Feed {
    /// On a connection of its own, so that validations do not queue behind it.
    async fn load(&self) -> Result<Loaded, StoreError> {
        let (path, limit) = (self.pool.path().clone(), self.pool.limit());
        let loading = tokio::task::spawn_blocking(move || {
            let connection = open(&path, Access::Read, limit)?;
            read_everything(&connection).map_err(|error| translate("load_directory", 0, error))
        });
        loading.await.map_err(|error| StoreError::unavailable(DEPENDENCY, error))?
    }

    async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
        let (cursor, seen) = (cursor.clone(), self.seen.clone());
        let work = move |connection: &Opened| {
            // Before the log is read: a commit in between is looked at again.
            let data_version = connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
            let view = View { connection: connection.serial, data_version };
            let mut seen = seen.lock();
            if seen.is_some_and(|seen| seen.view == view && cursor_at(seen.epoch, seen.last) == cursor) {
                return Ok(Progress::Unchanged(cursor.clone()));
            }
            let (progress, end) = changes_since(connection, &cursor)?;
            *seen = Some(Seen { view, epoch: end.epoch, last: end.last });
            Ok(progress)
        };
        self.queue.ask("changes_since", self.pool.limit(), work).await
    }

    async fn changed_users_since(&self, cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
        let cursor = cursor.clone();
        let work = move |connection: &Opened| Ok(changed_users_since(connection, &cursor)?);
        self.queue.ask("changed_users_since", self.pool.limit(), work).await
    }
}

/// Where the log begins and ends.
struct End {
    epoch: i64,
    first: i64,
    last: i64,
}

fn find_end(connection: &Connection) -> rusqlite::Result<End> {
    let sql = "SELECT (SELECT born FROM directory_epoch), (SELECT coalesce(min(seq), 0) FROM directory_change), \
               (SELECT coalesce(max(seq), 0) FROM directory_change)";
    connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok(End { epoch: row.get(0)?, first: row.get(1)?, last: row.get(2)? }))
}

/// As in PostgreSQL: everything below `xmax` was committed.
fn cursor_at(epoch: i64, last: i64) -> Cursor {
    let xmax = u64::try_from(last).unwrap_or(0).saturating_add(1);
    Cursor { epoch, xmin: xmax, xmax, xip: Vec::new() }
}

/// The number in the log that a cursor stands on, or why it stands on none.
fn locate(connection: &Connection, cursor: &Cursor, end: &End) -> rusqlite::Result<Result<i64, ResetReason>> {
    let at = cursor.xmax.checked_sub(1).and_then(|at| i64::try_from(at).ok());
    let (true, Some(at)) = (cursor.epoch == end.epoch, at) else { return Ok(Err(ResetReason::Epoch)) };
    if at < end.first {
        return Ok(Err(ResetReason::Trimmed));
    }
    // A number that this log never gave: the file was restored, or the token is of a copy of it.
    if at == end.last {
        return Ok(Ok(at));
    }
    let is_ours = connection.prepare_cached("SELECT 1 FROM directory_change WHERE seq = ?1")?.exists([at])?;
    Ok(if is_ours { Ok(at) } else { Err(ResetReason::Epoch) })
}

fn changes_since(connection: &Connection, cursor: &Cursor) -> rusqlite::Result<(Progress, End)> {
    let transaction = connection.unchecked_transaction()?;
    let end = find_end(&transaction)?;
    let at = match locate(&transaction, cursor, &end)? {
        Ok(at) => at,
        Err(reason) => return Ok((Progress::Reset(reason), end)),
    };
    if at == end.last {
        return Ok((Progress::Unchanged(cursor.clone()), end));
    }
    let sql = "SELECT count(*), count(*) FILTER (WHERE user_id IS NULL AND zone_id IS NULL) \
               FROM (SELECT user_id, zone_id FROM directory_change WHERE seq > ?1 LIMIT ?2)";
    let (keys, everything): (i64, i64) =
        transaction.prepare_cached(sql)?.query_row(params![at, MAX_KEYS + 1], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if keys > MAX_KEYS || everything > 0 {
        return Ok((Progress::Reset(ResetReason::Bulk), end));
    }
    let global_ids = written_since(&transaction, at)?;
    let cursor = cursor_at(end.epoch, end.last);
    let mut changes = Changes { cursor, users: Vec::new(), zones: Vec::new(), global_ids };
    let sql = "SELECT DISTINCT user_id FROM directory_change WHERE seq > ?1 AND user_id IS NOT NULL";
    let mut statement = transaction.prepare_cached(sql)?;
    for id in statement.query_map([at], |row| row.get(0))? {
        let id = id?;
        changes.users.push((id, find_user(&transaction, id)?.map(Arc::new)));
    }
    let sql = "SELECT DISTINCT zone_id FROM directory_change WHERE seq > ?1 AND zone_id IS NOT NULL";
    let mut statement = transaction.prepare_cached(sql)?;
    for zone_id in statement.query_map([at], |row| Ok(Arc::from(codec::text(row, 0)?)))? {
        let zone_id: Arc<str> = zone_id?;
        let zone = find_zone(&transaction, &zone_id)?;
        changes.zones.push((zone_id, zone));
    }
    Ok((Progress::Changed(changes), end))
}

fn changed_users_since(connection: &Connection, cursor: &Cursor) -> rusqlite::Result<Option<Vec<i64>>> {
    let transaction = connection.unchecked_transaction()?;
    let end = find_end(&transaction)?;
    let Ok(at) = locate(&transaction, cursor, &end)? else { return Ok(None) };
    let sql = "SELECT 1 FROM directory_change WHERE seq > ?1 AND user_id IS NULL AND zone_id IS NULL";
    if transaction.prepare_cached(sql)?.exists([at])? {
        return Ok(None);
    }
    written_since(&transaction, at).map(Some)
}

fn written_since(connection: &Connection, at: i64) -> rusqlite::Result<Vec<i64>> {
    let sql =
        "SELECT DISTINCT global_id FROM directory_change WHERE seq > ?1 AND global_id IS NOT NULL ORDER BY global_id";
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_map([at], |row| row.get(0))?.collect()
}

fn read_everything(connection: &Connection) -> rusqlite::Result<Loaded> {
    let transaction = connection.unchecked_transaction()?;
    let end = find_end(&transaction)?;
    let sql = "SELECT zone_id, zone_name, created_at, updated_at, x1, y1, x2, y2, x3, y3, x4, y4 \
               FROM working_zone ORDER BY zone_id";
    let zones: Vec<Zone> = transaction.prepare(sql)?.query_map([], zone_of)?.collect::<rusqlite::Result<_>>()?;
    let shared: HashMap<&str, &Arc<str>> = zones.iter().map(|zone| (&*zone.zone_id, &zone.zone_id)).collect();
    let mut assigned: HashMap<i64, Vec<Arc<str>>> = HashMap::new();
    let mut statement = transaction.prepare("SELECT user_id, zone_id FROM user_zone_association ORDER BY position")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let zone_id = codec::text(row, 1)?;
        let zone_id = shared.get(&*zone_id).map_or_else(|| Arc::from(&*zone_id), |known| Arc::clone(known));
        assigned.entry(row.get(0)?).or_default().push(zone_id);
    }
    let mut statement =
        transaction.prepare(r#"SELECT id, global_id, name, created_at, updated_at FROM "user" ORDER BY global_id"#)?;
    let users = statement.query_map([], user_of)?.map(|user| {
        let user = user?;
        Ok(User { zone_ids: assigned.remove(&user.id).unwrap_or_default().into(), ..user })
    });
    let users = users.collect::<rusqlite::Result<_>>()?;
    Ok(Loaded { cursor: cursor_at(end.epoch, end.last), users, zones })
}
