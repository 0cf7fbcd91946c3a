//! `DirectoryStore` over SQL. Each command is one transaction: what it needs is locked (zones before
//! the user, as the deletion of a zone does), refusals are decided before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Object, Transaction};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;

use super::codec::{Time, Xid};
use super::connection::Endpoint;
use super::error::{DEPENDENCY, is_about_rows};
use super::feed::{Created, CreatedHere, Feed};
use super::pool::{Pool, WorkError};
use crate::directory::geometry::check_polygon;
use crate::directory::store::{DirectoryFeed, DirectoryStore};
use crate::directory::{Command, NewUser, NewZone, Outcome, Refusal, User, UserPatch, WriteError, Zone, ZonePatch};
use crate::gathering::{Gathering, PATIENCE};
use crate::lifecycle::Lifecycle;
use crate::store_error::StoreError;

/// Users that are created by one statement.
const GROUP_USERS: usize = 512;
/// Users that wait for the next group; more callers wait for a place.
const QUEUED_USERS: usize = 4096;
/// A group of these is not waited for any more: what a row costs outweighs by far what a statement and a commit do,
/// and while it is on its way the service can answer the one before.
const ENOUGH_USERS: usize = 48;

pub struct PostgresDirectory {
    pool: Pool,
    endpoint: Endpoint,
    limit: Duration,
    lifecycle: Lifecycle,
    creations: Creations,
    created_here: CreatedHere,
}

type Verdict = Result<Outcome, Refusal>;

impl PostgresDirectory {
    pub fn start(pool: Pool, endpoint: Endpoint, limit: Duration, lifecycle: &Lifecycle) -> Self {
        let created_here = CreatedHere::default();
        let creations = Creations::start(pool.clone(), limit, lifecycle, created_here.clone());
        Self { pool, endpoint, limit, lifecycle: lifecycle.clone(), creations, created_here }
    }
}

#[async_trait]
impl DirectoryStore for PostgresDirectory {
    async fn write(&self, command: Command) -> Result<Outcome, WriteError> {
        let command = match command {
            Command::CreateUser(user) if user.zone_ids.is_empty() => return Ok(self.creations.create(user).await??),
            command => command,
        };
        let pool = self.pool.clone();
        let writing = self.lifecycle.spawn_work(async move {
            let command = &command;
            let writing = pool.run("directory_write", move |mut lease| async move {
                let verdict = carry_out(lease.client()?, command).await?;
                Ok((lease, verdict))
            });
            writing.await
        });
        Ok(writing.await.map_err(|join| StoreError::unavailable(DEPENDENCY, join))???)
    }

    async fn write_all(&self, commands: Vec<Command>) -> Result<Vec<Verdict>, StoreError> {
        let commands = &commands;
        self.pool
            .run("directory_write_all", move |mut lease| async move {
                let client = lease.client()?;
                let transaction = client.transaction().await?;
                let mut verdicts = Vec::with_capacity(commands.len());
                for command in commands {
                    verdicts.push(apply(&transaction, command).await?);
                }
                transaction.commit().await?;
                Ok((lease, verdicts))
            })
            .await
    }

    async fn read_users_dict(&self) -> Result<BTreeMap<i64, String>, StoreError> {
        self.pool
            .run("read_users_dict", move |mut lease| async move {
                let client = lease.client()?;
                let statement = client.prepare_cached(r#"SELECT global_id, name FROM "user""#).await?;
                let rows = client.query(&statement, &[]).await?;
                let entries = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
                Ok((lease, entries.collect::<Result<_, tokio_postgres::Error>>()?))
            })
            .await
    }

    async fn begin_epoch(&self) -> Result<(), StoreError> {
        self.pool
            .run("begin_epoch", move |mut lease| async move {
                lease.client()?.execute("SELECT directory_begin_epoch()", &[]).await?;
                Ok((lease, ()))
            })
            .await
    }

    async fn open_feed(&self) -> Result<Arc<dyn DirectoryFeed>, StoreError> {
        // Before the migration there is nothing to follow.
        self.pool.until_usable().await;
        Ok(Arc::new(Feed::open(&self.endpoint, self.limit, self.created_here.clone()).await?))
    }
}

/// Users without zones, created in groups: one statement and one commit for all that came meanwhile. A commit waits for
/// the disk whatever is in it, so the larger the groups the more users a second.
struct Creations {
    limit: Duration,
    queue: mpsc::Sender<Creation>,
}

/// A user that waits to be created.
struct Creation {
    user: NewUser,
    /// Then whoever asked for it is told that it took too long, so it must not be created any more.
    expires_at: Instant,
    answer: oneshot::Sender<Result<Verdict, StoreError>>,
}

impl Creations {
    /// `limit`: how long a creation may take, the wait for its group included.
    fn start(pool: Pool, limit: Duration, lifecycle: &Lifecycle, created_here: CreatedHere) -> Self {
        let (queue, creations) = mpsc::channel(QUEUED_USERS);
        let creating = create_in_groups(pool, creations, created_here, lifecycle.closing().clone());
        lifecycle.spawn_service("creation of users", creating);
        Self { limit, queue }
    }

    /// Answers when the user is durable. Cancel-safe: who leaves disturbs nobody.
    async fn create(&self, user: NewUser) -> Result<Verdict, StoreError> {
        let stopping = || StoreError::unavailable_because(DEPENDENCY, "the service is stopping");
        let (answer, answered) = oneshot::channel();
        let expires_at = Instant::now() + self.limit;
        let creating = async {
            self.queue.send(Creation { user, expires_at, answer }).await.map_err(|_| stopping())?;
            answered.await.unwrap_or_else(|_| Err(stopping()))
        };
        timeout_at(expires_at, creating).await.unwrap_or_else(|_| {
            let limit_ms = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
            Err(StoreError::Deadline { dependency: DEPENDENCY, operation: "create_users", limit_ms })
        })
    }
}

/// What came while one group was on its way is the next.
async fn create_in_groups(
    pool: Pool,
    mut queue: mpsc::Receiver<Creation>,
    created_here: CreatedHere,
    closing: CancellationToken,
) -> anyhow::Result<()> {
    let (mut group, mut created) = (Vec::new(), Vec::new());
    let (mut gathering, mut expected) = (Gathering::default(), 0);
    loop {
        let wanted = ENOUGH_USERS.min(expected);
        let may_wait = queue.len() < wanted && gathering.may_wait();
        // Else those who wait leave first, and the others are answered while they are on their way.
        if queue.is_empty() || may_wait {
            answer(&mut created);
        }
        let patient_until = Instant::now() + PATIENCE;
        tokio::select! {
            biased;
            1.. = queue.recv_many(&mut group, GROUP_USERS) => {}
            () = closing.cancelled() => return Ok(()),
        }
        if may_wait && group.len() < wanted && Instant::now() < patient_until {
            let all = async {
                while group.len() < wanted {
                    let room = GROUP_USERS - group.len();
                    if queue.recv_many(&mut group, room).await == 0 {
                        break;
                    }
                }
            };
            gathering.waited(timeout_at(patient_until, all).await.is_ok());
        }
        let now = Instant::now();
        group.retain(|creation: &Creation| now < creation.expires_at);
        let users: Vec<&NewUser> = group.iter().map(|creation| &creation.user).collect();
        let (users, created_here) = (&users, &created_here);
        let creating = pool.run("create_users", move |mut lease| async move {
            let verdicts = create_group(lease.client()?, users, created_here).await?;
            Ok((lease, verdicts))
        });
        let (verdicts, ()) = tokio::join!(creating, async { answer(&mut created) });
        let verdicts = match verdicts {
            Ok(verdicts) => verdicts,
            Err(error) => users.iter().map(|_| Err(error.repeat())).collect(),
        };
        // All who were seen around this commit.
        expected = group.len() + queue.len();
        created.extend(group.drain(..).zip(verdicts));
    }
}

fn answer(created: &mut Vec<(Creation, Result<Verdict, StoreError>)>) {
    for (creation, verdict) in created.drain(..) {
        if creation.answer.send(verdict).is_err() {
            tracing::debug!("who asked for a user went away before it was created");
        }
    }
}

/// A verdict for each. A row that the database refuses for reasons of its own (a constraint that was
/// added) is found by halving, so that it costs its neighbours nothing.
async fn create_group(
    client: &mut Object,
    users: &[&NewUser],
    created_here: &CreatedHere,
) -> Result<Vec<Result<Verdict, StoreError>>, WorkError> {
    // The first of several with one global id is created; sorted, so that two groups do not deadlock.
    let mut firsts: BTreeMap<i64, &NewUser> = BTreeMap::new();
    for user in users {
        firsts.entry(user.global_id).or_insert(user);
    }
    let firsts: Vec<&NewUser> = firsts.into_values().collect();
    let sql = r#"INSERT INTO "user" (global_id, name) SELECT * FROM unnest($1::bigint[], $2::text[])
        ON CONFLICT (global_id) DO NOTHING RETURNING id, global_id, name, created_at, updated_at, ARRAY[]::text[],
            pg_current_xact_id(), (SELECT born FROM directory_epoch)"#;
    let statement = client.prepare_cached(sql).await?;
    let mut created: BTreeMap<i64, Result<User, StoreError>> = BTreeMap::new();
    let mut pieces = vec![firsts.as_slice()];
    while let Some(piece) = pieces.pop() {
        let global_ids: Vec<i64> = piece.iter().map(|user| user.global_id).collect();
        let names: Vec<&str> = piece.iter().map(|user| user.name.as_str()).collect();
        match client.query(&statement, &[&global_ids, &names]).await {
            Ok(rows) => {
                let of_piece = rows.iter().map(user_of).collect::<Result<Vec<User>, _>>()?;
                if let Some(row) = rows.first()
                    && let Some(epoch) = row.try_get(7)?
                {
                    let users = of_piece.iter().cloned().map(Arc::new).collect();
                    created_here.record(Created { epoch, xid: row.try_get::<_, Xid>(6)?.0, users });
                }
                created.extend(of_piece.into_iter().map(|user| (user.global_id, Ok(user))));
            }
            Err(error) if !is_about_rows(&error) => return Err(error.into()),
            Err(error) => match piece {
                [user] => drop(created.insert(user.global_id, Err(StoreError::unavailable(DEPENDENCY, error)))),
                _ => pieces.extend(<[_; 2]>::from(piece.split_at(piece.len() / 2))),
            },
        }
    }
    let verdict = |user: &&NewUser| match created.remove(&user.global_id) {
        Some(Ok(user)) => Ok(Ok(Outcome::User(user))),
        Some(Err(error)) => {
            created.insert(user.global_id, Err(error.repeat()));
            Err(error)
        }
        None => Ok(Err(Refusal::UserExists { global_id: user.global_id })),
    };
    Ok(users.iter().map(verdict).collect())
}

async fn carry_out(client: &mut Object, command: &Command) -> Result<Verdict, WorkError> {
    let transaction = client.transaction().await?;
    let verdict = apply(&transaction, command).await?;
    transaction.commit().await?;
    Ok(verdict)
}

async fn apply(transaction: &Transaction<'_>, command: &Command) -> Result<Verdict, WorkError> {
    match command {
        Command::CreateUser(user) => create_user(transaction, user).await,
        Command::UpdateUser { id, patch } => update_user(transaction, *id, patch).await,
        Command::DeleteUser { id } => {
            let deleted = execute(transaction, r#"DELETE FROM "user" WHERE id = $1"#, &[id]).await?;
            Ok(if deleted > 0 { Ok(Outcome::Deleted) } else { Err(Refusal::UserNotFound { id: *id }) })
        }
        Command::AssignZones { id, zone_ids } => assign_zones(transaction, *id, zone_ids).await,
        Command::AddZone { id, zone_id } => add_zone(transaction, *id, zone_id).await,
        Command::RemoveZone { id, zone_id } => remove_zone(transaction, *id, zone_id).await,
        Command::CreateZone(zone) => create_zone(transaction, zone).await,
        Command::UpdateZone { zone_id, patch } => update_zone(transaction, zone_id, patch).await,
        Command::DeleteZone { zone_id } => {
            let deleted = execute(transaction, "DELETE FROM working_zone WHERE zone_id = $1", &[zone_id]).await?;
            Ok(if deleted > 0 { Ok(Outcome::Deleted) } else { Err(zone_not_found(zone_id)) })
        }
    }
}

async fn create_user(transaction: &Transaction<'_>, user: &NewUser) -> Result<Verdict, WorkError> {
    let unknown = lock_zones(transaction, &user.zone_ids).await?;
    if !unknown.is_empty() {
        return Ok(Err(Refusal::UnknownZones { zone_ids: unknown }));
    }
    let sql = r#"INSERT INTO "user" (global_id, name) VALUES ($1, $2) ON CONFLICT (global_id) DO NOTHING RETURNING id"#;
    let statement = transaction.prepare_cached(sql).await?;
    let Some(row) = transaction.query_opt(&statement, &[&user.global_id, &user.name]).await? else {
        return Ok(Err(Refusal::UserExists { global_id: user.global_id }));
    };
    let id: i64 = row.try_get(0)?;
    put_assignments(transaction, id, &user.zone_ids).await?;
    get_user(transaction, id).await.map(|user| user.map(Outcome::User))
}

async fn update_user(transaction: &Transaction<'_>, id: i64, patch: &UserPatch) -> Result<Verdict, WorkError> {
    let wanted = patch.zone_ids.as_deref().unwrap_or_default();
    let unknown = lock_zones(transaction, wanted).await?;
    let user = match lock_user(transaction, id).await? {
        Ok(user) => user,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if !unknown.is_empty() {
        return Ok(Err(Refusal::UnknownZones { zone_ids: unknown }));
    }
    if let Some(name) = patch.name.as_ref().filter(|name| ***name != *user.name) {
        execute(transaction, r#"UPDATE "user" SET name = $2 WHERE id = $1"#, &[&id, name]).await?;
    }
    if patch.zone_ids.is_some() && !is_same(&user.zone_ids, wanted) {
        replace_assignments(transaction, id, wanted).await?;
    }
    get_user(transaction, id).await.map(|user| user.map(Outcome::User))
}

async fn assign_zones(transaction: &Transaction<'_>, id: i64, zone_ids: &[String]) -> Result<Verdict, WorkError> {
    let unknown = lock_zones(transaction, zone_ids).await?;
    let user = match lock_user(transaction, id).await? {
        Ok(user) => user,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if !unknown.is_empty() {
        return Ok(Err(Refusal::UnknownZones { zone_ids: unknown }));
    }
    let changed = !is_same(&user.zone_ids, zone_ids);
    if changed {
        replace_assignments(transaction, id, zone_ids).await?;
    }
    assignments(transaction, id, changed).await
}

async fn add_zone(transaction: &Transaction<'_>, id: i64, zone_id: &String) -> Result<Verdict, WorkError> {
    let unknown = lock_zones(transaction, std::slice::from_ref(zone_id)).await?;
    if let Err(refusal) = lock_user(transaction, id).await? {
        return Ok(Err(refusal));
    }
    if !unknown.is_empty() {
        return Ok(Err(zone_not_found(zone_id)));
    }
    let sql = "INSERT INTO user_zone_association (user_id, zone_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let added = execute(transaction, sql, &[&id, zone_id]).await?;
    assignments(transaction, id, added > 0).await
}

async fn remove_zone(transaction: &Transaction<'_>, id: i64, zone_id: &String) -> Result<Verdict, WorkError> {
    if let Err(refusal) = lock_user(transaction, id).await? {
        return Ok(Err(refusal));
    }
    let sql = "DELETE FROM user_zone_association WHERE user_id = $1 AND zone_id = $2";
    let removed = execute(transaction, sql, &[&id, zone_id]).await?;
    assignments(transaction, id, removed > 0).await
}

async fn create_zone(transaction: &Transaction<'_>, zone: &NewZone) -> Result<Verdict, WorkError> {
    let sql = "INSERT INTO working_zone (zone_id, zone_name, x1, y1, x2, y2, x3, y3, x4, y4) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (zone_id) DO NOTHING";
    let [[x1, y1], [x2, y2], [x3, y3], [x4, y4]] = &zone.corners;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 10] =
        [&zone.zone_id, &zone.zone_name, x1, y1, x2, y2, x3, y3, x4, y4];
    if execute(transaction, sql, &parameters).await? == 0 {
        return Ok(Err(Refusal::ZoneExists { zone_id: zone.zone_id.clone() }));
    }
    get_zone(transaction, &zone.zone_id).await.map(|zone| zone.map(Outcome::Zone))
}

async fn update_zone(transaction: &Transaction<'_>, zone_id: &String, patch: &ZonePatch) -> Result<Verdict, WorkError> {
    let locked =
        execute(transaction, "SELECT FROM working_zone WHERE zone_id = $1 FOR NO KEY UPDATE", &[zone_id]).await?;
    if locked == 0 {
        return Ok(Err(zone_not_found(zone_id)));
    }
    let zone = match get_zone(transaction, zone_id).await? {
        Ok(zone) => zone,
        Err(refusal) => return Ok(Err(refusal)),
    };
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
    let sql = "UPDATE working_zone SET zone_name = $2, x1 = $3, y1 = $4, x2 = $5, y2 = $6, x3 = $7, y3 = $8, x4 = $9, \
               y4 = $10 WHERE zone_id = $1";
    let [[x1, y1], [x2, y2], [x3, y3], [x4, y4]] = &corners;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 10] = [zone_id, &name, x1, y1, x2, y2, x3, y3, x4, y4];
    execute(transaction, sql, &parameters).await?;
    get_zone(transaction, zone_id).await.map(|zone| zone.map(Outcome::Zone))
}

/// Keeps the zones from being deleted until the commit; answers those that do not exist.
async fn lock_zones(transaction: &Transaction<'_>, zone_ids: &[String]) -> Result<Vec<String>, WorkError> {
    if zone_ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT zone_id FROM working_zone WHERE zone_id = ANY($1) ORDER BY zone_id FOR KEY SHARE";
    let statement = transaction.prepare_cached(sql).await?;
    let rows = transaction.query(&statement, &[&zone_ids]).await?;
    let known: BTreeSet<&str> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(zone_ids.iter().filter(|zone_id| !known.contains(zone_id.as_str())).cloned().collect())
}

/// The user as it is once nobody else can change it. Two statements: the second one's snapshot is
/// younger than the lock, so it sees what the previous holder committed.
async fn lock_user(transaction: &Transaction<'_>, id: i64) -> Result<Result<User, Refusal>, WorkError> {
    let locked = execute(transaction, r#"SELECT FROM "user" WHERE id = $1 FOR NO KEY UPDATE"#, &[&id]).await?;
    if locked == 0 {
        return Ok(Err(Refusal::UserNotFound { id }));
    }
    get_user(transaction, id).await
}

async fn get_user(transaction: &Transaction<'_>, id: i64) -> Result<Result<User, Refusal>, WorkError> {
    let sql = r#"SELECT u.id, u.global_id, u.name, u.created_at, u.updated_at, ARRAY(
                     SELECT a.zone_id FROM user_zone_association AS a WHERE a.user_id = u.id ORDER BY a.position, a.zone_id
                 ) FROM "user" AS u WHERE u.id = $1"#;
    let statement = transaction.prepare_cached(sql).await?;
    match transaction.query_opt(&statement, &[&id]).await? {
        Some(row) => Ok(Ok(user_of(&row)?)),
        None => Ok(Err(Refusal::UserNotFound { id })),
    }
}

fn user_of(row: &Row) -> Result<User, tokio_postgres::Error> {
    let zone_ids: Vec<&str> = row.try_get(5)?;
    Ok(User {
        id: row.try_get(0)?,
        global_id: row.try_get(1)?,
        name: row.try_get::<_, &str>(2)?.into(),
        zone_ids: zone_ids.into_iter().map(Arc::from).collect(),
        created_at: row.try_get::<_, Time>(3)?.0,
        updated_at: row.try_get::<_, Option<Time>>(4)?.map(|time| time.0),
    })
}

async fn get_zone(transaction: &Transaction<'_>, zone_id: &String) -> Result<Result<Zone, Refusal>, WorkError> {
    let sql = "SELECT zone_id, zone_name, created_at, updated_at, x1, y1, x2, y2, x3, y3, x4, y4 \
               FROM working_zone WHERE zone_id = $1";
    let statement = transaction.prepare_cached(sql).await?;
    match transaction.query_opt(&statement, &[zone_id]).await? {
        Some(row) => Ok(Ok(zone_of(&row)?)),
        None => Ok(Err(zone_not_found(zone_id))),
    }
}

/// From the columns zone_id, zone_name, created_at, updated_at, x1 … y4.
pub fn zone_of(row: &Row) -> Result<Zone, tokio_postgres::Error> {
    let mut corners = [[0.0; 2]; 4];
    for (index, coordinate) in corners.iter_mut().flatten().enumerate() {
        *coordinate = row.try_get(4 + index)?;
    }
    Ok(Zone {
        zone_id: row.try_get::<_, &str>(0)?.into(),
        zone_name: row.try_get::<_, &str>(1)?.into(),
        corners,
        created_at: row.try_get::<_, Time>(2)?.0,
        updated_at: row.try_get::<_, Option<Time>>(3)?.map(|time| time.0),
    })
}

async fn replace_assignments(transaction: &Transaction<'_>, id: i64, zone_ids: &[String]) -> Result<(), WorkError> {
    let sql = "DELETE FROM user_zone_association WHERE user_id = $1 AND zone_id <> ALL ($2)";
    execute(transaction, sql, &[&id, &zone_ids]).await?;
    put_assignments(transaction, id, zone_ids).await
}

/// Those that stay keep the time they were made and take their new place.
async fn put_assignments(transaction: &Transaction<'_>, id: i64, zone_ids: &[String]) -> Result<(), WorkError> {
    if !zone_ids.is_empty() {
        let sql = "INSERT INTO user_zone_association (user_id, zone_id) \
                   SELECT $1, zone_id FROM unnest($2::text[]) WITH ORDINALITY AS wanted(zone_id, place) ORDER BY place \
                   ON CONFLICT (user_id, zone_id) DO UPDATE SET position = excluded.position";
        execute(transaction, sql, &[&id, &zone_ids]).await?;
    }
    Ok(())
}

async fn assignments(transaction: &Transaction<'_>, id: i64, changed: bool) -> Result<Verdict, WorkError> {
    let user = get_user(transaction, id).await?;
    Ok(user.map(|user| Outcome::Assignments { zone_ids: user.zone_ids.into_vec(), changed }))
}

async fn execute(
    transaction: &Transaction<'_>,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<u64, WorkError> {
    let statement = transaction.prepare_cached(sql).await?;
    Ok(transaction.execute(&statement, parameters).await?)
}

fn is_same(present: &[Arc<str>], wanted: &[String]) -> bool {
    present.iter().map(AsRef::as_ref).eq(wanted.iter().map(String::as_str))
}

fn zone_not_found(zone_id: &str) -> Refusal {
    Refusal::ZoneNotFound { zone_id: zone_id.to_owned() }
}
