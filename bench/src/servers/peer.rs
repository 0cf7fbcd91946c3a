//! The peer: the plain cache-aside service that a competent team writes in a week. axum, sqlx with its
//! defaults, and the users dict in Redis under a TTL, deleted after writes. Not strict: a dict may be stale.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use redis::AsyncCommands;
use redis::aio::ConnectionManager;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::Row;
use sqlx::postgres::{PgPoolOptions, PgRow};
use tokio::net::TcpListener;

use super::announce;

const DICT_KEY: &str = "users:dict";
const DICT_SECONDS: u64 = 300;

/// The tables of the first version, without anything of ours.
const SCHEMA: &str = r#"
CREATE TABLE IF NOT EXISTS "user" (id bigserial PRIMARY KEY, global_id bigint NOT NULL UNIQUE, name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz);
CREATE TABLE IF NOT EXISTS user_zone_association (user_id bigint REFERENCES "user" ON DELETE CASCADE, zone_id text,
    PRIMARY KEY (user_id, zone_id));
INSERT INTO "user" (global_id, name) SELECT n, 'Person ' || lpad(n::text, 6, '0') FROM generate_series(1, 1000) AS n
    ON CONFLICT DO NOTHING;
ANALYZE "user""#;

macro_rules! users_where {
    ($rest:literal) => {
        concat!(
            r#"SELECT id, global_id, name, to_json(created_at) #>> '{}' AS created_at, to_json(updated_at) #>> '{}' AS updated_at,
            ARRAY(SELECT zone_id FROM user_zone_association AS a WHERE a.user_id = u.id) AS zone_ids FROM "user" AS u "#,
            $rest
        )
    };
}

#[derive(Clone)]
struct Peer {
    database: PgPool,
    redis: ConnectionManager,
}

#[derive(Serialize)]
struct User {
    global_id: i64,
    name: String,
    zone_id: Option<String>,
    zone_ids: Vec<String>,
    id: i64,
    created_at: String,
    updated_at: Option<String>,
}

#[derive(Deserialize)]
struct NewUser {
    global_id: i64,
    name: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    skip: i64,
    #[serde(default = "default_limit")]
    limit: i64,
}

fn default_limit() -> i64 {
    100
}

enum Failure {
    Answered(StatusCode, &'static str),
    Internal(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Internal(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Answered(status, detail) => (status, detail).into_response(),
            Self::Internal(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
        }
    }
}

pub async fn serve(listener: TcpListener, database: &str, redis: &str, address: SocketAddr) -> anyhow::Result<()> {
    let database = PgPoolOptions::new().max_connections(20).connect(database).await?;
    sqlx::raw_sql(SCHEMA).execute(&database).await?;
    let redis = ConnectionManager::new(redis::Client::open(redis)?).await?;
    let router = Router::new()
        .route("/users", get(list_users).post(create_user))
        .route("/users/{id}", get(get_user))
        .route("/users-dict", get(users_dict))
        .with_state(Peer { database, redis });
    announce(address);
    Ok(axum::serve(listener, router).await?)
}

async fn get_user(State(peer): State<Peer>, Path(id): Path<i64>) -> Result<Json<User>, Failure> {
    let row = sqlx::query(users_where!("WHERE id = $1")).bind(id).fetch_optional(&peer.database).await?;
    let row = row.ok_or(Failure::Answered(StatusCode::NOT_FOUND, "User not found"))?;
    Ok(Json(user_of(&row)?))
}

async fn list_users(State(peer): State<Peer>, Query(page): Query<Page>) -> Result<Json<Vec<User>>, Failure> {
    let query = sqlx::query(users_where!("ORDER BY global_id OFFSET $1 LIMIT $2")).bind(page.skip).bind(page.limit);
    let rows = query.fetch_all(&peer.database).await?;
    Ok(Json(rows.iter().map(user_of).collect::<Result<_, _>>()?))
}

async fn create_user(State(mut peer): State<Peer>, Json(new): Json<NewUser>) -> Result<Json<User>, Failure> {
    let sql = r#"INSERT INTO "user" (global_id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING id, to_json(created_at) #>> '{}'"#;
    let row = sqlx::query(sql).bind(new.global_id).bind(&new.name).fetch_optional(&peer.database).await?;
    let row = row.ok_or(Failure::Answered(StatusCode::BAD_REQUEST, "User already exists"))?;
    peer.redis.del::<_, ()>(DICT_KEY).await?;
    let (id, created_at) = (row.try_get(0)?, row.try_get(1)?);
    let NewUser { global_id, name } = new;
    Ok(Json(User { global_id, name, zone_id: None, zone_ids: Vec::new(), id, created_at, updated_at: None }))
}

async fn users_dict(State(mut peer): State<Peer>) -> Result<Response, Failure> {
    let cached: Option<Vec<u8>> = peer.redis.get(DICT_KEY).await?;
    let body = match cached {
        Some(body) => body,
        None => {
            let rows = sqlx::query(r#"SELECT global_id, name FROM "user""#).fetch_all(&peer.database).await?;
            let users: BTreeMap<i64, String> =
                rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, sqlx::Error>>()?;
            let body = serde_json::to_vec(&users)?;
            peer.redis.set_ex::<_, _, ()>(DICT_KEY, &body, DICT_SECONDS).await?;
            body
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn user_of(row: &PgRow) -> Result<User, sqlx::Error> {
    let zone_ids: Vec<String> = row.try_get("zone_ids")?;
    Ok(User {
        global_id: row.try_get("global_id")?,
        name: row.try_get("name")?,
        zone_id: zone_ids.first().cloned(),
        zone_ids,
        id: row.try_get("id")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
