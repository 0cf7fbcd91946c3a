//! What can happen to a file: a second service, a shell that holds its lock, a restore, damage.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use unified_backend::directory::store::{Progress, ResetReason};
use unified_backend::directory::{Command, WriteError};
use unified_backend::store_error::StoreError;
use unified_backend::telemetry::health::{State, name};

use super::{Store, create_user, zones_of};
use crate::support::backends::Database;

fn path_of(database: &Database) -> std::path::PathBuf {
    database.file().expect("a file")
}

fn shell(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("the file opens");
    // As the shell of the distribution, which does not enforce them.
    connection.pragma_update(None, "foreign_keys", false).expect("a setting");
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_service_is_refused_at_once_and_the_first_one_goes_on() {
    let database = Database::sqlite();
    let first = Store::open(&database).await;
    let begun_at = Instant::now();
    let refusal = Store::start(&database.url(), &[]).err().expect("refused").to_string();
    assert!(begun_at.elapsed() < Duration::from_secs(2));
    assert!(refusal.contains("another unified-backend serves") && refusal.contains("test.db.lock"), "{refusal}");
    first.create_user(1, "Ada", &[]).await;
    first.close().await;
    Store::open(&database).await.create_user(2, "Bob", &[]).await;
}

/// `.cargo/config.toml` sees to it.
#[test]
fn sqlite_takes_no_locks_of_the_whole_process() {
    let connection = Connection::open_in_memory().expect("a database");
    let mut statement = connection.prepare("PRAGMA compile_options").expect("a statement");
    let options = statement.query_map([], |row| row.get::<_, String>(0)).expect("the options");
    let options: Vec<String> = options.collect::<Result<_, _>>().expect("texts");
    assert!(options.iter().any(|option| option == "DEFAULT_MEMSTATUS=0"), "{options:?}");
    assert!(!options.iter().any(|option| option == "ENABLE_MEMORY_MANAGEMENT"), "{options:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_of_the_file_is_made() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a/b/data.db");
    let store = Store::start(&format!("sqlite:{}", path.display()), &[]).expect("it starts");
    store.until(State::Up).await;
    store.create_user(1, "Ada", &[]).await;
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_without_foreign_keys_leaves_no_orphans_and_hides_nothing() {
    let database = Database::sqlite();
    let store = Store::open(&database).await;
    store.create_zone("a").await;
    store.create_zone("b").await;
    let ada = store.create_user(1, "Ada", &["a", "b"]).await;
    let feed = store.directory.open_feed().await.expect("a feed");
    let shell = shell(&path_of(&database));
    shell.execute_batch("DELETE FROM working_zone WHERE zone_id = 'a'").expect("deleted");
    assert_eq!(zones_of(&store.find_user(ada.id).await), ["b"]);
    store.create_user(2, "Bob", &["b"]).await;
    shell.execute_batch(r#"DELETE FROM "user" WHERE global_id = 2"#).expect("deleted");
    let count = "SELECT count(*) FROM user_zone_association";
    assert_eq!(shell.query_row(count, [], |row| row.get::<_, i64>(0)).expect("a count"), 1);
    shell.execute_batch("INSERT INTO user_zone_association (user_id, zone_id) VALUES (1, 'x')").expect_err("no zone x");
    shell.execute_batch("INSERT INTO user_zone_association (user_id, zone_id) VALUES (9, 'b')").expect_err("nobody");
    let cursor = feed.load().await.expect("everything").cursor;
    shell.execute_batch(r#"INSERT OR REPLACE INTO "user" (global_id, name) VALUES (1, 'Eva')"#).expect("replaced");
    match feed.changes_since(&cursor).await.expect("the feed answers") {
        Progress::Changed(changes) => {
            assert!(changes.users.contains(&(ada.id, None)), "{changes:?}");
            assert!(changes.users.iter().any(|(_, user)| user.as_ref().is_some_and(|user| &*user.name == "Eva")));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(feed.load().await.expect("everything").users.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_process_holds_the_lock_reads_go_on_and_writes_say_why() {
    let database = Database::sqlite();
    let store =
        Store::start(&database.url(), &[("DATABASE_OPERATION_TIMEOUT_SECONDS", "0.4")]).expect("the engine starts");
    store.until(State::Up).await;
    store.create_user(1, "Ada", &[]).await;
    let shell = shell(&path_of(&database));
    shell.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let error = match store.directory.write(create_user(2, "Bob", &[])).await {
        Err(WriteError::Store(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(&error, StoreError::Unavailable { detail, .. } if detail.contains("another process")), "{error}");
    assert_eq!(store.directory.read_users_dict().await.expect("reads go on").len(), 1);
    store.until(State::Degraded).await;
    let told = store.health.find(name::DATABASE).and_then(|check| check.detail).expect("a detail");
    assert!(told.contains("reads work"), "{told}");
    shell.execute_batch("ROLLBACK").expect("let go");
    store.until(State::Up).await;
    store.create_user(2, "Bob", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_writes_that_a_restore_undid_are_not_followed() {
    let database = Database::sqlite();
    let store = Store::open(&database).await;
    store.create_user(1, "Ada", &[]).await;
    let path = path_of(&database);
    let backup = path.with_file_name("backup.db");
    let kept = store.directory.open_feed().await.expect("a feed").load().await.expect("everything").cursor;
    shell(&path).execute("VACUUM INTO ?1", [backup.to_str().expect("a path")]).expect("a backup");
    let undone = store.create_user(2, "undone", &[]).await;
    let token = store.directory.open_feed().await.expect("a feed").load().await.expect("everything").cursor;

    store.close().await;
    assert!(!path.with_file_name("test.db-wal").exists(), "an orderly stop leaves one file");
    std::fs::copy(&backup, &path).expect("restored");
    let store = Store::open(&database).await;
    let feed = store.directory.open_feed().await.expect("a feed");
    let lost = feed.changes_since(&token).await.expect("an answer");
    assert!(matches!(lost, Progress::Reset(ResetReason::Epoch)), "{lost:?}");
    // The same epoch, and a log that is as long again as the one that is gone.
    let other = store.create_user(3, "after the restore", &[]).await;
    assert_eq!(other.id, undone.id, "the restore undid it");
    assert_eq!(feed.changed_users_since(&token).await.expect("an answer"), None);
    let lost = feed.changes_since(&token).await.expect("an answer");
    assert!(matches!(lost, Progress::Reset(ResetReason::Epoch)), "{lost:?}");
    assert_eq!(feed.changed_users_since(&kept).await.expect("an answer"), Some(vec![3]));
    assert_eq!(store.directory.read_users_dict().await.expect("the dict").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_no_database_is_reported_and_used_once_it_is_one() {
    let database = Database::sqlite();
    let path = path_of(&database);
    std::fs::write(&path, "not a database, whatever its name says. ".repeat(200)).expect("written");
    let store = Store::start(&database.url(), &[]).expect("waiting mends it");
    store.until(State::Down).await;
    let told = store.health.find(name::DATABASE).and_then(|check| check.detail).expect("a detail");
    assert!(told.contains("restore a backup"), "{told}");
    let error = store.directory.read_users_dict().await.expect_err("nothing to read").to_string();
    assert!(error.contains("restore a backup"), "{error}");
    std::fs::remove_file(&path).expect("removed");
    store.until(State::Up).await;
    store.create_user(1, "Ada", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_went_away_is_reported_not_made_anew_and_used_when_it_is_back() {
    let database = Database::sqlite();
    let store = Store::open(&database).await;
    store.create_user(1, "Ada", &[]).await;
    let path = path_of(&database);
    let away = path.with_file_name("away.db");
    shell(&path).execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("all of it is in the file");
    std::fs::rename(&path, &away).expect("moved");
    store.until(State::Down).await;
    assert!(!path.exists());
    match store.directory.write(Command::DeleteUser { id: 1 }).await {
        Err(WriteError::Store(StoreError::Unavailable { detail, .. })) => {
            assert!(detail.contains("test.db"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
    std::fs::rename(&away, &path).expect("moved back");
    store.until(State::Up).await;
    store.create_user(2, "Bob", &[]).await;
    assert_eq!(store.directory.read_users_dict().await.expect("the dict").len(), 2);
}
