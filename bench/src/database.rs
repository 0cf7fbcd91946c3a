//! Fresh databases on the PostgreSQL of `TEST_POSTGRES_URL`, gone at the end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio_postgres::{Client, NoTls};

use crate::process::parent_of;

pub struct Database {
    admin_url: String,
    name: String,
    pub url: String,
}

impl Database {
    pub async fn create(admin_url: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ub_bench_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let client = connect(admin_url).await?;
        client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
        client.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let mut url = url::Url::parse(admin_url)?;
        url.set_path(&name);
        Ok(Self { admin_url: admin_url.to_owned(), name, url: url.into() })
    }

    pub async fn connect(&self) -> anyhow::Result<Client> {
        connect(&self.url).await
    }

    /// So many people in a migrated database that nobody follows yet; as an operator restores a dump.
    pub async fn fill(&self, users: u64) -> anyhow::Result<()> {
        self.connect().await?.batch_execute(&format!(
            r#"ALTER TABLE "user" DISABLE TRIGGER USER;
            INSERT INTO "user" (global_id, name) SELECT n, 'Person ' || lpad(n::text, 6, '0') FROM generate_series(1, {users}) AS n;
            ALTER TABLE "user" ENABLE TRIGGER USER;
            ALTER TABLE "user" ENABLE ALWAYS TRIGGER directory_log_insert;
            ALTER TABLE "user" ENABLE ALWAYS TRIGGER directory_log_update;
            ALTER TABLE "user" ENABLE ALWAYS TRIGGER directory_log_delete;
            ALTER TABLE "user" ENABLE ALWAYS TRIGGER directory_log_truncate;
            ANALYZE"#
        )).await?;
        Ok(())
    }

    /// The server's main process, whose children are its backends, where it runs on this machine.
    pub async fn server_pid(&self) -> anyhow::Result<u32> {
        let row = self.connect().await?.query_one("SELECT pg_backend_pid()", &[]).await?;
        parent_of(u32::try_from(row.try_get::<_, i32>(0)?)?).context("PostgreSQL does not run on this machine")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (admin_url, name) = (self.admin_url.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let dropping = async {
                    let client = connect(&admin_url).await?;
                    client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
                    anyhow::Ok(())
                };
                tokio::time::timeout(Duration::from_secs(30), dropping).await?
            })
        });
        if !matches!(dropping.join(), Ok(Ok(()))) {
            eprintln!("the database {} could not be dropped", self.name);
        }
    }
}

pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connecting to PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}
