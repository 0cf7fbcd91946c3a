//! Bugs that systems of this kind have had, planted behind the directory's port: the checker must see
//! each of them, or its silence about the real thing would mean nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use unified_backend::config::Config;
use unified_backend::directory::store::{Changes, DirectoryFeed, Loaded, Progress};
use unified_backend::directory::{Command, Cursor, Directory, DirectoryStore, Outcome, Refusal, User, WriteError};
use unified_backend::lifecycle::Lifecycle;
use unified_backend::storage;
use unified_backend::store_error::StoreError;
use unified_backend::telemetry::health::HealthBoard;
use unified_backend::telemetry::metrics::Metrics;
use unified_backend::time::Timestamp;

use crate::support::app::eventually;

/// A directory over a store with a bug.
pub struct Instance {
    pub directory: Directory,
    lifecycle: Lifecycle,
}

impl Instance {
    pub async fn start(url: &str, plant: &impl Fn(Arc<dyn DirectoryStore>, String) -> Planted) -> Self {
        let config = Config::from_settings(&[("DATABASE_URL", url)]).expect("valid");
        let (lifecycle, metrics) = (Lifecycle::new(), Arc::new(Metrics::new().expect("metrics")));
        let storage = storage::start(&config.database, &lifecycle, metrics.clone(), HealthBoard::default());
        let planted = plant(storage.expect("a storage").directory, url.to_owned());
        let directory = Directory::start(Arc::new(planted), &config.directory, &lifecycle, metrics);
        eventually("the directory is loaded", async || directory.read().await.is_ok()).await;
        Self { directory, lifecycle }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.lifecycle.abort();
    }
}

type MakeFeed = Box<dyn Fn(Arc<dyn DirectoryFeed>) -> Arc<dyn DirectoryFeed> + Send + Sync>;

/// The real store with another feed.
pub struct Planted {
    store: Arc<dyn DirectoryStore>,
    feed: MakeFeed,
    /// Set by every write through this store.
    has_written: Arc<AtomicBool>,
    /// Where a bug needs tables of its own.
    own_log: Option<(String, &'static str)>,
}

impl Planted {
    fn with_feed<F: DirectoryFeed>(
        store: Arc<dyn DirectoryStore>,
        feed: impl Fn(Arc<dyn DirectoryFeed>) -> F + Send + Sync + 'static,
    ) -> Self {
        let feed: MakeFeed = Box::new(move |real| Arc::new(feed(real)));
        Self { store, feed, has_written: Arc::default(), own_log: None }
    }
}

#[async_trait]
impl DirectoryStore for Planted {
    async fn write(&self, command: Command) -> Result<Outcome, WriteError> {
        let outcome = self.store.write(command).await;
        self.has_written.store(true, Ordering::SeqCst);
        outcome
    }

    async fn write_all(&self, commands: Vec<Command>) -> Result<Vec<Result<Outcome, Refusal>>, StoreError> {
        self.store.write_all(commands).await
    }

    async fn read_users_dict(&self) -> Result<BTreeMap<i64, String>, StoreError> {
        self.store.read_users_dict().await
    }

    async fn begin_epoch(&self) -> Result<(), StoreError> {
        self.store.begin_epoch().await
    }

    async fn open_feed(&self) -> Result<Arc<dyn DirectoryFeed>, StoreError> {
        let real = self.store.open_feed().await?;
        match &self.own_log {
            None => Ok((self.feed)(real)),
            Some((url, gate)) => Ok(Arc::new(LogFeed::open(url, gate, real).await)),
        }
    }
}

/// Reads follow this service's own writes only.
pub fn own_writes_only(store: Arc<dyn DirectoryStore>, _url: String) -> Planted {
    struct Feed {
        real: Arc<dyn DirectoryFeed>,
        has_written: Arc<AtomicBool>,
    }

    #[async_trait]
    impl DirectoryFeed for Feed {
        async fn load(&self) -> Result<Loaded, StoreError> {
            self.real.load().await
        }

        async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
            if self.has_written.swap(false, Ordering::SeqCst) {
                return self.real.changes_since(cursor).await;
            }
            Ok(Progress::Unchanged(cursor.clone()))
        }

        async fn changed_users_since(&self, cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
            self.real.changed_users_since(cursor).await
        }
    }

    let has_written = Arc::new(AtomicBool::new(true));
    let flag = has_written.clone();
    let planted = Planted::with_feed(store, move |real| Feed { real, has_written: flag.clone() });
    Planted { has_written, ..planted }
}

/// A validation that finds another one under way takes its result. The line is long enough for that.
pub fn joined_validation(store: Arc<dyn DirectoryStore>, _url: String) -> Planted {
    struct Feed {
        real: Arc<dyn DirectoryFeed>,
        under_way: Mutex<Option<watch::Receiver<Option<Cursor>>>>,
    }

    #[async_trait]
    impl DirectoryFeed for Feed {
        async fn load(&self) -> Result<Loaded, StoreError> {
            self.real.load().await
        }

        async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
            let joined = self.under_way.lock().expect("no panic").clone();
            if let Some(mut joined) = joined {
                let answered = joined.wait_for(Option::is_some).await;
                let answer = answered.ok().and_then(|answer| answer.clone());
                return Ok(Progress::Unchanged(answer.unwrap_or_else(|| cursor.clone())));
            }
            let (answer, answered) = watch::channel(None);
            *self.under_way.lock().expect("no panic") = Some(answered);
            let progress = self.real.changes_since(cursor).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
            *self.under_way.lock().expect("no panic") = None;
            let moment = match &progress {
                Ok(Progress::Unchanged(cursor) | Progress::Changed(Changes { cursor, .. })) => cursor.clone(),
                _ => cursor.clone(),
            };
            answer.send_replace(Some(moment));
            progress
        }

        async fn changed_users_since(&self, cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
            self.real.changed_users_since(cursor).await
        }
    }

    Planted::with_feed(store, |real| Feed { real, under_way: Mutex::default() })
}

/// The answer goes out first, the changes are applied afterwards.
pub fn answer_before_apply(store: Arc<dyn DirectoryStore>, _url: String) -> Planted {
    struct Feed {
        real: Arc<dyn DirectoryFeed>,
        held: Mutex<Option<Changes>>,
    }

    #[async_trait]
    impl DirectoryFeed for Feed {
        async fn load(&self) -> Result<Loaded, StoreError> {
            self.real.load().await
        }

        async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
            if let Some(changes) = self.held.lock().expect("no panic").take() {
                return Ok(Progress::Changed(changes));
            }
            Ok(match self.real.changes_since(cursor).await? {
                Progress::Changed(changes) => {
                    *self.held.lock().expect("no panic") = Some(changes);
                    Progress::Unchanged(cursor.clone())
                }
                other => other,
            })
        }

        async fn changed_users_since(&self, cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
            self.real.changed_users_since(cursor).await
        }
    }

    Planted::with_feed(store, |real| Feed { real, held: Mutex::default() })
}

/// `WHERE seq > last` over a sequence: numbers are given at the insert, rows are seen at the commit.
pub fn sequence_cursor(store: Arc<dyn DirectoryStore>, url: String) -> Planted {
    own_log(store, url, "true")
}

/// The recipe against that: only what is older than every running transaction. Nothing is lost, but
/// acknowledged writes stay unseen behind any transaction that is open.
pub fn gated_cursor(store: Arc<dyn DirectoryStore>, url: String) -> Planted {
    own_log(store, url, "xid < pg_snapshot_xmin(pg_current_snapshot())")
}

fn own_log(store: Arc<dyn DirectoryStore>, url: String, gate: &'static str) -> Planted {
    let feed: MakeFeed = Box::new(|real| real);
    Planted { store, feed, has_written: Arc::default(), own_log: Some((url, gate)) }
}

/// A change log with a sequence for its cursor.
struct LogFeed {
    client: tokio_postgres::Client,
    changes: String,
    real: Arc<dyn DirectoryFeed>,
}

const OWN_LOG: &str = r#"
CREATE TABLE IF NOT EXISTS planted_log (seq bigserial PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id(), user_id bigint NOT NULL);
CREATE OR REPLACE FUNCTION planted_write() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO planted_log (user_id) VALUES (CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END);
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER planted_write AFTER INSERT OR UPDATE OR DELETE ON "user" FOR EACH ROW EXECUTE FUNCTION planted_write();
"#;

impl LogFeed {
    async fn open(url: &str, gate: &str, real: Arc<dyn DirectoryFeed>) -> Self {
        let (client, connection) =
            tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
        tokio::spawn(connection);
        let sql = format!("BEGIN; SELECT pg_advisory_xact_lock(1); {OWN_LOG} COMMIT");
        client.batch_execute(&sql).await.expect("the planted log");
        let changes = format!(
            r#"WITH log AS (SELECT seq, user_id FROM planted_log WHERE seq > $1 AND {gate})
            SELECT greatest($1, (SELECT max(seq) FROM log)), changed.user_id, u.global_id, u.name
            FROM (SELECT 1) AS one LEFT JOIN (SELECT DISTINCT user_id FROM log) AS changed ON true
            LEFT JOIN "user" AS u ON u.id = changed.user_id"#
        );
        Self { client, changes, real }
    }
}

#[async_trait]
impl DirectoryFeed for LogFeed {
    /// From the log's beginning: what is loaded besides comes again, which is harmless.
    async fn load(&self) -> Result<Loaded, StoreError> {
        let cursor = Cursor { epoch: 1, xmin: 0, xmax: 0, xip: Vec::new() };
        Ok(Loaded { cursor, ..self.real.load().await? })
    }

    async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
        let last = i64::try_from(cursor.xmax).expect("a sequence");
        let rows = self.client.query(&self.changes, &[&last]).await.expect("the planted log answers");
        let seq = u64::try_from(rows[0].get::<_, i64>(0)).expect("a sequence");
        let cursor = Cursor { epoch: 1, xmin: seq, xmax: seq, xip: Vec::new() };
        let changed = rows.iter().filter_map(|row| row.get::<_, Option<i64>>(1).map(|id| (id, row)));
        let users: Vec<(i64, Option<Arc<User>>)> = changed
            .map(|(id, row)| {
                let user = row.get::<_, Option<i64>>(2).map(|global_id| User {
                    id,
                    global_id,
                    name: row.get::<_, String>(3).into(),
                    zone_ids: Box::default(),
                    created_at: Timestamp::from_micros(0),
                    updated_at: None,
                });
                (id, user.map(Arc::new))
            })
            .collect();
        if users.is_empty() {
            return Ok(Progress::Unchanged(cursor));
        }
        Ok(Progress::Changed(Changes { cursor, users, zones: Vec::new(), global_ids: Vec::new() }))
    }

    async fn changed_users_since(&self, _cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
        Ok(None)
    }
}
