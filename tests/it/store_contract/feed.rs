//! What the replica is validated against: everything at one moment, and what changed after it, whoever
//! changed it and however.

use std::collections::BTreeMap;
use std::sync::Arc;

use unified_backend::directory::store::{DirectoryFeed, Loaded, Progress, ResetReason};
use unified_backend::directory::{Command, Cursor, User, UserPatch, Zone, ZonePatch};

use super::alerts::{alerts_of, text_alert};
use super::{Store, create_user, new_zone, owned};
use crate::support::app::eventually;
use crate::support::backends::{Database, PostgresDatabase};
use crate::{on_both_engines, require_backend};

on_both_engines!(
    a_load_is_what_the_tables_hold,
    plain_sql_needs_only_the_keys_and_names,
    every_kind_of_change_is_seen_by_the_next_question,
    users_that_are_changed_after_they_were_created_are_told_as_they_are_now,
    nothing_changed_is_told_as_such,
    a_table_emptied_at_a_stroke_is_loaded_again,
    more_changes_than_rows_worth_reading_are_loaded_again,
    keys_that_changed_after_an_old_token_are_told,
    tokens_of_other_databases_are_not_followed,
    tokens_outlive_a_restart,
    a_trimmed_log_says_that_it_cannot_tell,
);

/// A copy that is kept up with changes, as the replica is.
struct Copy {
    feed: Arc<dyn DirectoryFeed>,
    cursor: Cursor,
    users: BTreeMap<i64, Arc<User>>,
    zones: BTreeMap<Arc<str>, Zone>,
}

impl Copy {
    async fn load(store: &Store) -> Self {
        let feed = store.directory.open_feed().await.expect("a feed");
        let Loaded { cursor, users, zones } = feed.load().await.expect("everything");
        let users = users.into_iter().map(|user| (user.id, Arc::new(user))).collect();
        Self { feed, cursor, users, zones: zones.into_iter().map(|zone| (zone.zone_id.clone(), zone)).collect() }
    }

    async fn ask(&self) -> Progress {
        self.feed.changes_since(&self.cursor).await.expect("the feed answers")
    }

    /// Follows the changes and compares with the tables.
    async fn follow(&mut self, what: &str) {
        let changes = match self.ask().await {
            Progress::Changed(changes) => changes,
            other => panic!("{what}: {other:?}"),
        };
        assert!(self.cursor.is_within(&changes.cursor) && changes.cursor != self.cursor, "{what}");
        self.cursor = changes.cursor;
        for (id, user) in changes.users {
            match user {
                Some(user) => drop(self.users.insert(id, user)),
                None => drop(self.users.remove(&id)),
            }
        }
        for (zone_id, zone) in changes.zones {
            match zone {
                Some(zone) => drop(self.zones.insert(zone_id, zone)),
                None => drop(self.zones.remove(&zone_id)),
            }
        }
        let mut tables = self.feed.load().await.expect("everything");
        tables.users.sort_by_key(|user| user.id);
        assert!(
            self.users.values().map(|user| &**user).eq(&tables.users),
            "{what}: {:?}\n{:?}",
            self.users,
            tables.users
        );
        assert!(self.zones.values().eq(&tables.zones), "{what}: {:?}\n{:?}", self.zones, tables.zones);
        assert!(matches!(self.ask().await, Progress::Unchanged(_)), "{what}: told twice");
    }
}

async fn a_load_is_what_the_tables_hold(database: Database) {
    let store = Store::open(&database).await;
    for zone_id in ["é", "a", "Z", "b"] {
        store.create_zone(zone_id).await;
    }
    let mut expected = vec![
        store.create_user(30, "thirty", &["b", "Z"]).await,
        store.create_user(-1, "minus one", &[]).await,
        store.create_user(4, "four 🍀", &["é"]).await,
    ];
    expected.sort_by_key(|user| user.global_id);
    let loaded = store.directory.open_feed().await.expect("a feed").load().await.expect("everything");
    assert_eq!(loaded.users, expected);
    let zone_ids: Vec<&str> = loaded.zones.iter().map(|zone| &*zone.zone_id).collect();
    assert_eq!(zone_ids, ["Z", "a", "b", "é"]);
}

async fn plain_sql_needs_only_the_keys_and_names(database: Database) {
    let store = Store::open(&database).await;
    let before = store.create_user(1, "Ada", &[]).await.created_at;
    database
        .execute(
            r#"INSERT INTO "user" (global_id, name) VALUES (2, 'Bob');
               INSERT INTO working_zone (zone_id, zone_name) VALUES ('z', 'Zone');
               INSERT INTO user_zone_association (user_id, zone_id) SELECT id, 'z' FROM "user" WHERE global_id = 2"#,
        )
        .await;
    let loaded = store.directory.open_feed().await.expect("a feed").load().await.expect("everything");
    let (bob, zone) = (&loaded.users[1], &loaded.zones[0]);
    // SQLite's own clock has milliseconds.
    for created_at in [bob.created_at, zone.created_at] {
        let age = created_at.as_micros() - before.as_micros();
        assert!((-1_000..60_000_000).contains(&age), "{age} µs");
    }
    assert_eq!((zone.corners, zone.updated_at), ([[0.0; 2]; 4], None));
    assert_eq!(super::zones_of(bob), ["z"]);
}

async fn every_kind_of_change_is_seen_by_the_next_question(database: Database) {
    let store = Store::open(&database).await;
    let mut copy = Copy::load(&store).await;
    let commands = |id: i64| {
        let mut corners = [[None; 2]; 4];
        corners[2][1] = Some(7.5);
        vec![
            Command::CreateZone(new_zone("b")),
            Command::UpdateZone { zone_id: "b".into(), patch: ZonePatch { zone_name: None, corners } },
            Command::AddZone { id, zone_id: "b".into() },
            Command::AssignZones { id, zone_ids: owned(&["b", "a"]) },
            Command::RemoveZone { id, zone_id: "b".into() },
            Command::UpdateUser { id, patch: UserPatch { name: Some("Eva".into()), zone_ids: Some(owned(&["b"])) } },
            Command::DeleteZone { zone_id: "b".into() },
            Command::DeleteUser { id },
        ]
    };
    store.create_zone("a").await;
    copy.follow("the first zone").await;
    let id = store.create_user(1, "Ada", &["a"]).await.id;
    copy.follow("the first user").await;
    for command in commands(id) {
        let what = format!("{command:?}");
        store.write(command).await;
        copy.follow(&what).await;
    }
    let statements = [
        r#"INSERT INTO "user" (global_id, name) VALUES (2, 'Bob'), (3, 'Cy')"#,
        r#"UPDATE "user" SET name = 'Bob 🐻' WHERE global_id = 2"#,
        r#"UPDATE "user" SET global_id = 20 WHERE global_id = 2"#,
        r#"INSERT INTO working_zone (zone_id, zone_name) VALUES ('c', 'C')"#,
        r#"INSERT INTO user_zone_association (user_id, zone_id) SELECT id, 'c' FROM "user""#,
        r#"UPDATE user_zone_association SET zone_id = 'a' WHERE user_id = (SELECT id FROM "user" WHERE global_id = 3)"#,
        r#"UPDATE working_zone SET zone_name = 'C!', x1 = 1.5 WHERE zone_id = 'c'"#,
        r#"UPDATE working_zone SET zone_id = 'd' WHERE zone_id = 'c'"#,
        r#"DELETE FROM user_zone_association WHERE zone_id = 'a'"#,
        r#"DELETE FROM working_zone WHERE zone_id = 'd'"#,
        r#"DELETE FROM "user" WHERE global_id = 20"#,
        r#"BEGIN; INSERT INTO "user" (global_id, name) VALUES (5, 'five'); DELETE FROM "user" WHERE global_id = 3; COMMIT"#,
        r#"DELETE FROM "user""#,
        r#"DELETE FROM working_zone"#,
    ];
    for statement in statements {
        database.execute(statement).await;
        copy.follow(statement).await;
    }
    assert!(copy.users.is_empty() && copy.zones.is_empty());
}

async fn users_that_are_changed_after_they_were_created_are_told_as_they_are_now(database: Database) {
    let store = Store::open(&database).await;
    let mut copy = Copy::load(&store).await;
    for global_id in 1..=8 {
        store.create_user(global_id, &format!("user {global_id}"), &[]).await;
    }
    let statements = [
        r#"UPDATE "user" SET name = 'renamed' WHERE global_id = 1"#,
        r#"DELETE FROM "user" WHERE global_id = 2"#,
        // Two that change places, and one that comes back as somebody else.
        r#"UPDATE "user" SET global_id = 30 WHERE global_id = 3"#,
        r#"UPDATE "user" SET global_id = 3 WHERE global_id = 4"#,
        r#"UPDATE "user" SET global_id = 4 WHERE global_id = 30"#,
        r#"DELETE FROM "user" WHERE global_id = 5"#,
        r#"INSERT INTO "user" (global_id, name) VALUES (5, 'another')"#,
        r#"INSERT INTO working_zone (zone_id, zone_name) VALUES ('a', 'A')"#,
        r#"INSERT INTO user_zone_association (user_id, zone_id) SELECT id, 'a' FROM "user" WHERE global_id = 6"#,
    ];
    for statement in statements {
        database.execute(statement).await;
    }
    copy.follow("at once").await;
    for global_id in 9..=11 {
        store.create_user(global_id, "at rest", &[]).await;
    }
    copy.follow("nobody changed these").await;
}

async fn nothing_changed_is_told_as_such(database: Database) {
    let store = Store::open(&database).await;
    let user = store.create_user(1, "Ada", &[]).await;
    let copy = Copy::load(&store).await;
    assert!(matches!(copy.ask().await, Progress::Unchanged(_)));
    store.alerts.append(&alerts_of([text_alert("{}")])).await.expect("stored");
    store.refusal(create_user(1, "Eva", &[])).await;
    let patch = UserPatch { name: Some("Ada".into()), zone_ids: Some(Vec::new()) };
    store.write(Command::UpdateUser { id: user.id, patch }).await;
    database.execute(r#"UPDATE "user" SET name = 'Ada'"#).await;
    match copy.ask().await {
        Progress::Unchanged(cursor) => assert!(copy.cursor.is_within(&cursor)),
        other => panic!("{other:?}"),
    }
    database.execute(r#"BEGIN; UPDATE "user" SET name = 'Eva'; ROLLBACK"#).await;
    assert!(matches!(copy.ask().await, Progress::Unchanged(_)));
}

async fn a_table_emptied_at_a_stroke_is_loaded_again(database: Database) {
    let store = Store::open(&database).await;
    store.create_user(1, "Ada", &[]).await;
    let mut copy = Copy::load(&store).await;
    match &database {
        Database::Postgres(_) => {
            database.execute(r#"TRUNCATE "user" CASCADE"#).await;
            assert!(matches!(copy.ask().await, Progress::Reset(ResetReason::Bulk)));
        }
        // SQLite has no such statement: each row is deleted.
        Database::Sqlite(_) => {
            database.execute(r#"DELETE FROM "user""#).await;
            copy.follow("DELETE").await;
        }
    }
    assert!(Copy::load(&store).await.users.is_empty());
}

async fn more_changes_than_rows_worth_reading_are_loaded_again(database: Database) {
    let store = Store::open(&database).await;
    let copy = Copy::load(&store).await;
    let insert = r#"INSERT INTO "user" (global_id, name)
        WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 50001)
        SELECT n, 'bulk' FROM numbers"#;
    database.execute(insert).await;
    assert!(matches!(copy.ask().await, Progress::Reset(ResetReason::Bulk)));
    assert_eq!(Copy::load(&store).await.users.len(), 50_001);
}

async fn keys_that_changed_after_an_old_token_are_told(database: Database) {
    let store = Store::open(&database).await;
    for global_id in [5, 7, 9] {
        store.create_user(global_id, "old", &[]).await;
    }
    let copy = Copy::load(&store).await;
    let changed = async || copy.feed.changed_users_since(&copy.cursor).await.expect("the feed answers");
    assert_eq!(changed().await, Some(vec![]));
    store.create_user(6, "new", &[]).await;
    store.create_zone("a").await;
    database
        .execute(
            r#"UPDATE "user" SET name = 'newer' WHERE global_id = 9; DELETE FROM "user" WHERE global_id = 5;
               UPDATE "user" SET global_id = -7 WHERE global_id = 7"#,
        )
        .await;
    assert_eq!(changed().await, Some(vec![-7, 5, 6, 7, 9]));
    let token = Cursor::parse(&copy.cursor.to_string()).expect("our own token");
    let told = copy.feed.changed_users_since(&token).await.expect("the feed answers").expect("it reaches back");
    assert!([-7, 5, 6, 7, 9].iter().all(|id| told.contains(id)), "{told:?}");
}

async fn tokens_of_other_databases_are_not_followed(database: Database) {
    let store = Store::open(&database).await;
    store.create_user(5, "Ada", &[]).await;
    let copy = Copy::load(&store).await;
    let foreign = Cursor { epoch: copy.cursor.epoch ^ 1, ..copy.cursor.clone() };
    assert_eq!(copy.feed.changed_users_since(&foreign).await.expect("the feed answers"), None);
    let progress = copy.feed.changes_since(&foreign).await.expect("the feed answers");
    assert!(matches!(progress, Progress::Reset(ResetReason::Epoch)), "{progress:?}");
    // It is still followed itself.
    assert!(matches!(copy.ask().await, Progress::Unchanged(_)));
    if let Database::Postgres(_) = database {
        // What crash recovery and promotion do to an unlogged table.
        database.execute("DELETE FROM directory_epoch").await;
        assert!(matches!(copy.ask().await, Progress::Reset(ResetReason::Epoch)));
        assert_eq!(copy.feed.changed_users_since(&copy.cursor).await.expect("the feed answers"), None);
        assert_ne!(Copy::load(&store).await.cursor.epoch, copy.cursor.epoch);
    }
}

/// A dump is restored while the feed is open: the row of the epoch is there, with its number, but was made elsewhere.
#[tokio::test]
async fn an_epoch_of_another_place_is_not_followed() {
    let database = require_backend!(Database::postgres().await);
    let store = Store::open(&database).await;
    store.create_user(5, "Ada", &[]).await;
    let mut copy = Copy::load(&store).await;
    let restored = [
        "UPDATE directory_epoch SET home = 'another server/1/2/' || tableoid",
        "ALTER TABLE directory_epoch RENAME TO dumped;
         CREATE UNLOGGED TABLE directory_epoch (LIKE dumped INCLUDING ALL);
         INSERT INTO directory_epoch TABLE dumped;
         DROP TABLE dumped",
    ];
    for restored in restored {
        database.execute(restored).await;
        assert!(matches!(copy.ask().await, Progress::Reset(ResetReason::Epoch)), "{restored}");
        assert_eq!(copy.feed.changed_users_since(&copy.cursor).await.expect("the feed answers"), None, "{restored}");
        copy.cursor = copy.feed.load().await.expect("everything").cursor;
        assert!(matches!(copy.ask().await, Progress::Unchanged(_)), "{restored}");
    }
}

async fn tokens_outlive_a_restart(database: Database) {
    let store = Store::open(&database).await;
    store.create_user(5, "Ada", &[]).await;
    let cursor = Copy::load(&store).await.cursor;
    store.create_user(6, "Bob", &[]).await;
    store.close().await;
    let store = Store::open(&database).await;
    let feed = store.directory.open_feed().await.expect("a feed");
    assert_eq!(feed.changed_users_since(&cursor).await.expect("the feed answers"), Some(vec![6]));
    let progress = feed.changes_since(&cursor).await.expect("the feed answers");
    assert!(matches!(&progress, Progress::Changed(changes) if changes.users.len() == 1), "{progress:?}");
}

async fn a_trimmed_log_says_that_it_cannot_tell(database: Database) {
    let store = Store::open(&database).await;
    store.create_user(5, "Ada", &[]).await;
    let copy = Copy::load(&store).await;
    store.create_user(6, "Bob", &[]).await;
    store.create_user(7, "Cy", &[]).await;
    let trim = match &database {
        Database::Postgres(server) => {
            // Other tests' transactions may be running on this server; a floor never passes one of them.
            let client = server.connect().await;
            let is_over = async || {
                let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint > $1::bigint";
                let xmin = i64::try_from(copy.cursor.xmin).expect("a young server");
                client.query_one(sql, &[&xmin]).await.expect("a row").get(0)
            };
            eventually("the transactions of the cursor are over", is_over).await;
            "UPDATE directory_epoch SET floor = pg_snapshot_xmin(pg_current_snapshot());
             DELETE FROM directory_change"
        }
        Database::Sqlite(_) => "DELETE FROM directory_change WHERE seq < (SELECT max(seq) FROM directory_change)",
    };
    database.execute(trim).await;
    assert!(matches!(copy.ask().await, Progress::Reset(ResetReason::Trimmed)));
    assert_eq!(copy.feed.changed_users_since(&copy.cursor).await.expect("the feed answers"), None);
    let mut copy = Copy::load(&store).await;
    store.create_user(8, "Di", &[]).await;
    copy.follow("a change after the trim").await;
}

/// What a session did is counted when it ends, or once a second.
async fn count_user_lookups(server: &PostgresDatabase) -> i64 {
    let sql = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'user_pkey'";
    server.connect().await.query_one(sql, &[]).await.expect("the statistics").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_that_this_instance_created_are_not_read_back() {
    let database = require_backend!(Database::postgres().await);
    let Database::Postgres(server) = &database else { return };
    let store = Store::open(&database).await;
    let mut copy = Copy::load(&store).await;
    let before = count_user_lookups(server).await;
    for global_id in 1..=50 {
        store.create_user(global_id, "someone", &[]).await;
    }
    match copy.ask().await {
        Progress::Changed(changes) => {
            assert_eq!((changes.users.len(), changes.global_ids), (50, (1..=50).collect()));
            copy.cursor = changes.cursor;
        }
        other => panic!("{other:?}"),
    }
    // Those that have to be read tell that the server has counted. The load may look somebody up too.
    let mut asked = 0;
    eventually("the server has counted", async || {
        server.execute(r#"UPDATE "user" SET name = name || '.' WHERE global_id = 7"#).await;
        assert!(matches!(copy.ask().await, Progress::Changed(changes) if changes.users.len() == 1));
        asked += 1;
        count_user_lookups(server).await > before + 1
    })
    .await;
    let lookups = count_user_lookups(server).await - before;
    assert!(lookups < asked + 50, "{lookups} users were looked up for {asked} that changed");
}

const FIRST_ZONE: &str = "INSERT INTO user_zone_association (user_id, zone_id) VALUES (NEW.id, 'hall')";

/// What an owner of the database may have set off by each new user.
fn trigger_of_theirs(body: &str) -> String {
    format!(
        r#"CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$;
           CREATE TRIGGER theirs AFTER INSERT ON "user" FOR EACH ROW EXECUTE FUNCTION theirs()"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_creation_sets_off_in_the_database_is_told() {
    for (what, body) in [
        ("a first zone", FIRST_ZONE),
        ("another name", r#"UPDATE "user" SET name = upper(name) WHERE id = NEW.id"#),
        ("somebody else's name", r#"UPDATE "user" SET name = name || '.' WHERE global_id = 1"#),
        ("nobody is left", r#"DELETE FROM "user" WHERE id = NEW.id"#),
    ] {
        let database = require_backend!(Database::postgres().await);
        let store = Store::open(&database).await;
        store.create_zone("hall").await;
        store.create_user(1, "Ada", &[]).await;
        database.execute(&trigger_of_theirs(body)).await;
        let mut copy = Copy::load(&store).await;
        for global_id in 2..=4 {
            store.create_user(global_id, "someone", &[]).await;
            copy.follow(what).await;
        }
        for global_id in 5..=9 {
            store.create_user(global_id, "someone", &[]).await;
        }
        copy.follow(what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lacks_what_was_created_here_is_not_followed() {
    // With a first zone the log has as many keys as users were created, but not theirs.
    for other_trigger in [None, Some(trigger_of_theirs(FIRST_ZONE))] {
        let database = require_backend!(Database::postgres().await);
        let store = Store::open(&database).await;
        store.create_zone("hall").await;
        database.execute(r#"ALTER TABLE "user" DISABLE TRIGGER directory_log_insert"#).await;
        if let Some(trigger) = &other_trigger {
            database.execute(trigger).await;
        }
        let copy = Copy::load(&store).await;
        let others = store.directory.open_feed().await.expect("a feed");
        store.create_user(1, "Ada", &[]).await;
        assert!(matches!(copy.ask().await, Progress::Reset(ResetReason::Epoch)));
        // Whoever else follows is told so too, and again until they have loaded.
        for feed in [&copy.feed, &others] {
            let again = feed.changes_since(&copy.cursor).await.expect("the feed answers");
            assert!(matches!(again, Progress::Reset(ResetReason::Epoch)), "{again:?}");
            assert_eq!(feed.changed_users_since(&copy.cursor).await.expect("the feed answers"), None);
        }
        let copy = Copy::load(&store).await;
        store.create_user(3, "Cy", &[]).await;
        assert!(!matches!(copy.ask().await, Progress::Reset(_)), "not everything is loaded for each user");
        database.execute(r#"ALTER TABLE "user" ENABLE ALWAYS TRIGGER directory_log_insert"#).await;
        let mut copy = Copy::load(&store).await;
        store.create_user(2, "Bob", &[]).await;
        copy.follow("the log is whole again").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_reads_no_more_than_what_changed() {
    let database = require_backend!(Database::postgres().await);
    let Database::Postgres(server) = &database else { return };
    let store = Store::open(&database).await;
    let tables = r#"
        INSERT INTO working_zone (zone_id, zone_name, x1, y1, x2, y2, x3, y3, x4, y4) VALUES ('Z', 'Z', 0, 0, 1, 0, 1, 1, 0, 1);
        INSERT INTO "user" (global_id, name) SELECT n, 'someone' FROM generate_series(1, 5000) AS n;
        INSERT INTO user_zone_association (user_id, zone_id) SELECT id, 'Z' FROM "user";
        ANALYZE"#;
    server.execute(tables).await;
    let mut copy = Copy::load(&store).await;
    let client = server.connect().await;
    let count = async || -> (i64, i64) {
        let sql = "SELECT seq_tup_read + idx_tup_fetch, idx_scan FROM pg_stat_user_tables \
                   WHERE relname = 'user_zone_association'";
        let row = client.query_one(sql, &[]).await.expect("the statistics");
        (row.get(0), row.get(1))
    };
    eventually("what the load read is counted", async || count().await.0 >= 5000).await;
    let mut asked = 0;
    let before = count().await;
    // A session tells what it read once a second.
    eventually("the server has counted", async || {
        let changed = r#"UPDATE "user" SET name = name || '.' WHERE global_id = 7"#;
        server.execute(&format!("{changed}; {changed}")).await;
        match copy.ask().await {
            Progress::Changed(changes) => {
                assert_eq!((changes.users.len(), changes.global_ids), (1, vec![7]));
                copy.cursor = changes.cursor;
            }
            other => panic!("{other:?}"),
        }
        asked += 1;
        count().await.1 > before.1
    })
    .await;
    let read = count().await.0 - before.0;
    assert!(read <= 10 * asked, "{read} assignments were read for {asked} changed users");
}
