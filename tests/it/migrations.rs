//! The schema brought forward: from nothing, from both shapes of the Python version, twice, by several
//! at once, and not at all where it is newer than the binary.

use std::collections::BTreeMap;

use unified_backend::config::Config;
use unified_backend::directory::store::Loaded;
use unified_backend::directory::{Command, NewUser, Outcome};
use unified_backend::storage::{self, MigrationError, MigrationReport};

use crate::store_contract::{Store, new_zone};
use crate::support::backends::{Database, PostgresDatabase};
use crate::{on_both_engines, require_backend};

const ALL: [&str; 3] = ["0001_directory", "0002_change_log", "0003_alerts"];
const ZONE_COLUMN: &str = include_str!("dumps/python_zone_column.sql");
const ASSOCIATION: &str = include_str!("dumps/python_association.sql");

on_both_engines!(
    a_fresh_database_is_brought_forward_once,
    several_that_migrate_at_once_take_turns,
    a_check_tells_what_is_pending_and_changes_nothing,
    a_schema_from_the_future_is_refused,
    both_engines_have_the_same_tables_and_columns,
);

async fn migrate(database: &Database) -> Result<MigrationReport, MigrationError> {
    storage::migrate(&config(database).database).await
}

async fn check(database: &Database) -> Result<MigrationReport, MigrationError> {
    storage::check_migrations(&config(database).database).await
}

fn config(database: &Database) -> Config {
    Config::from_settings(&[("DATABASE_URL", &database.url())]).expect("valid settings")
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn a_fresh_database_is_brought_forward_once(database: Database) {
    let report = migrate(&database).await.expect("migrated");
    assert_eq!(report, MigrationReport { applied: names(&ALL), pending: vec![] });
    let store = Store::open(&database).await;
    store.create_zone("a").await;
    let user = store.create_user(1, "Ada 🧑‍🚀", &["a"]).await;
    // Also while a service runs.
    let report = migrate(&database).await.expect("nothing to do");
    assert_eq!(report, MigrationReport { applied: vec![], pending: vec![] });
    assert_eq!(store.find_user(user.id).await, user);
}

async fn several_that_migrate_at_once_take_turns(database: Database) {
    let url = database.url();
    let tasks = (0..6).map(|_| {
        let config = Config::from_settings(&[("DATABASE_URL", &url)]).expect("valid settings");
        tokio::spawn(async move { storage::migrate(&config.database).await })
    });
    let mut applied = Vec::new();
    for task in futures_util::future::join_all(tasks).await {
        applied.extend(task.expect("no panic").expect("migrated").applied);
    }
    assert_eq!(applied, names(&ALL));
    Store::open(&database).await.create_user(1, "Ada", &[]).await;
}

async fn a_check_tells_what_is_pending_and_changes_nothing(database: Database) {
    for _ in 0..2 {
        let report = check(&database).await.expect("checked");
        assert_eq!(report, MigrationReport { applied: vec![], pending: names(&ALL) });
        assert!(database.file().is_none_or(|file| !file.exists()), "a check made the file");
    }
    migrate(&database).await.expect("migrated");
    database.execute("DELETE FROM refinery_schema_history WHERE version = 3").await;
    for _ in 0..2 {
        assert_eq!(check(&database).await.expect("checked").pending, names(&ALL[2..]));
    }
}

async fn a_schema_from_the_future_is_refused(database: Database) {
    migrate(&database).await.expect("migrated");
    database
        .execute(
            "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
             VALUES (99, 'tomorrow', '2126-01-01T00:00:00Z', '1')",
        )
        .await;
    for refused in [migrate(&database).await, check(&database).await] {
        let error = refused.expect_err("it is newer");
        assert!(matches!(&error, MigrationError::Newer { version: 99, name } if name == "tomorrow"), "{error}");
        assert!(error.to_string().contains("made by a newer version"), "{error}");
    }
    let store = Store::start(&database.url(), &[]).expect("it is found out later");
    let failure = store.until_stopped().await.expect_err("the service stops");
    assert!(failure.to_string().contains("99 `tomorrow`"), "{failure}");
}

async fn both_engines_have_the_same_tables_and_columns(database: Database) {
    migrate(&database).await.expect("migrated");
    let tables: BTreeMap<&str, &str> = BTreeMap::from([
        ("alert", "body camera_id event_id occurred_at received_at seq source status user_id user_name zone_id"),
        ("alert_log", "last_seq one"),
        ("alert_span", "earliest latest number"),
        ("dead_letter", "id offset partition raw reason received_at size topic"),
        ("kafka_offset", "epoch next partition topic"),
        ("user", "created_at global_id id name updated_at"),
        ("user_zone_association", "created_at position user_id zone_id"),
        ("working_zone", "created_at updated_at x1 x2 x3 x4 y1 y2 y3 y4 zone_id zone_name"),
    ]);
    for (table, expected) in tables {
        assert_eq!(list_columns(&database, table).await, expected, "{table}");
    }
}

async fn list_columns(database: &Database, table: &str) -> String {
    let mut columns: Vec<String> = match database {
        Database::Sqlite(_) => {
            let connection = rusqlite::Connection::open(database.file().expect("a file")).expect("it opens");
            let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)").expect("SQL");
            let rows = statement.query_map([table], |row| row.get(0)).expect("rows");
            rows.collect::<Result<_, _>>().expect("names")
        }
        Database::Postgres(server) => {
            let sql = "SELECT column_name::text FROM information_schema.columns WHERE table_name = $1";
            let rows = server.connect().await.query(sql, &[&table]).await.expect("rows");
            rows.iter().map(|row| row.get(0)).collect()
        }
    };
    columns.sort();
    columns.join(" ")
}

/// What plain SQL finds of a user before and after: id, global_id, name, both times in microseconds.
async fn read_users(database: &PostgresDatabase) -> Vec<(i64, i64, String, Option<i64>, Option<i64>)> {
    let sql = r#"SELECT id::bigint, global_id::bigint, name::text, (extract(epoch FROM created_at) * 1000000)::bigint,
        (extract(epoch FROM updated_at) * 1000000)::bigint FROM "user" ORDER BY id"#;
    let rows = database.connect().await.query(sql, &[]).await.expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect()
}

type ZoneRow = (String, String, Vec<f64>, Option<i64>, Option<i64>);

async fn read_zones(database: &PostgresDatabase) -> Vec<ZoneRow> {
    let sql = r#"SELECT zone_id::text, zone_name::text, ARRAY[x1, y1, x2, y2, x3, y3, x4, y4]::float8[],
        (extract(epoch FROM created_at) * 1000000)::bigint, (extract(epoch FROM updated_at) * 1000000)::bigint
        FROM working_zone ORDER BY zone_id::text COLLATE "C""#;
    let rows = database.connect().await.query(sql, &[]).await.expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect()
}

async fn load(store: &Store) -> Loaded {
    store.directory.open_feed().await.expect("a feed").load().await.expect("everything")
}

fn zones_by_global_id(loaded: &Loaded) -> BTreeMap<i64, Vec<&str>> {
    loaded.users.iter().map(|user| (user.global_id, user.zone_ids.iter().map(AsRef::as_ref).collect())).collect()
}

/// Adopts a dump and checks what is the same for both shapes. Gives the store for the rest.
async fn adopt(dump: &str, with_alembic: bool) -> Option<(Store, Database)> {
    let server = PostgresDatabase::create().await?;
    server.execute(dump).await;
    if with_alembic {
        let table = "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY);
                     INSERT INTO alembic_version VALUES ('8f2c1a9d0b7e')";
        server.execute(table).await;
    }
    let (users, zones) = (read_users(&server).await, read_zones(&server).await);
    assert!(users.len() > 4 && zones.len() > 2, "the dump holds data");
    let database = Database::Postgres(server);
    assert_eq!(check(&database).await.expect("checked").pending, names(&ALL));
    let Database::Postgres(server) = &database else { return None };
    assert_eq!(read_users(server).await, users, "a check changed something");
    assert_eq!(migrate(&database).await.expect("adopted").applied, names(&ALL));
    assert_eq!(migrate(&database).await.expect("adopted before").applied, names(&[]));

    // A time that was null has become the time of the migration; every other value is as it was.
    let adopted = read_users(server).await;
    assert_eq!(adopted.len(), users.len());
    for (before, after) in users.iter().zip(&adopted) {
        assert_eq!((before.0, before.1, &before.2, before.4), (after.0, after.1, &after.2, after.4));
        assert_eq!(before.3.or(after.3), after.3);
        assert!(after.3.is_some(), "{after:?}");
    }
    for (before, after) in zones.iter().zip(&read_zones(server).await) {
        assert_eq!((&before.0, &before.1, &before.2, before.4), (&after.0, &after.1, &after.2, after.4));
        assert_eq!(before.3.or(after.3), after.3);
    }
    let store = Store::open(&database).await;
    let loaded = load(&store).await;
    let shown: Vec<(i64, i64, &str)> = loaded.users.iter().map(|user| (user.id, user.global_id, &*user.name)).collect();
    let mut expected: Vec<(i64, i64, &str)> = users.iter().map(|user| (user.0, user.1, user.2.as_str())).collect();
    expected.sort_by_key(|user| user.1);
    assert_eq!(shown, expected);
    assert!(shown.iter().any(|(_, _, name)| name.contains('🧑')), "an emoji name");
    assert!(shown.iter().any(|(_, _, name)| name.is_empty()), "a name that HTTP would refuse");
    let created = NewUser { global_id: i64::MAX, name: "beyond int32".into(), zone_ids: vec![] };
    match store.directory.write(Command::CreateUser(created)).await {
        // The dump's sequence had given 41 to a user that was deleted since.
        Ok(Outcome::User(user)) => assert_eq!((user.id, user.global_id), (42, i64::MAX)),
        other => panic!("{other:?}"),
    }
    Some((store, database))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shape_with_a_zone_column_is_adopted() {
    for with_alembic in [false, true] {
        let (store, database) = require_backend!(adopt(ZONE_COLUMN, with_alembic).await);
        let loaded = load(&store).await;
        let expected = BTreeMap::from([
            (-5, vec![]),
            (7, vec!["dock"]),
            (1001, vec!["entrance"]),
            (1002, vec!["вход №2"]),
            (1003, vec![]),
            (2_147_483_647, vec!["entrance"]),
            (i64::MAX, vec![]),
        ]);
        assert_eq!(zones_by_global_id(&loaded), expected);
        let columns = list_columns(&database, "user").await;
        assert_eq!(columns, "created_at global_id id name updated_at");
        use_it(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shape_with_an_association_table_is_adopted() {
    for with_alembic in [false, true] {
        let (store, database) = require_backend!(adopt(ASSOCIATION, with_alembic).await);
        let loaded = load(&store).await;
        let expected = BTreeMap::from([
            (-5, vec![]),
            (7, vec!["dock"]),
            // In the order in which they were made.
            (1001, vec!["вход №2", "dock", "entrance"]),
            (1002, vec!["entrance", "вход №2"]),
            (1003, vec![]),
            (2_147_483_647, vec!["entrance"]),
            (i64::MAX, vec![]),
        ]);
        assert_eq!(zones_by_global_id(&loaded), expected);
        let Database::Postgres(server) = &database else { return };
        let sql = "SELECT (extract(epoch FROM created_at) * 1000000)::bigint FROM user_zone_association
                   WHERE zone_id = 'dock' ORDER BY created_at LIMIT 1";
        let made_at: i64 = server.connect().await.query_one(sql, &[]).await.expect("a row").get(0);
        assert_eq!(made_at, 1_735_893_000_654_321, "the time of an assignment is kept");
        use_it(&store).await;
    }
}

/// An adopted database does all that a fresh one does.
async fn use_it(store: &Store) {
    store.write(Command::CreateZone(new_zone("new"))).await;
    let user = load(store).await.users.into_iter().find(|user| user.global_id == 1001).expect("the user");
    let before = user.updated_at;
    let Outcome::Assignments { zone_ids, changed } =
        store.write(Command::AddZone { id: user.id, zone_id: "new".into() }).await
    else {
        panic!("assignments");
    };
    assert!(changed && zone_ids.last().is_some_and(|zone_id| &**zone_id == "new"), "{zone_ids:?}");
    store.write(Command::DeleteZone { zone_id: "entrance".into() }).await;
    let user = load(store).await.users.into_iter().find(|user| user.global_id == 1001).expect("the user");
    assert!(user.zone_ids.iter().all(|zone_id| &**zone_id != "entrance"), "{user:?}");
    assert!(user.updated_at > before);
    store.write(Command::DeleteUser { id: user.id }).await;
    assert_eq!(store.alerts.last_seq().await.expect("the log answers"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_adopt_the_same_database_take_turns() {
    for dump in [ZONE_COLUMN, ASSOCIATION] {
        let server = require_backend!(PostgresDatabase::create().await);
        server.execute(dump).await;
        let users = read_users(&server).await.len();
        let database = Database::Postgres(server);
        let (first, second) = tokio::join!(migrate(&database), migrate(&database));
        let mut applied = first.expect("adopted").applied;
        applied.extend(second.expect("adopted").applied);
        assert_eq!(applied, names(&ALL));
        let Database::Postgres(server) = &database else { return };
        assert_eq!(read_users(server).await.len(), users);
    }
}
