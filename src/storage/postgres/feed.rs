//! `DirectoryFeed` over one pipelined connection: what became visible after a snapshot, from the
//! change log, together with the rows as they are now, in one statement and so at one moment. Users that this process
//! created itself are only counted there (decision 2).

use std::cmp;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use parking_lot::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::codec::{Time, Xid};
use super::connection::Endpoint;
use super::directory::zone_of;
use super::error::{DEPENDENCY, translate};
use crate::directory::store::{Changes, DirectoryFeed, Loaded, Progress, ResetReason};
use crate::directory::{Cursor, User, Zone};
use crate::store_error::StoreError;

/// Planned once and by index: to plan such a question takes longer than to answer it, and a plan made while
/// the tables were small or their statistics old would read all users for a handful of changes.
const SESSION: &str = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_hashjoin=off \
                       -c enable_mergejoin=off -c enable_hashagg=off -c enable_material=off";

/// More changed keys than this are loaded together with everything else.
const MAX_KEYS: i64 = 50_000;

/// Behind an answer that took longer the server counts as far, until one comes sooner: see [`Experience`].
const FAR: Duration = Duration::from_millis(10);

/// Did any transaction end at all, or is it another server? The cheapest question there is.
const LOOK: &str = "SELECT pg_current_snapshot()::text, (SELECT born FROM directory_epoch)";

/// The part of an epoch's home that costs a third of a whole question, because the server reads it from a file each time.
/// One session is one cluster's, so it is asked for once; its runs and tables may change under a session (behind a
/// pooler, by a restored dump), so they are asked for each time: `CHANGES` puts together what `directory_home()` does.
const CLUSTER: &str = "SELECT system_identifier::text FROM pg_control_system()";

/// $1: the cursor's xmax, $2: its running transactions, $3: its epoch, $4: `MAX_KEYS`, $5: `CLUSTER`,
/// $6: transactions of [`CreatedHere`], whose keys are only counted.
/// The first row (kind 0) is the moment itself, with the floor and the written global ids where others
/// have their zones, and these counts; users are kind 1, zones kind 2. All of it is one
/// statement, so it has one snapshot, the one that `pg_current_snapshot()` names.
/// Most users that change a lot have no zones: to sort none of them costs more than to see that there is none.
/// Not `EXISTS`, which the planner may answer by reading all assignments into memory first.
const CHANGES: &str = r#"
WITH epoch AS (
    SELECT born, floor FROM directory_epoch WHERE home = concat_ws('/', $5::text,
        extract(epoch FROM pg_postmaster_start_time()), (SELECT oid FROM pg_database WHERE datname = current_database()),
        tableoid)
), log AS MATERIALIZED (
    SELECT user_id, global_id, zone_id, xid = ANY ($6) AS known FROM directory_change
    WHERE (xid >= $1 OR xid = ANY ($2)) AND (SELECT born FROM epoch) = $3
    LIMIT $4::bigint + 1
), size AS MATERIALIZED (
    SELECT count(*) AS keys, count(*) FILTER (WHERE known) AS known,
        count(*) FILTER (WHERE known AND user_id IS NOT NULL AND global_id IS NOT NULL) AS known_users
    FROM log
), users AS (
    SELECT DISTINCT user_id FROM log
    WHERE NOT known AND user_id IS NOT NULL AND (SELECT keys FROM size) <= $4::bigint
), zones AS (
    SELECT DISTINCT zone_id FROM log WHERE zone_id IS NOT NULL AND (SELECT keys FROM size) <= $4::bigint
)
SELECT 0 AS kind, pg_current_snapshot()::text AS key, NULL AS name, NULL::timestamptz AS created_at,
    NULL::timestamptz AS updated_at, NULL::float8 AS x1, NULL::float8 AS y1, NULL::float8 AS x2, NULL::float8 AS y2,
    NULL::float8 AS x3, NULL::float8 AS y3, NULL::float8 AS x4, NULL::float8 AS y4,
    (SELECT born FROM epoch) AS id, (SELECT keys FROM size) AS global_id,
    (SELECT floor::text FROM epoch) || ARRAY(
        SELECT global_id::text FROM log
        WHERE NOT known AND global_id IS NOT NULL AND (SELECT keys FROM size) <= $4::bigint
    ) AS zone_ids,
    EXISTS (SELECT FROM log WHERE user_id IS NULL AND zone_id IS NULL) AS flag,
    (SELECT known FROM size) AS known, (SELECT known_users FROM size) AS known_users
UNION ALL
SELECT 1, NULL, u.name, u.created_at, u.updated_at, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    users.user_id, u.global_id,
    CASE WHEN (SELECT true FROM user_zone_association AS a WHERE a.user_id = u.id LIMIT 1) THEN
        ARRAY(SELECT a.zone_id FROM user_zone_association AS a WHERE a.user_id = u.id ORDER BY a.position, a.zone_id)
    ELSE '{}' END,
    u.id IS NOT NULL, NULL, NULL
FROM users LEFT JOIN "user" AS u ON u.id = users.user_id
UNION ALL
SELECT 2, zones.zone_id, z.zone_name, z.created_at, z.updated_at, z.x1, z.y1, z.x2, z.y2, z.x3, z.y3, z.x4, z.y4,
    NULL, NULL, NULL, z.zone_id IS NOT NULL, NULL, NULL
FROM zones LEFT JOIN working_zone AS z ON z.zone_id = zones.zone_id
"#;

/// $1: xmax, $2: running, $3: epoch, $4: xmin. No row: the log cannot tell.
const CHANGED_IDS: &str = "
SELECT ARRAY(
    SELECT DISTINCT global_id FROM directory_change
    WHERE (xid >= $1 OR xid = ANY ($2)) AND global_id IS NOT NULL ORDER BY global_id
), EXISTS (
    SELECT FROM directory_change
    WHERE (xid >= $1 OR xid = ANY ($2)) AND user_id IS NULL AND zone_id IS NULL
)
FROM directory_epoch WHERE home = directory_home() AND born = $3 AND floor <= $4";

pub struct Feed {
    endpoint: Endpoint,
    client: Client,
    created_here: CreatedHere,
    cluster: String,
    look: Statement,
    changes: Statement,
    changed_ids: Statement,
    limit: Duration,
    experience: Experience,
}

/// Users that this process created, by transaction, as the server answered them: the feed need not read them back,
/// which is most of what following many writes costs. What is missing here is read.
#[derive(Clone)]
pub struct CreatedHere {
    /// `None`: given up.
    newest: Arc<Mutex<Option<VecDeque<Arc<Created>>>>>,
}

/// All that one transaction did.
pub struct Created {
    /// In which it was numbered: elsewhere the same number is another transaction.
    pub epoch: i64,
    pub xid: u64,
    pub users: Vec<Arc<User>>,
}

/// Each key of the log is compared with as many transactions.
const KNOWN_TRANSACTIONS: usize = 64;

impl Default for CreatedHere {
    fn default() -> Self {
        Self { newest: Arc::new(Mutex::new(Some(VecDeque::new()))) }
    }
}

impl CreatedHere {
    /// Once its commit is acknowledged, so that whoever asks from now on sees it.
    pub fn record(&self, created: Created) {
        if let Some(newest) = &mut *self.newest.lock() {
            if newest.len() == KNOWN_TRANSACTIONS {
                newest.pop_front();
            }
            newest.push_back(Arc::new(created));
        }
    }

    /// What is not visible at `cursor`; the others are not kept any longer.
    fn since(&self, cursor: &Cursor) -> Vec<Arc<Created>> {
        let mut newest = self.newest.lock();
        let Some(newest) = &mut *newest else { return Vec::new() };
        newest.retain(|created| created.epoch == cursor.epoch && !cursor.contains(created.xid));
        newest.iter().cloned().collect()
    }

    /// From now on everything is read.
    fn give_up(&self) {
        *self.newest.lock() = None;
    }
}

/// Whether to look first, or to ask for the changes at once. A look costs the server a tenth of the other
/// question, but a second trip when something changed.
struct Experience {
    /// The last answer was another than the one before: the next one is likely to be as well.
    moving: AtomicBool,
    /// The last answer took so long that a second trip costs more than any question.
    far: AtomicBool,
}

impl Experience {
    fn new() -> Self {
        Self { moving: AtomicBool::new(true), far: AtomicBool::new(false) }
    }

    fn is_look_worth_its_trip(&self) -> bool {
        !self.moving.load(Ordering::Relaxed) && !self.far.load(Ordering::Relaxed)
    }

    /// Of either question, so that a single slow answer of a near server is soon forgotten.
    fn record_trip(&self, took: Duration) {
        self.far.store(took > FAR, Ordering::Relaxed);
    }

    fn record_change(&self, has_moved: bool) {
        self.moving.store(has_moved, Ordering::Relaxed);
    }
}

impl Feed {
    pub async fn open(endpoint: &Endpoint, limit: Duration, created_here: CreatedHere) -> Result<Self, StoreError> {
        let client = endpoint.with_options(SESSION).connect().await?;
        let opening = async {
            client.execute("SELECT directory_ensure_epoch()", &[]).await?;
            let cluster = client.query_one(CLUSTER, &[]).await?.try_get(0)?;
            let look = client.prepare(LOOK).await?;
            let changes = client.prepare(CHANGES).await?;
            let changed_ids = client.prepare(CHANGED_IDS).await?;
            Ok((cluster, look, changes, changed_ids))
        };
        let (cluster, look, changes, changed_ids) = within(limit, "open_feed", opening).await?;
        Ok(Self {
            endpoint: endpoint.clone(),
            client,
            created_here,
            cluster,
            look,
            changes,
            changed_ids,
            limit,
            experience: Experience::new(),
        })
    }
}

#[async_trait]
impl DirectoryFeed for Feed {
    /// On a connection of its own, so that validations do not queue behind it.
    async fn load(&self) -> Result<Loaded, StoreError> {
        let mut client = self.endpoint.connect().await?;
        read_everything(&mut client).await.map_err(|error| translate("load_directory", 0, error))?
    }

    async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
        within(self.limit, "changes_since", async {
            if self.experience.is_look_worth_its_trip() {
                let asked_at = Instant::now();
                let row = self.client.query_one(&self.look, &[]).await?;
                self.experience.record_trip(asked_at.elapsed());
                let born: Option<i64> = row.try_get(1)?;
                if born == Some(cursor.epoch) && is_snapshot(row.try_get(0)?, cursor) {
                    return Ok(Ok(Progress::Unchanged(cursor.clone())));
                }
            }
            let created = self.created_here.since(cursor);
            let rows = self.ask_changes(cursor, &created).await?;
            let mut progress = progress_of(&rows, cursor, &created)?;
            if let Ok(Progress::Unchanged(_) | Progress::Changed(_)) = &progress
                && let Some(mismatch) = find_mismatch(&rows, &created)?
            {
                progress = self.without_created_here(cursor, mismatch).await?;
            }
            if let Ok(Progress::Unchanged(after) | Progress::Changed(Changes { cursor: after, .. })) = &progress {
                self.experience.record_change(after != cursor);
            }
            Ok(progress)
        })
        .await?
    }

    async fn changed_users_since(&self, cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
        let xip: Vec<Xid> = cursor.xip.iter().copied().map(Xid).collect();
        within(self.limit, "changed_users_since", async {
            let parameters: [&(dyn ToSql + Sync); 4] = [&Xid(cursor.xmax), &xip, &cursor.epoch, &Xid(cursor.xmin)];
            let Some(row) = self.client.query_opt(&self.changed_ids, &parameters).await? else { return Ok(None) };
            let everything: bool = row.try_get(1)?;
            Ok(if everything { None } else { Some(row.try_get(0)?) })
        })
        .await
    }
}

impl Feed {
    async fn ask_changes(&self, cursor: &Cursor, created: &[Arc<Created>]) -> Result<Vec<Row>, tokio_postgres::Error> {
        let xip: Vec<Xid> = cursor.xip.iter().copied().map(Xid).collect();
        let known: Vec<Xid> = created.iter().map(|created| Xid(created.xid)).collect();
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&Xid(cursor.xmax), &xip, &cursor.epoch, &MAX_KEYS, &self.cluster, &known];
        let asked_at = Instant::now();
        let rows = self.client.query(&self.changes, &parameters).await?;
        self.experience.record_trip(asked_at.elapsed());
        Ok(rows)
    }

    async fn without_created_here(
        &self,
        cursor: &Cursor,
        mismatch: Mismatch,
    ) -> Result<Result<Progress, StoreError>, tokio_postgres::Error> {
        match mismatch {
            Mismatch::More => {
                // A trigger of somebody else's, most likely: it would do so again.
                tracing::info!("creating a user changes more than this user here, so users are read back from now on");
                self.created_here.give_up();
                progress_of(&self.ask_changes(cursor, &[]).await?, cursor, &[])
            }
            Mismatch::Less => {
                // Before anything else: it is what others learn of it by, and also we, should this answer be lost.
                self.client.execute("SELECT directory_begin_epoch()", &[]).await?;
                tracing::error!(
                    "the change log lacks users that were created here (are its triggers enabled? run \
                     `unified-backend doctor`); everything is loaded anew"
                );
                self.created_here.give_up();
                Ok(Ok(Progress::Reset(ResetReason::Epoch)))
            }
        }
    }
}

fn find_moment(rows: &[Row]) -> Option<&Row> {
    rows.iter().find(|row| matches!(row.try_get::<_, i32>(0), Ok(0)))
}

/// What the log has of transactions that created users, where that is not each of the users once.
enum Mismatch {
    More,
    Less,
}

/// All of these transactions are visible: they were acknowledged before the question.
fn find_mismatch(rows: &[Row], created: &[Arc<Created>]) -> Result<Option<Mismatch>, tokio_postgres::Error> {
    let Some(moment) = find_moment(rows) else { return Ok(None) };
    let (keys, users): (i64, i64) = (moment.try_get(17)?, moment.try_get(18)?);
    let expected: usize = created.iter().map(|created| created.users.len()).sum();
    Ok(match usize::try_from(users).unwrap_or_default().cmp(&expected) {
        cmp::Ordering::Equal if keys == users => None,
        cmp::Ordering::Less => Some(Mismatch::Less),
        _ => Some(Mismatch::More),
    })
}

fn progress_of(
    rows: &[Row],
    before: &Cursor,
    created: &[Arc<Created>],
) -> Result<Result<Progress, StoreError>, tokio_postgres::Error> {
    let Some(moment) = find_moment(rows) else {
        return Ok(Err(StoreError::corrupt(DEPENDENCY, "the change log answered without its moment")));
    };
    let epoch: Option<i64> = moment.try_get(13)?;
    if epoch != Some(before.epoch) {
        return Ok(Ok(Progress::Reset(ResetReason::Epoch)));
    }
    let Some(cursor) = parse_snapshot(moment.try_get(1)?, before.epoch) else {
        return Ok(Err(StoreError::corrupt(DEPENDENCY, "pg_current_snapshot() is not of the form xmin:xmax:list")));
    };
    // One server only goes forward: this is a copy from before, put in its place.
    if !before.is_within(&cursor) {
        return Ok(Ok(Progress::Reset(ResetReason::Epoch)));
    }
    let floor: Vec<Option<&str>> = moment.try_get(15)?;
    let mut numbers = floor.into_iter().flatten();
    let floor = numbers.next().and_then(|floor| floor.parse::<u64>().ok());
    if floor.is_none_or(|floor| before.xmin < floor) {
        return Ok(Ok(Progress::Reset(ResetReason::Trimmed)));
    }
    let (keys, everything): (i64, bool) = (moment.try_get(14)?, moment.try_get(16)?);
    if everything || keys > MAX_KEYS {
        return Ok(Ok(Progress::Reset(ResetReason::Bulk)));
    }
    if keys == 0 {
        return Ok(Ok(Progress::Unchanged(cursor)));
    }
    let created = created.iter().flat_map(|created| &created.users);
    let written = numbers.filter_map(|global_id| global_id.parse().ok());
    let mut global_ids: Vec<i64> = written.chain(created.clone().map(|user| user.global_id)).collect();
    global_ids.sort_unstable();
    global_ids.dedup();
    let mut changes = Changes { cursor, users: Vec::new(), zones: Vec::new(), global_ids };
    for row in rows {
        let present: bool = row.try_get(16)?;
        match row.try_get::<_, i32>(0)? {
            1 => {
                let user = if present { Some(Arc::new(changed_user(row)?)) } else { None };
                changes.users.push((row.try_get(13)?, user));
            }
            2 => {
                let zone_id: &str = row.try_get(1)?;
                let zone = if present { Some(changed_zone(row)?) } else { None };
                changes.zones.push((zone_id.into(), zone));
            }
            _ => {}
        }
    }
    // What was read is the row of now: whoever created it, somebody has changed it since.
    let read: HashSet<i64> = changes.users.iter().map(|(id, _)| *id).collect();
    let unread = created.filter(|user| !read.contains(&user.id));
    changes.users.extend(unread.map(|user| (user.id, Some(user.clone()))));
    Ok(Ok(Progress::Changed(changes)))
}

fn changed_user(row: &Row) -> Result<User, tokio_postgres::Error> {
    let zone_ids: Vec<&str> = row.try_get(15)?;
    Ok(User {
        id: row.try_get(13)?,
        global_id: row.try_get(14)?,
        name: row.try_get::<_, &str>(2)?.into(),
        zone_ids: zone_ids.into_iter().map(Arc::from).collect(),
        created_at: row.try_get::<_, Time>(3)?.0,
        updated_at: row.try_get::<_, Option<Time>>(4)?.map(|time| time.0),
    })
}

fn changed_zone(row: &Row) -> Result<Zone, tokio_postgres::Error> {
    let mut corners = [[0.0; 2]; 4];
    for (index, coordinate) in corners.iter_mut().flatten().enumerate() {
        *coordinate = row.try_get(5 + index)?;
    }
    Ok(Zone {
        zone_id: row.try_get::<_, &str>(1)?.into(),
        zone_name: row.try_get::<_, &str>(2)?.into(),
        corners,
        created_at: row.try_get::<_, Time>(3)?.0,
        updated_at: row.try_get::<_, Option<Time>>(4)?.map(|time| time.0),
    })
}

/// The locks come before the snapshot: a TRUNCATE that commits between the two would otherwise show
/// the tables empty to a snapshot in which they are not.
async fn read_everything(client: &mut Client) -> Result<Result<Loaded, StoreError>, tokio_postgres::Error> {
    client.execute("SELECT directory_ensure_epoch()", &[]).await?;
    let transaction =
        client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead).start().await?;
    // For this transaction alone, whoever shares the session.
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    transaction.batch_execute(r#"LOCK TABLE "user", working_zone, user_zone_association IN ACCESS SHARE MODE"#).await?;
    let sql = "SELECT pg_current_snapshot()::text, (SELECT born FROM directory_epoch WHERE home = directory_home())";
    let moment = transaction.query_one(sql, &[]).await?;
    let epoch: Option<i64> = moment.try_get(1)?;
    let Some(cursor) = epoch.and_then(|epoch| parse_snapshot(moment.get(0), epoch)) else {
        return Ok(Err(StoreError::corrupt(DEPENDENCY, "directory_epoch was emptied while the directory was loaded")));
    };
    let sql = "SELECT zone_id, zone_name, created_at, updated_at, x1, y1, x2, y2, x3, y3, x4, y4 \
               FROM working_zone ORDER BY zone_id";
    let zones: Vec<Zone> = transaction.query(sql, &[]).await?.iter().map(zone_of).collect::<Result<_, _>>()?;
    let shared: HashMap<&str, &Arc<str>> = zones.iter().map(|zone| (&*zone.zone_id, &zone.zone_id)).collect();
    let sql = r#"SELECT u.id, u.global_id, u.name, u.created_at, u.updated_at, a.zone_ids FROM "user" AS u
        LEFT JOIN (
            SELECT user_id, array_agg(zone_id ORDER BY position, zone_id) AS zone_ids
            FROM user_zone_association GROUP BY user_id
        ) AS a ON a.user_id = u.id ORDER BY u.global_id"#;
    let no_parameters: [&(dyn ToSql + Sync); 0] = [];
    let rows = transaction.query_raw(sql, no_parameters).await?;
    let mut rows = std::pin::pin!(rows);
    let mut users = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let zone_ids: Option<Vec<&str>> = row.try_get(5)?;
        let share = |zone_id: &str| shared.get(zone_id).map_or_else(|| Arc::from(zone_id), |known| Arc::clone(known));
        users.push(User {
            id: row.try_get(0)?,
            global_id: row.try_get(1)?,
            name: row.try_get::<_, &str>(2)?.into(),
            zone_ids: zone_ids.unwrap_or_default().into_iter().map(share).collect(),
            created_at: row.try_get::<_, Time>(3)?.0,
            updated_at: row.try_get::<_, Option<Time>>(4)?.map(|time| time.0),
        });
    }
    Ok(Ok(Loaded { cursor, users, zones }))
}

/// `xmin:xmax:xip,xip,…`
pub fn parse_snapshot(text: &str, epoch: i64) -> Option<Cursor> {
    let mut parts = text.split(':');
    let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let running = parts.next()?;
    let mut xip: Vec<u64> =
        running.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
    xip.sort_unstable();
    Some(Cursor { epoch, xmin, xmax, xip })
}

fn is_snapshot(text: &str, cursor: &Cursor) -> bool {
    parse_snapshot(text, cursor.epoch).is_some_and(|now| now == *cursor)
}

async fn within<T>(
    limit: Duration,
    operation: &'static str,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, StoreError> {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(|error| translate(operation, limit_ms, error)),
        Err(_) => Err(StoreError::Deadline { dependency: DEPENDENCY, operation, limit_ms }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_slow_answer_makes_a_server_far_no_longer_than_until_the_next() {
        let experience = Experience::new();
        assert!(!experience.is_look_worth_its_trip(), "who just came has something to catch up with");
        experience.record_change(false);
        assert!(experience.is_look_worth_its_trip());
        experience.record_trip(FAR * 5);
        experience.record_change(false);
        assert!(!experience.is_look_worth_its_trip());
        experience.record_trip(FAR / 5);
        assert!(experience.is_look_worth_its_trip());
        experience.record_change(true);
        assert!(!experience.is_look_worth_its_trip());
    }

    #[test]
    fn what_was_created_here_is_known_until_it_is_seen_and_nowhere_else() {
        let created_here = CreatedHere::default();
        let record = |epoch, xid| created_here.record(Created { epoch, xid, users: Vec::new() });
        let since =
            |cursor: &Cursor| -> Vec<u64> { created_here.since(cursor).iter().map(|created| created.xid).collect() };
        let cursor = parse_snapshot("10:20:10,14", 7).expect("a snapshot");
        for (epoch, xid) in [(7, 9), (7, 10), (7, 12), (6, 14), (7, 14), (7, 20), (8, 21), (7, 22)] {
            record(epoch, xid);
        }
        assert_eq!(since(&cursor), [10, 14, 20, 22]);
        assert_eq!(since(&cursor), [10, 14, 20, 22], "asked again, because the answer was lost");
        assert_eq!(since(&Cursor { epoch: 8, ..cursor.clone() }), [0; 0], "numbers of another server");
        (0..100).for_each(|xid| record(7, 100 + xid));
        assert_eq!(since(&cursor), (200 - KNOWN_TRANSACTIONS as u64..200).collect::<Vec<_>>(), "the newest");
        created_here.give_up();
        record(7, 300);
        assert_eq!(since(&cursor), [0; 0], "given up");
    }

    #[test]
    fn a_snapshot_is_read_as_the_server_writes_it() {
        let cursor = parse_snapshot("10:20:10,14", 7).expect("a snapshot");
        assert_eq!(cursor, Cursor { epoch: 7, xmin: 10, xmax: 20, xip: vec![10, 14] });
        assert!(is_snapshot("10:20:10,14", &cursor) && !is_snapshot("10:21:10,14", &cursor));
        assert_eq!(parse_snapshot("10:10:", 1).expect("idle").xip, Vec::<u64>::new());
        assert!(parse_snapshot("10:20", 1).is_none() && parse_snapshot("a:b:", 1).is_none());
    }
}
