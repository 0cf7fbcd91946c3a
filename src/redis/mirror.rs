//! The mirror: keeps `users:dict` in Redis equal to the directory, for readers that know only Redis.
//! Every instance runs one; none leads. Beside the hash stands a mark of what it holds, and each write
//! is a compare and set on that mark, so that instances never undo one another's work.
//!
//! What the hash holds is judged by its mark: the same content as ours, an earlier moment of our
//! database, or something else. Only the last needs thought: a reader of the database that began after
//! the look decides. Is the mark's moment not of that reader's past, then it is of another history
//! (or garbage), for whoever writes a mark read the database before.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::connection::{CallError, Connection};
use super::dict_hash::{DictHash, Fields, Look, Mark, Written};
use crate::directory::{Cursor, Directory, Snapshot};
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// How often the hash is looked at when nothing changes.
const TICK: Duration = Duration::from_millis(250);
/// After a change: what comes in this time is written as one.
const COALESCED_WITHIN: Duration = Duration::from_millis(10);
/// A larger change is written as a new dict, so that no script holds Redis up.
const DELTA_FIELDS: usize = 2_000;
/// The slow comparison, which finds what was changed by hand.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);
const AUDIT_FIELDS: usize = 1_000;
/// Between two tries to write while Redis refuses.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A new dict is written at most this part of the time.
const REBUILD_SHARE: u32 = 2;
/// Two services with different databases on one Redis would overwrite each other without end.
const TAKEOVER_PAUSE: Duration = Duration::from_secs(10);
/// What the end of the service waits for the last write.
const LAST_STEP_LIMIT: Duration = Duration::from_secs(1);

pub struct Mirror {
    hash: DictHash,
    connection: Connection,
    directory: Directory,
    ttl: Duration,
    metrics: Arc<Metrics>,
    /// Since when the hash lacks something.
    behind_since: Option<Instant>,
    /// The content that was in place when last looked.
    mirrored_etag: Option<String>,
    /// A write worked since the last failure: Redis not only reads.
    is_proven: bool,
    next_write_at: Instant,
    next_rebuild_at: Instant,
    last_takeover_at: Option<Instant>,
    next_audit_at: Instant,
    audit_cursor: u64,
}

/// What the hash holds, compared with a snapshot.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    /// An earlier moment of the same history.
    Earlier(Cursor),
    /// Whole, but of a history or a moment that the snapshot does not know.
    Foreign,
    /// Missing, incomplete, or not ours.
    Broken,
}

fn judge(look: &Look, snapshot: &Snapshot) -> Verdict {
    let Some(mark) = Mark::parse(&look.mark) else { return Verdict::Broken };
    if usize::try_from(look.fields) != Ok(mark.fields) {
        return Verdict::Broken;
    }
    if mark.etag == snapshot.dict_etag() {
        return Verdict::Equal;
    }
    if mark.cursor.is_within(snapshot.cursor()) { Verdict::Earlier(mark.cursor) } else { Verdict::Foreign }
}

fn mark_of(snapshot: &Snapshot, cursor: &Cursor) -> Mark {
    Mark { cursor: cursor.clone(), fields: snapshot.count_users(), etag: snapshot.dict_etag().to_owned() }
}

impl Mirror {
    pub fn new(connection: Connection, directory: Directory, ttl: Duration, metrics: Arc<Metrics>) -> Self {
        let now = Instant::now();
        Self {
            hash: DictHash::new(connection.clone(), super::USERS_DICT),
            connection,
            directory,
            ttl,
            metrics,
            behind_since: None,
            mirrored_etag: None,
            is_proven: false,
            next_write_at: now,
            next_rebuild_at: now,
            last_takeover_at: None,
            next_audit_at: now,
            audit_cursor: 0,
        }
    }

    /// Writes the hash anew from what the database holds now. `false`: Redis is not available.
    pub async fn rebuild(&self) -> Result<bool, StoreError> {
        // Without a mark nobody can add to what is there: the next write, ours or another instance's,
        // is a whole dict of this moment or later.
        if self.hash.forget_mark().await.is_err() {
            return Ok(false);
        }
        let view = self.directory.read().await?;
        let mark = mark_of(&view.snapshot, &view.cursor);
        let written = self.hash.replace(Some(""), Some(&mark), view.snapshot.dict_entries(), self.ttl).await;
        self.count(match &written {
            Ok(Written::Applied) => "rebuild",
            Ok(Written::Lost) => "lost",
            Ok(Written::Broken) | Err(_) => "failed",
        });
        Ok(matches!(written, Ok(Written::Applied | Written::Lost)))
    }

    /// Runs until the service closes.
    pub async fn run(mut self, closing: CancellationToken) -> anyhow::Result<()> {
        let _fresh = self.directory.keep_fresh();
        let mut snapshots = self.directory.follow();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_change = tokio::select! {
                biased;
                () = closing.cancelled() => break,
                changed = snapshots.changed() => changed.is_ok(),
                _ = ticks.tick() => false,
            };
            let step = async {
                self.step(&mut snapshots).await;
                if is_change {
                    tokio::time::sleep(COALESCED_WITHIN).await;
                }
            };
            if closing.run_until_cancelled(step).await.is_none() {
                break;
            }
        }
        if tokio::time::timeout(LAST_STEP_LIMIT, self.step(&mut snapshots)).await.is_err() {
            tracing::info!(
                "the last changes were not mirrored to Redis in time; another instance or the next start does"
            );
        }
        Ok(())
    }

    async fn step(&mut self, snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>) {
        let latest = snapshots.borrow_and_update().clone();
        let etag = latest.as_ref().map(|snapshot| snapshot.dict_etag());
        if etag != self.mirrored_etag.as_deref() {
            self.behind_since.get_or_insert_with(Instant::now);
        }
        if let Err(CallError::NotAvailable(why)) = self.synchronise(latest).await {
            self.is_proven = false;
            if self.connection.refuses_writes() {
                self.next_write_at = Instant::now() + REFUSED_PAUSE;
            }
            tracing::debug!(why, "the mirror waits for Redis");
        }
        let lag = self.behind_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.metrics.mirror_lag_seconds.set(lag.as_secs_f64());
    }

    async fn synchronise(&mut self, latest: Option<Arc<Snapshot>>) -> Result<(), CallError> {
        let look = self.hash.look().await?;
        let Some(mine) = latest else { return Ok(()) };
        match judge(&look, &mine) {
            Verdict::Equal => self.keep(&look, &mine).await,
            Verdict::Earlier(since) => self.advance(&look, &mine, &since).await,
            Verdict::Foreign | Verdict::Broken => self.decide(&look).await,
        }
    }

    /// The content is right: its life is renewed when due, and the slow comparison goes on.
    async fn keep(&mut self, look: &Look, mine: &Snapshot) -> Result<(), CallError> {
        self.mirrored_etag = Some(mine.dict_etag().to_owned());
        self.behind_since = None;
        let ttl_ms = i64::try_from(super::dict_hash::millis(self.ttl)).unwrap_or(i64::MAX);
        let is_due = look.life_ms < ttl_ms / 2 || look.life_ms > ttl_ms || !self.is_proven;
        if is_due && Instant::now() >= self.next_write_at {
            let Some(stored) = Mark::parse(&look.mark) else { return Ok(()) };
            let mine_is_later = stored.cursor.is_within(mine.cursor());
            let next = if mine_is_later { mark_of(mine, mine.cursor()) } else { stored };
            let written = self.hash.apply(look, &next, self.ttl, &[], &[]).await;
            self.settle(written, "renewed")?;
        }
        self.audit(look, mine).await
    }

    /// The hash holds an earlier moment of ours: brings it what changed since.
    async fn advance(&mut self, look: &Look, mine: &Arc<Snapshot>, since: &Cursor) -> Result<(), CallError> {
        self.note_behind();
        if Instant::now() < self.next_write_at {
            return Ok(());
        }
        // The database is asked only for what the snapshot does not remember; while it is away, the
        // hash stays as it is.
        let Ok(delta) = self.directory.dict_delta_at(mine, Some(since)).await else { return Ok(()) };
        let latest = self.directory.find_latest();
        let state = [Some(mine.clone()), latest].into_iter().flatten().find(|state| *state.cursor() == delta.version);
        // Moved on meanwhile: the next step knows it.
        let Some(state) = state else { return Ok(()) };
        if delta.reset || delta.set.len() + delta.deleted.len() > DELTA_FIELDS {
            let cursor = state.cursor().clone();
            return self.replace(look, &state, &cursor).await;
        }
        let next = mark_of(&state, state.cursor());
        let written = self.hash.apply(look, &next, self.ttl, &delta.set, &delta.deleted).await;
        if self.settle(written, "delta")? {
            self.mirrored_etag = Some(next.etag);
            self.behind_since = None;
        }
        Ok(())
    }

    /// The hash holds something that our snapshot does not explain: a read of the database that began
    /// after the look does.
    async fn decide(&mut self, look: &Look) -> Result<(), CallError> {
        self.note_behind();
        let now = Instant::now();
        if now < self.next_write_at || now < self.next_rebuild_at {
            return Ok(());
        }
        let Ok(view) = self.directory.read().await else { return Ok(()) };
        if view.stale.is_some() {
            return Ok(());
        }
        match judge(look, &view.snapshot) {
            Verdict::Equal => {
                self.mirrored_etag = Some(view.snapshot.dict_etag().to_owned());
                self.behind_since = None;
                return Ok(());
            }
            Verdict::Earlier(since) => return self.advance(look, &view.snapshot, &since).await,
            Verdict::Foreign => {
                if self.last_takeover_at.is_some_and(|at| now < at + TAKEOVER_PAUSE) {
                    return Ok(());
                }
                if self.last_takeover_at.replace(now).is_some() {
                    tracing::warn!(
                        "users:dict in Redis was written from another database, again: give each service a Redis \
                         database of its own"
                    );
                }
            }
            Verdict::Broken => {}
        }
        self.replace(look, &view.snapshot, &view.cursor).await
    }

    async fn replace(&mut self, look: &Look, snapshot: &Snapshot, cursor: &Cursor) -> Result<(), CallError> {
        let begun_at = Instant::now();
        if begun_at < self.next_rebuild_at {
            return Ok(());
        }
        let mark = mark_of(snapshot, cursor);
        let written = self.hash.replace(Some(&look.mark), Some(&mark), snapshot.dict_entries(), self.ttl).await;
        self.next_rebuild_at = Instant::now() + begun_at.elapsed() * REBUILD_SHARE;
        if self.settle(written, "rebuild")? {
            self.mirrored_etag = Some(mark.etag);
            self.behind_since = None;
            self.audit_cursor = 0;
        }
        Ok(())
    }

    /// Compares a page of the hash with what it should hold.
    async fn audit(&mut self, look: &Look, mine: &Snapshot) -> Result<(), CallError> {
        if Instant::now() < self.next_audit_at || mine.count_users() == 0 {
            return Ok(());
        }
        self.next_audit_at = Instant::now() + AUDIT_INTERVAL;
        let (next, page) = match self.hash.scan(self.audit_cursor, AUDIT_FIELDS).await {
            Err(CallError::WrongType) => return Ok(()),
            scanned => scanned?,
        };
        self.audit_cursor = next;
        let wrong = count_wrong(&page, mine);
        if wrong == 0 {
            return Ok(());
        }
        // Written by another instance between the look and the scan?
        let again = self.hash.look().await?;
        let is_same = Mark::parse(&again.mark).map(|mark| mark.etag) == Mark::parse(&look.mark).map(|mark| mark.etag);
        if !is_same {
            return Ok(());
        }
        tracing::warn!(fields = wrong, "users:dict in Redis was changed by somebody else; writing it anew");
        self.note_behind();
        let Ok(view) = self.directory.read().await else { return Ok(()) };
        self.replace(&again, &view.snapshot, &view.cursor).await
    }

    /// Whether the write is in place.
    fn settle(&mut self, written: Result<Written, CallError>, result: &'static str) -> Result<bool, CallError> {
        self.count(match &written {
            Ok(Written::Applied) => result,
            Ok(Written::Lost) => "lost",
            Ok(Written::Broken) | Err(_) => "failed",
        });
        self.is_proven |= matches!(written, Ok(Written::Applied));
        Ok(written? == Written::Applied)
    }

    fn note_behind(&mut self) {
        self.mirrored_etag = None;
        self.behind_since.get_or_insert_with(Instant::now);
    }

    fn count(&self, result: &'static str) {
        self.metrics.mirror_writes.with_label_values(&[result]).inc();
    }
}

/// Fields that the dict does not have, or has with another name. That none is missing follows from
/// their number, which every look compares.
fn count_wrong(page: &Fields, snapshot: &Snapshot) -> usize {
    let is_right = |field: &[u8], value: &[u8]| {
        let global_id = std::str::from_utf8(field).ok().and_then(|text| text.parse::<i64>().ok());
        global_id.is_some_and(|global_id| {
            global_id.to_string().as_bytes() == field
                && snapshot.find_user_by_global_id(global_id).is_some_and(|user| user.name.as_bytes() == value)
        })
    };
    page.iter().filter(|(field, value)| !is_right(field, value)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::User;
    use crate::directory::store::Loaded;
    use crate::time::Timestamp;

    fn cursor(epoch: i64, xmax: u64) -> Cursor {
        Cursor { epoch, xmin: xmax, xmax, xip: Vec::new() }
    }

    fn snapshot(xmax: u64, names: &[(i64, &str)]) -> Snapshot {
        let user = |(global_id, name): &(i64, &str)| User {
            id: *global_id,
            global_id: *global_id,
            name: (*name).into(),
            zone_ids: Box::new([]),
            created_at: Timestamp::from_micros(0),
            updated_at: None,
        };
        Snapshot::load(Loaded { cursor: cursor(1, xmax), users: names.iter().map(user).collect(), zones: Vec::new() })
    }

    fn look(mark: String, fields: i64) -> Look {
        Look { mark, fields, life_ms: 1000 }
    }

    #[test]
    fn what_the_hash_holds_is_judged_by_content_then_by_moment() {
        let (old, new) = (snapshot(10, &[(1, "Ann")]), snapshot(20, &[(1, "Ann"), (2, "Bob")]));
        let mark = |snapshot: &Snapshot, cursor: &Cursor| mark_of(snapshot, cursor).to_string();
        let mine = || mark(&new, new.cursor());
        assert_eq!(judge(&look(mine(), 2), &new), Verdict::Equal);
        let elsewhere = mark(&new, &cursor(9, 3));
        assert_eq!(judge(&look(elsewhere, 2), &new), Verdict::Equal, "the same content of another history");
        assert_eq!(judge(&look(mark(&old, old.cursor()), 1), &new), Verdict::Earlier(cursor(1, 10)));
        assert_eq!(judge(&look(mine(), 2), &old), Verdict::Foreign, "later than we know");
        assert_eq!(judge(&look(mark(&old, &cursor(9, 3)), 1), &new), Verdict::Foreign);
        for broken in [look(String::new(), 2), look(mine(), 1), look(mine(), -1), look("garbage".to_owned(), 2)] {
            assert_eq!(judge(&broken, &new), Verdict::Broken, "{broken:?}");
        }
    }

    #[test]
    fn wrong_fields_are_counted_whatever_they_are() {
        let mine = snapshot(10, &[(-2, "Zoë"), (1, "Ann")]);
        let page = |fields: &[(&str, &[u8])]| -> Fields {
            fields.iter().map(|(field, value)| (field.as_bytes().to_vec(), value.to_vec())).collect()
        };
        assert_eq!(count_wrong(&page(&[("1", b"Ann"), ("-2", "Zoë".as_bytes())]), &mine), 0);
        let wrong: [(&str, &[u8]); 5] = [("1", b"Eve"), ("01", b"Ann"), ("3", b"Ann"), ("x", b"Ann"), ("-2", b"\xff")];
        assert_eq!(count_wrong(&page(&wrong), &mine), 5);
    }
}
