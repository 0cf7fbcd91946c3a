//! Looks a database over for an operator: what would keep the service from working, and what to do.
//! Changes nothing.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::connection::Endpoint;
use super::migrations;
use crate::config::Secret;
use crate::storage::MigrationError;
use crate::store_error::{StoreError, describe};
use crate::telemetry::finding::Finding;

const SUBJECT: &str = "database";
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
const OLDEST_VERSION: i32 = 130_000;

const TABLES: [&str; 10] = [
    "user",
    "working_zone",
    "user_zone_association",
    "directory_change",
    "directory_epoch",
    "alert",
    "alert_log",
    "alert_span",
    "kafka_offset",
    "dead_letter",
];

pub async fn examine(url: &Secret) -> Vec<Finding> {
    let endpoint = match Endpoint::parse(url, STATEMENT_TIMEOUT) {
        Ok(endpoint) => endpoint,
        Err(error) => return vec![Finding::failure(SUBJECT, error.to_string(), "correct DATABASE_URL")],
    };
    let client = match endpoint.connect().await {
        Ok(client) => client,
        Err(error) => return vec![Finding::failure(SUBJECT, error.to_string(), remedy_for(&error))],
    };
    let mut findings = Vec::new();
    if let Err(error) = look_over(&client, url, &mut findings).await {
        let remedy = "look into the server's log; the user of DATABASE_URL must be able to read the catalogs";
        findings.push(Finding::failure(SUBJECT, describe(&error), remedy));
    }
    findings
}

fn remedy_for(error: &StoreError) -> &'static str {
    let driver = match error {
        StoreError::Unavailable { source: Some(source), .. } => source.downcast_ref::<tokio_postgres::Error>(),
        _ => None,
    };
    match driver.and_then(tokio_postgres::Error::code) {
        Some(code) if *code == SqlState::INVALID_PASSWORD || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            "check user and password in DATABASE_URL, and pg_hba.conf on the server"
        }
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
            "create the database: CREATE DATABASE … ENCODING 'UTF8', or correct its name in DATABASE_URL"
        }
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "raise max_connections on the server, or lower DATABASE_POOL_SIZE of the services"
        }
        _ => "is PostgreSQL running at the host and port of DATABASE_URL, and does the network let us through?",
    }
}

async fn look_over(client: &Client, url: &Secret, findings: &mut Vec<Finding>) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::integer, \
               current_setting('server_encoding'), pg_is_in_recovery(), current_schema()::text, \
               coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), current_user::text";
    let row = client.query_one(sql, &[]).await?;
    let (version, number): (&str, i32) = (row.try_get(0)?, row.try_get(1)?);
    findings.push(if number >= OLDEST_VERSION {
        Finding::ok(SUBJECT, format!("PostgreSQL {version} answers"))
    } else {
        Finding::failure(SUBJECT, format!("PostgreSQL {version} is too old"), "use version 13 or later")
    });
    let encoding: &str = row.try_get(2)?;
    findings.push(if encoding == "UTF8" {
        Finding::ok(SUBJECT, "its encoding is UTF8")
    } else {
        let remedy = "create a database with ENCODING 'UTF8' and move the data there";
        Finding::failure(SUBJECT, format!("its encoding is {encoding}, names and alerts need UTF8"), remedy)
    });
    if row.try_get(3)? {
        findings.push(Finding::failure(SUBJECT, "it is a read-only standby", "point DATABASE_URL at the primary"));
    }
    let is_current = examine_schema(url, findings).await;
    let (schema, may_create): (Option<&str>, bool) = (row.try_get(4)?, row.try_get(5)?);
    let user: &str = row.try_get(6)?;
    if !may_create && !is_current {
        let schema = schema.unwrap_or("public");
        let remedy = format!("GRANT CREATE, USAGE ON SCHEMA {schema} TO \"{user}\"");
        findings.push(Finding::failure(SUBJECT, format!("{user} may not create tables in schema {schema}"), remedy));
    }
    examine_rights(client, user, findings).await?;
    if is_current {
        examine_triggers(client, findings).await?;
    }
    Ok(())
}

/// Whether the schema is that of this binary.
async fn examine_schema(url: &Secret, findings: &mut Vec<Finding>) -> bool {
    let finding = match migrations::check(url).await {
        Ok(report) if report.pending.is_empty() => Finding::ok(SUBJECT, "its schema is up to date"),
        Ok(report) => {
            let remedy = "nothing, `serve` applies them when it starts; or run `unified-backend migrate` now";
            Finding::warning(SUBJECT, format!("pending migrations: {}", report.pending.join(", ")), remedy)
        }
        Err(error @ MigrationError::Newer { .. }) => {
            Finding::failure(SUBJECT, error.to_string(), "run the version that made it")
        }
        // The encoding has a finding of its own.
        Err(MigrationError::Failed(_)) => return false,
        Err(error) => Finding::failure(SUBJECT, error.to_string(), "look into the server's log"),
    };
    let is_current = finding.remedy.is_none();
    findings.push(finding);
    is_current
}

async fn examine_rights(client: &Client, user: &str, findings: &mut Vec<Finding>) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT name FROM (SELECT name, to_regclass(quote_ident(name)) AS relation FROM unnest($1::text[]) AS t(name)) AS r \
               WHERE relation IS NOT NULL AND NOT (has_table_privilege(relation, 'SELECT') AND has_table_privilege(relation, 'INSERT') \
               AND has_table_privilege(relation, 'UPDATE') AND has_table_privilege(relation, 'DELETE'))";
    let rows = client.query(sql, &[&TABLES.as_slice()]).await?;
    let locked: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    findings.push(if locked.is_empty() {
        Finding::ok(SUBJECT, format!("{user} may read and write its tables"))
    } else {
        let quoted: Vec<String> = locked.iter().map(|table| format!("\"{table}\"")).collect();
        let remedy = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO \"{user}\"", quoted.join(", "));
        Finding::failure(SUBJECT, format!("{user} may not read and write {}", locked.join(", ")), remedy)
    });
    Ok(())
}

/// Without them reads would miss what SQL clients write.
async fn examine_triggers(client: &Client, findings: &mut Vec<Finding>) -> Result<(), tokio_postgres::Error> {
    let sql = r#"SELECT wanted.relation, wanted.name, t.tgenabled::text, wanted.state = 'R' FROM (
                     SELECT relation, 'directory_log_' || event AS name, CASE event WHEN 'row' THEN 'R' ELSE 'A' END AS state
                     FROM unnest(ARRAY['user', 'working_zone', 'user_zone_association']) AS r(relation),
                         unnest(ARRAY['insert', 'update', 'delete', 'truncate', 'row']) AS e(event)
                 ) AS wanted
                 LEFT JOIN pg_trigger AS t ON t.tgrelid = to_regclass(quote_ident(wanted.relation)) AND t.tgname = wanted.name
                 WHERE t.tgenabled::text IS DISTINCT FROM wanted.state ORDER BY 1, 2"#;
    let rows = client.query(sql, &[]).await?;
    for row in &rows {
        let (relation, name): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let state: Option<&str> = row.try_get(2)?;
        let (what, remedy) = match state {
            None => ("is missing", "restore it from migrations/postgres, V2__change_log.sql".to_owned()),
            Some(state) => {
                let what = if state == "D" { "is disabled" } else { "does not fire in every session" };
                let mode = if row.try_get(3)? { "REPLICA" } else { "ALWAYS" };
                (what, format!("ALTER TABLE \"{relation}\" ENABLE {mode} TRIGGER {name}"))
            }
        };
        let detail = format!("the change log trigger {name} of \"{relation}\" {what}: changes could go unseen");
        findings.push(Finding::failure(SUBJECT, detail, remedy));
    }
    if rows.is_empty() {
        findings.push(Finding::ok(SUBJECT, "every change of people and zones is logged (15 triggers)"));
    }
    Ok(())
}
