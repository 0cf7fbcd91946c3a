//! `DirectoryStore` over SQL. Each command is one unit of work of the only writer, so what it looked up
//! holds until its end; refusals are decided before anything is changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::codec;
use super::connection::Opened;
use super::feed::Feed;
use super::pool::Pool;
use crate::directory::geometry::check_polygon;
use crate::directory::store::{DirectoryFeed, DirectoryStore};
use crate::directory::{Command, NewUser, NewZone, Outcome, Refusal, User, UserPatch, WriteError, Zone, ZonePatch};
use crate::store_error::StoreError;
use crate::time::Timestamp;

pub struct SqliteDirectory {
    pool: Pool,
}

type Verdict = Result<Outcome, Refusal>;

impl SqliteDirectory {
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl DirectoryStore for SqliteDirectory {
    async fn write(&self, command: Command) -> Result<Outcome, WriteError> {
        let work = move |connection: &Opened| Ok(apply(connection, &command)?);
        Ok(self.pool.write("directory_write", work).await??)
    }

    async fn write_all(&self, commands: Vec<Command>) -> Result<Vec<Verdict>, StoreError> {
        let work = move |connection: &Opened| {
            let verdicts = commands.iter().map(|command| apply(connection, command));
            Ok(verdicts.collect::<rusqlite::Result<_>>()?)
        };
        self.pool.write("directory_write_all", work).await
    }

    async fn read_users_dict(&self) -> Result<BTreeMap<i64, String>, StoreError> {
        let work = |connection: &Opened| {
            let mut statement =
                connection.prepare_cached(r#"SELECT global_id, name FROM "user" ORDER BY global_id"#)?;
            let entries = statement.query_map([], |row| Ok((row.get(0)?, codec::text(row, 1)?.into_owned())))?;
            Ok(entries.collect::<rusqlite::Result<_>>()?)
        };
        self.pool.read("read_users_dict", work).await
    }

    async fn begin_epoch(&self) -> Result<(), StoreError> {
        let sql = "UPDATE directory_epoch SET born = random() & 0x0fffffffffffffff";
        self.pool.write("begin_epoch", move |connection: &Opened| Ok(connection.execute(sql, [])?)).await.map(|_| ())
    }

    async fn open_feed(&self) -> Result<Arc<dyn DirectoryFeed>, StoreError> {
        // Before the migration there is nothing to follow.
        self.pool.until_usable().await;
        Ok(Arc::new(Feed::open(&self.pool).await?))
    }
}

fn apply(connection: &Connection, command: &Command) -> rusqlite::Result<Verdict> {
    match command {
        Command::CreateUser(user) => create_user(connection, user),
        Command::UpdateUser { id, patch } => update_user(connection, *id, patch),
        Command::DeleteUser { id } => {
            let deleted = execute(connection, r#"DELETE FROM "user" WHERE id = ?1"#, params![id])?;
            Ok(if deleted > 0 { Ok(Outcome::Deleted) } else { Err(Refusal::UserNotFound { id: *id }) })
        }
        Command::AssignZones { id, zone_ids } => assign_zones(connection, *id, zone_ids),
        Command::AddZone { id, zone_id } => add_zone(connection, *id, zone_id),
        Command::RemoveZone { id, zone_id } => remove_zone(connection, *id, zone_id),
        Command::CreateZone(zone) => create_zone(connection, zone),
        Command::UpdateZone { zone_id, patch } => update_zone(connection, zone_id, patch),
        Command::DeleteZone { zone_id } => {
            let deleted = execute(connection, "DELETE FROM working_zone WHERE zone_id = ?1", params![zone_id])?;
            Ok(if deleted > 0 { Ok(Outcome::Deleted) } else { Err(zone_not_found(zone_id)) })
        }
    }
}

fn create_user(connection: &Connection, user: &NewUser) -> rusqlite::Result<Verdict> {
    let unknown = find_unknown_zones(connection, &user.zone_ids)?;
    if !unknown.is_empty() {
        return Ok(Err(Refusal::UnknownZones { zone_ids: unknown }));
    }
    // An INSERT that the unique index refuses would have written to the log before, and so cost a commit.
    if exists(connection, r#"SELECT 1 FROM "user" WHERE global_id = ?1"#, params![user.global_id])? {
        return Ok(Err(Refusal::UserExists { global_id: user.global_id }));
    }
    let now = Timestamp::now();
    let sql = r#"INSERT INTO "user" (global_id, name, created_at) VALUES (?1, ?2, ?3)"#;
    execute(connection, sql, params![user.global_id, user.name, now.as_micros()])?;
    let id = connection.last_insert_rowid();
    if user.zone_ids.is_empty() {
        // As it stands there now, without looking.
        let (name, zone_ids) = (user.name.as_str().into(), [].into());
        let user = User { id, global_id: user.global_id, name, zone_ids, created_at: now, updated_at: None };
        return Ok(Ok(Outcome::User(user)));
    }
    put_assignments(connection, id, &user.zone_ids, now)?;
    get_user(connection, id).map(|user| user.map(Outcome::User))
}

fn update_user(connection: &Connection, id: i64, patch: &UserPatch) -> rusqlite::Result<Verdict> {
    let user = match get_user(connection, id)? {
        Ok(user) => user,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let wanted = patch.zone_ids.as_deref().unwrap_or_default();
    let unknown = find_unknown_zones(connection, wanted)?;
    if !unknown.is_empty() {
        return Ok(Err(Refusal::UnknownZones { zone_ids: unknown }));
    }
    if let Some(name) = patch.name.as_ref().filter(|name| ***name != *user.name) {
        execute(connection, r#"UPDATE "user" SET name = ?2 WHERE id = ?1"#, params![id, name])?;
    }
    if patch.zone_ids.is_some() && !is_same(&user.zone_ids, wanted) {
        replace_assignments(connection, &user, wanted)?;
    }
    get_user(connection, id).map(|user| user.map(Outcome::User))
}

fn assign_zones(connection: &Connection, id: i64, zone_ids: &[String]) -> rusqlite::Result<Verdict> {
    let user = match get_user(connection, id)? {
        Ok(user) => user,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let unknown = find_unknown_zones(connection, zone_ids)?;
    if !unknown.is_empty() {
        return Ok(Err(Refusal::UnknownZones { zone_ids: unknown }));
    }
    let changed = !is_same(&user.zone_ids, zone_ids);
    if changed {
        replace_assignments(connection, &user, zone_ids)?;
    }
    assignments(connection, id, changed)
}

fn add_zone(connection: &Connection, id: i64, zone_id: &String) -> rusqlite::Result<Verdict> {
    let user = match get_user(connection, id)? {
        Ok(user) => user,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if !find_unknown_zones(connection, std::slice::from_ref(zone_id))?.is_empty() {
        return Ok(Err(zone_not_found(zone_id)));
    }
    let is_new = user.zone_ids.iter().all(|present| **present != **zone_id);
    if is_new {
        put_assignments(connection, id, std::slice::from_ref(zone_id), Timestamp::now())?;
    }
    assignments(connection, id, is_new)
}

fn remove_zone(connection: &Connection, id: i64, zone_id: &str) -> rusqlite::Result<Verdict> {
    if let Err(refusal) = get_user(connection, id)? {
        return Ok(Err(refusal));
    }
    let sql = "DELETE FROM user_zone_association WHERE user_id = ?1 AND zone_id = ?2";
    let removed = execute(connection, sql, params![id, zone_id])?;
    assignments(connection, id, removed > 0)
}

fn create_zone(connection: &Connection, zone: &NewZone) -> rusqlite::Result<Verdict> {
    if find_zone(connection, &zone.zone_id)?.is_some() {
        return Ok(Err(Refusal::ZoneExists { zone_id: zone.zone_id.clone() }));
    }
    let sql = "INSERT INTO working_zone (zone_id, zone_name, x1, y1, x2, y2, x3, y3, x4, y4, created_at) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let [[x1, y1], [x2, y2], [x3, y3], [x4, y4]] = zone.corners;
    let now = Timestamp::now().as_micros();
    execute(connection, sql, params![zone.zone_id, zone.zone_name, x1, y1, x2, y2, x3, y3, x4, y4, now])?;
    zone_outcome(connection, &zone.zone_id)
}

fn update_zone(connection: &Connection, zone_id: &str, patch: &ZonePatch) -> rusqlite::Result<Verdict> {
    let Some(zone) = find_zone(connection, zone_id)? else { return Ok(Err(zone_not_found(zone_id))) };
    let name = patch.zone_name.as_deref().unwrap_or(&zone.zone_name);
    let mut corners = zone.corners;
    for (corner, wanted) in corners.iter_mut().flatten().zip(patch.corners.iter().flatten()) {
        *corner = wanted.unwrap_or(*corner);
    }
    if corners == zone.corners && name == &*zone.zone_name {
        return Ok(Ok(Outcome::Zone(zone)));
    }
    if corners != zone.corners
        && let Err(fault) = check_polygon(&corners)
    {
        return Ok(Err(Refusal::InvalidPolygon(fault)));
    }
    let sql = "UPDATE working_zone SET zone_name = ?2, x1 = ?3, y1 = ?4, x2 = ?5, y2 = ?6, x3 = ?7, y3 = ?8, x4 = ?9, \
               y4 = ?10 WHERE zone_id = ?1";
    let [[x1, y1], [x2, y2], [x3, y3], [x4, y4]] = corners;
    execute(connection, sql, params![zone_id, name, x1, y1, x2, y2, x3, y3, x4, y4])?;
    zone_outcome(connection, zone_id)
}

/// Those that do not exist, in the order they were named.
fn find_unknown_zones(connection: &Connection, zone_ids: &[String]) -> rusqlite::Result<Vec<String>> {
    let mut unknown = Vec::new();
    for zone_id in zone_ids {
        if !exists(connection, "SELECT 1 FROM working_zone WHERE zone_id = ?1", params![zone_id])? {
            unknown.push(zone_id.clone());
        }
    }
    Ok(unknown)
}

fn get_user(connection: &Connection, id: i64) -> rusqlite::Result<Result<User, Refusal>> {
    Ok(find_user(connection, id)?.ok_or(Refusal::UserNotFound { id }))
}

pub fn find_user(connection: &Connection, id: i64) -> rusqlite::Result<Option<User>> {
    let sql = r#"SELECT id, global_id, name, created_at, updated_at FROM "user" WHERE id = ?1"#;
    let user = connection.prepare_cached(sql)?.query_row([id], user_of).optional()?;
    let Some(user) = user else { return Ok(None) };
    let sql = "SELECT zone_id FROM user_zone_association WHERE user_id = ?1 ORDER BY position";
    let mut statement = connection.prepare_cached(sql)?;
    let zone_ids = statement.query_map([id], |row| Ok(Arc::from(codec::text(row, 0)?)))?;
    Ok(Some(User { zone_ids: zone_ids.collect::<rusqlite::Result<_>>()?, ..user }))
}

/// From the columns id, global_id, name, created_at, updated_at; without its zones.
pub fn user_of(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: row.get(0)?,
        global_id: row.get(1)?,
        name: codec::text(row, 2)?.into(),
        zone_ids: Box::default(),
        created_at: codec::time(row, 3)?,
        updated_at: codec::optional_time(row, 4)?,
    })
}

fn zone_outcome(connection: &Connection, zone_id: &str) -> rusqlite::Result<Verdict> {
    Ok(find_zone(connection, zone_id)?.map(Outcome::Zone).ok_or_else(|| zone_not_found(zone_id)))
}

pub fn find_zone(connection: &Connection, zone_id: &str) -> rusqlite::Result<Option<Zone>> {
    let sql = "SELECT zone_id, zone_name, created_at, updated_at, x1, y1, x2, y2, x3, y3, x4, y4 \
               FROM working_zone WHERE zone_id = ?1";
    connection.prepare_cached(sql)?.query_row([zone_id], zone_of).optional()
}

/// From the columns zone_id, zone_name, created_at, updated_at, x1 … y4.
pub fn zone_of(row: &Row<'_>) -> rusqlite::Result<Zone> {
    let mut corners = [[0.0; 2]; 4];
    for (index, coordinate) in corners.iter_mut().flatten().enumerate() {
        *coordinate = row.get(4 + index)?;
    }
    Ok(Zone {
        zone_id: codec::text(row, 0)?.into(),
        zone_name: codec::text(row, 1)?.into(),
        corners,
        created_at: codec::time(row, 2)?,
        updated_at: codec::optional_time(row, 3)?,
    })
}

fn replace_assignments(connection: &Connection, user: &User, zone_ids: &[String]) -> rusqlite::Result<()> {
    let sql = "DELETE FROM user_zone_association WHERE user_id = ?1 AND zone_id = ?2";
    for zone_id in user.zone_ids.iter().filter(|present| zone_ids.iter().all(|wanted| *wanted != ***present)) {
        execute(connection, sql, params![user.id, zone_id])?;
    }
    put_assignments(connection, user.id, zone_ids, Timestamp::now())
}

/// Those that stay keep the time they were made and take their new place.
fn put_assignments(
    connection: &Connection,
    id: i64,
    zone_ids: &[String],
    created_at: Timestamp,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO user_zone_association (user_id, zone_id, created_at) VALUES (?1, ?2, ?3) \
               ON CONFLICT (user_id, zone_id) DO UPDATE SET \
               position = (SELECT max(position) FROM user_zone_association) + 1";
    for zone_id in zone_ids {
        execute(connection, sql, params![id, zone_id, created_at.as_micros()])?;
    }
    Ok(())
}

fn assignments(connection: &Connection, id: i64, changed: bool) -> rusqlite::Result<Verdict> {
    let user = get_user(connection, id)?;
    Ok(user.map(|user| Outcome::Assignments { zone_ids: user.zone_ids.into_vec(), changed }))
}

fn exists(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.exists(parameters)
}

fn execute(connection: &Connection, sql: &str, parameters: impl rusqlite::Params) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(parameters)
}

fn is_same(present: &[Arc<str>], wanted: &[String]) -> bool {
    present.iter().map(AsRef::as_ref).eq(wanted.iter().map(String::as_str))
}

fn zone_not_found(zone_id: &str) -> Refusal {
    Refusal::ZoneNotFound { zone_id: zone_id.to_owned() }
}
