//! The real servers. A test that needs one asks here; without it the test says so and is left out,
//! unless `REQUIRE_BACKENDS` names it: then its absence fails.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

/// Tells which server a test had to do without. Ends the test that calls it by `return`.
#[macro_export]
macro_rules! require_backend {
    ($backend:expr) => {
        match $backend {
            Some(backend) => backend,
            None => return,
        }
    };
}

/// Runs a behaviour, `async fn name(database: Database)`, on each engine: the tests `name::sqlite` and
/// `name::postgres`.
#[macro_export]
macro_rules! on_both_engines {
    ($($behaviour:ident),+ $(,)?) => { $(
        mod $behaviour {
            use $crate::support::backends::Database;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$behaviour(Database::sqlite()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$behaviour($crate::require_backend!(Database::postgres().await)).await;
            }
        }
    )+ };
}

/// An empty database of a test's own, gone at its end.
pub enum Database {
    Sqlite(tempfile::TempDir),
    Postgres(PostgresDatabase),
}

impl Database {
    pub fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a temporary directory"))
    }

    /// `None`: there is no PostgreSQL to be had.
    pub async fn postgres() -> Option<Self> {
        PostgresDatabase::create().await.map(Self::Postgres)
    }

    /// As `DATABASE_URL` takes it.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(_) => format!("sqlite:{}", self.file().expect("a file").display()),
            Self::Postgres(database) => database.url.clone(),
        }
    }

    /// SQLite's file.
    pub fn file(&self) -> Option<std::path::PathBuf> {
        match self {
            Self::Sqlite(directory) => Some(directory.path().join("test.db")),
            Self::Postgres(_) => None,
        }
    }

    /// Runs plain SQL past the service, as an operator with `psql` or `sqlite3` would.
    pub async fn execute(&self, sql: &str) {
        match self {
            Self::Sqlite(_) => {
                let connection = rusqlite::Connection::open(self.file().expect("a file")).expect("the file opens");
                connection.busy_timeout(super::app::PATIENCE).expect("a timeout can be set");
                connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
            Self::Postgres(database) => database.execute(sql).await,
        }
    }
}

/// A database of its own on the PostgreSQL of `TEST_POSTGRES_URL`, dropped at the end of the test.
pub struct PostgresDatabase {
    admin_url: String,
    name: String,
    pub url: String,
}

impl PostgresDatabase {
    pub async fn create() -> Option<Self> {
        let admin_url = find_postgres_url()?;
        let name = format!("ub_test_{}", uuid::Uuid::new_v4().simple());
        execute(&admin_url, &format!("CREATE DATABASE {name}")).await;
        let mut url = url::Url::parse(&admin_url).expect("TEST_POSTGRES_URL is a URL");
        url.set_path(&name);
        Some(Self { admin_url, name, url: url.into() })
    }

    /// Runs plain SQL (several statements allowed), as an operator with psql would.
    pub async fn execute(&self, sql: &str) {
        execute(&self.url, sql).await;
    }

    /// A client of its own, for transactions that stay open.
    pub async fn connect(&self) -> tokio_postgres::Client {
        connect(&self.url).await
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let (admin_url, name) = (self.admin_url.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(execute(&admin_url, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")));
        });
        dropped.join().expect("the test database is dropped");
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
    tokio::spawn(connection);
    client
}

async fn execute(url: &str, sql: &str) {
    connect(url).await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

pub fn find_postgres_url() -> Option<String> {
    find_server("postgres", "TEST_POSTGRES_URL")
}

/// Where the time that Redis takes is not what a test is about, a busy machine must not fail it.
pub const PATIENT: (&str, &str) = ("REDIS_TIMEOUT_MS", "3000");

/// A logical database of the Redis of `TEST_REDIS_URL` that no other test of this run uses. The server
/// must allow 4096 of them.
pub fn find_redis_url() -> Option<String> {
    static NEXT: AtomicI64 = AtomicI64::new(0);
    let server = find_server("redis", "TEST_REDIS_URL")?;
    let database = i64::from(std::process::id() % 64) * 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64;
    Some(format!("{}/{database}", server.trim_end_matches('/')))
}

/// `host:port` of the Apache Kafka of `TEST_KAFKA_BOOTSTRAP_SERVERS`. Tests use topics of their own.
pub fn find_kafka() -> Option<String> {
    find_server("kafka", "TEST_KAFKA_BOOTSTRAP_SERVERS")
}

fn find_server(name: &str, variable: &str) -> Option<String> {
    let required = std::env::var("REQUIRE_BACKENDS").unwrap_or_default();
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        assert!(
            !required.split(',').any(|one| one.trim() == name),
            "REQUIRE_BACKENDS names {name}, but {variable} is not set"
        );
        tell_once(name, variable);
    }
    value
}

/// The test runner hides what passing tests print; what was left out must be seen, so it goes past it.
fn tell_once(name: &str, variable: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().expect("no panic").insert(name.to_owned()) {
        let told = format!("\nLEFT OUT: all tests that need {name}. `./dev test` runs them, or set {variable}.\n");
        std::io::stderr().write_all(told.as_bytes()).expect("standard error can be written");
    }
}
