//! `/users` and the zones of a user.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::routing::{delete, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::Value;

use super::reads::{Asked, Read, USERS_WRITTEN_INLINE, read};
use super::{TOTAL_COUNT, mark, page};
use crate::directory::{Command, Directory, NAME_CHARACTERS, NewUser, Outcome, Snapshot, User, UserPatch, View, Zone};
use crate::http::answer::{Answer, Pieces, json, to_json};
use crate::http::error::ApiError;
use crate::http::extract::{Faults, Fields, PathTexts, not_found};

pub fn router() -> Router<Directory> {
    Router::new()
        .route("/users", read(list_users).post(create_user))
        .route("/users/{id}", read(get_user).put(update_user).delete(delete_user))
        .route("/users/global/{global_id}", read(get_user_by_global_id))
        .route("/users/by-zone/{zone_id}", read(list_users_in_zone))
        .route("/users/{id}/zones", read(get_user_with_zones))
        .route("/users/{id}/zones/assign", post(assign_zones))
        .route("/users/{id}/zones/{zone_id}/add", post(add_zone))
        .route("/users/{id}/zones/{zone_id}", delete(remove_zone))
        .route("/stats/users", read(count_users))
}

pub fn list_users(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let (skip, limit) = page(asked.query)?;
    let is_long = limit > USERS_WRITTEN_INLINE;
    let answer = move |view: &View| {
        let mut answer = json(Pieces::One(view.snapshot.users_json(skip, limit)));
        answer.headers_mut().insert(TOTAL_COUNT, HeaderValue::from(view.snapshot.count_users()));
        Ok(answer)
    };
    Ok(if is_long { Read::of_long_view(|_| true, answer) } else { Read::of_view(answer) })
}

pub fn get_user(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let id = asked.integer(0, "user_id")?;
    Ok(Read::of_view(move |view| to_json(view.snapshot.find_user(id).ok_or_else(user_not_found)?)))
}

pub fn get_user_by_global_id(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let global_id = asked.integer(0, "global_id")?;
    Ok(Read::of_view(move |view| to_json(view.snapshot.find_user_by_global_id(global_id).ok_or_else(user_not_found)?)))
}

pub fn list_users_in_zone(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let zone_id = asked.text(0).to_owned();
    let zone = zone_id.clone();
    Ok(Read::of_long_view(
        move |snapshot| snapshot.count_users_in_zone(&zone) > USERS_WRITTEN_INLINE,
        move |view| to_json(&view.snapshot.list_users_in_zone(&zone_id).collect::<Vec<_>>()),
    ))
}

#[derive(Serialize)]
struct UserWithZones<'a> {
    #[serde(flatten)]
    user: &'a User,
    zones: Vec<&'a Zone>,
}

pub fn get_user_with_zones(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let id = asked.integer(0, "user_id")?;
    Ok(Read::of_view(move |view| {
        let user = view.snapshot.find_user(id).ok_or_else(user_not_found)?;
        to_json(&UserWithZones { user, zones: zones_of(&view.snapshot, user) })
    }))
}

fn zones_of<'a>(snapshot: &'a Snapshot, user: &User) -> Vec<&'a Zone> {
    user.zone_ids.iter().filter_map(|zone_id| snapshot.find_zone(zone_id)).map(AsRef::as_ref).collect()
}

async fn create_user(State(directory): State<Directory>, body: Bytes) -> Result<Answer, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let global_id = fields.required("global_id", Faults::integer);
    let name = fields.required("name", |faults, loc, value| faults.text(loc, value, &NAME_CHARACTERS));
    let zone_ids = wanted_zones(&mut fields).unwrap_or_default();
    fields.finish()?;
    let (Some(global_id), Some(name)) = (global_id, name) else {
        return Err(ApiError::invalid(Vec::new()));
    };
    user_of(directory.write(Command::CreateUser(NewUser { global_id, name, zone_ids })).await?)
}

async fn update_user(State(directory): State<Directory>, path: PathTexts, body: Bytes) -> Result<Answer, ApiError> {
    let id = path.integer(0, "user_id")?;
    let mut fields = Fields::parse(&body)?;
    let name = fields.optional("name", |faults, loc, value| faults.text(loc, value, &NAME_CHARACTERS));
    let zone_ids = wanted_zones(&mut fields);
    fields.finish()?;
    user_of(directory.write(Command::UpdateUser { id, patch: UserPatch { name, zone_ids } }).await?)
}

/// `zone_id` is the field that older clients know; given both, they must agree.
fn wanted_zones(fields: &mut Fields) -> Option<Vec<String>> {
    let single = fields.optional("zone_id", |faults, loc, value| match value {
        Value::Null => Some(None),
        value => faults.text(loc, value, &NAME_CHARACTERS).map(Some),
    });
    let list = fields.optional("zone_ids", |faults, loc, value| faults.texts(loc, value, &NAME_CHARACTERS));
    match (single, list) {
        (single, Some(list)) => {
            if single.is_some_and(|single| single.as_ref() != list.first()) {
                fields.refuse("zone_id must be the first of zone_ids; send one of them");
            }
            Some(list)
        }
        (Some(single), None) => Some(single.into_iter().collect()),
        (None, None) => None,
    }
}

async fn delete_user(State(directory): State<Directory>, path: PathTexts) -> Result<Json<Value>, ApiError> {
    let id = path.integer(0, "user_id")?;
    directory.write(Command::DeleteUser { id }).await?;
    Ok(Json(serde_json::json!({ "message": format!("User {id} deleted successfully") })))
}

async fn assign_zones(State(directory): State<Directory>, path: PathTexts, body: Bytes) -> Result<Answer, ApiError> {
    let id = path.integer(0, "user_id")?;
    let mut fields = Fields::parse(&body)?;
    let zone_ids = fields.required("zone_ids", |faults, loc, value| faults.texts(loc, value, &NAME_CHARACTERS));
    fields.finish()?;
    let command = Command::AssignZones { id, zone_ids: zone_ids.unwrap_or_default() };
    assigned(&directory, command, |count, _| format!("Assigned {count} zones to user {id}")).await
}

async fn add_zone(State(directory): State<Directory>, path: PathTexts) -> Result<Answer, ApiError> {
    let (id, zone_id) = (path.integer(0, "user_id")?, path.text(1).to_owned());
    if zone_id.contains('\0') {
        return Err(not_found("zone_not_found", "Zone not found"));
    }
    assigned(&directory, Command::AddZone { id, zone_id: zone_id.clone() }, |_, changed| {
        if changed {
            format!("Added zone {zone_id} to user {id}")
        } else {
            format!("User {id} already has zone {zone_id}")
        }
    })
    .await
}

async fn remove_zone(State(directory): State<Directory>, path: PathTexts) -> Result<Answer, ApiError> {
    let (id, zone_id) = (path.integer(0, "user_id")?, path.text(1).to_owned());
    if zone_id.contains('\0') {
        // No store can hold a NUL, nor be asked for one: nobody has such a zone.
        let view = directory.read().await?;
        let user = view.snapshot.find_user(id).ok_or_else(user_not_found)?;
        let message = format!("User {id} doesn't have zone {zone_id}");
        let mut answer = to_json(&Assigned { message, zones: user.zone_ids.to_vec() })?;
        mark(&mut answer, view.stale);
        return Ok(answer);
    }
    assigned(&directory, Command::RemoveZone { id, zone_id: zone_id.clone() }, |_, changed| {
        if changed {
            format!("Removed zone {zone_id} from user {id}")
        } else {
            format!("User {id} doesn't have zone {zone_id}")
        }
    })
    .await
}

#[derive(Serialize)]
struct Assigned {
    message: String,
    zones: Vec<Arc<str>>,
}

async fn assigned(
    directory: &Directory,
    command: Command,
    message: impl FnOnce(usize, bool) -> String,
) -> Result<Answer, ApiError> {
    match directory.write(command).await? {
        Outcome::Assignments { zone_ids, changed } => {
            to_json(&Assigned { message: message(zone_ids.len(), changed), zones: zone_ids })
        }
        other => Err(unexpected(&other)),
    }
}

pub fn count_users(_: &Asked<'_>) -> Result<Read, ApiError> {
    Ok(Read::of_view(|view| to_json(&serde_json::json!({ "total_users": view.snapshot.count_users() }))))
}

fn user_of(outcome: Outcome) -> Result<Answer, ApiError> {
    match outcome {
        Outcome::User(user) => to_json(&user),
        other => Err(unexpected(&other)),
    }
}

pub fn unexpected(outcome: &Outcome) -> ApiError {
    ApiError::unavailable(
        "database",
        "database_unavailable",
        format!("the store answered {outcome:?} to another command"),
    )
}

fn user_not_found() -> ApiError {
    not_found("user_not_found", "User not found")
}
