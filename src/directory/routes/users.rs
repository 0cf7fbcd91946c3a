//! `/users` and the zones of a user.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::HeaderValue;
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};

use super::{TOTAL_COUNT, json as json_response, page};
use crate::directory::{Command, Directory, NAME_CHARACTERS, NewUser, Outcome, Snapshot, User, UserPatch, Zone};
use crate::http::error::ApiError;
use crate::http::extract::{Faults, Fields, PathTexts, not_found};

pub fn router() -> Router<Directory> {
    Router::new()
        .route("/users", get(list_users).post(create_user))
        .route("/users/{id}", get(get_user).put(update_user).delete(delete_user))
        .route("/users/global/{global_id}", get(get_user_by_global_id))
        .route("/users/by-zone/{zone_id}", get(list_users_in_zone))
        .route("/users/{id}/zones", get(get_user_with_zones))
        .route("/users/{id}/zones/assign", post(assign_zones))
        .route("/users/{id}/zones/{zone_id}/add", post(add_zone))
        .route("/users/{id}/zones/{zone_id}", delete(remove_zone))
        .route("/stats/users", get(count_users))
}

async fn list_users(State(directory): State<Directory>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let (skip, limit) = page(query.as_deref())?;
    let view = directory.read().await?;
    let users: Vec<&User> = view.snapshot.list_users(skip, limit).map(AsRef::as_ref).collect();
    let mut response = json_response(&users, view.stale)?;
    response.headers_mut().insert(TOTAL_COUNT, HeaderValue::from(view.snapshot.count_users()));
    Ok(response)
}

async fn get_user(State(directory): State<Directory>, path: PathTexts) -> Result<Response, ApiError> {
    let id = path.integer(0, "user_id")?;
    let view = directory.read().await?;
    json_response(&**view.snapshot.find_user(id).ok_or_else(user_not_found)?, view.stale)
}

async fn get_user_by_global_id(State(directory): State<Directory>, path: PathTexts) -> Result<Response, ApiError> {
    let global_id = path.integer(0, "global_id")?;
    let view = directory.read().await?;
    json_response(&**view.snapshot.find_user_by_global_id(global_id).ok_or_else(user_not_found)?, view.stale)
}

async fn list_users_in_zone(State(directory): State<Directory>, path: PathTexts) -> Result<Response, ApiError> {
    let view = directory.read().await?;
    let users: Vec<&User> = view.snapshot.list_users_in_zone(path.text(0)).map(AsRef::as_ref).collect();
    json_response(&users, view.stale)
}

#[derive(Serialize)]
struct UserWithZones<'a> {
    #[serde(flatten)]
    user: &'a User,
    zones: Vec<&'a Zone>,
}

async fn get_user_with_zones(State(directory): State<Directory>, path: PathTexts) -> Result<Response, ApiError> {
    let id = path.integer(0, "user_id")?;
    let view = directory.read().await?;
    let user = view.snapshot.find_user(id).ok_or_else(user_not_found)?;
    json_response(&UserWithZones { user, zones: zones_of(&view.snapshot, user) }, view.stale)
}

fn zones_of<'a>(snapshot: &'a Snapshot, user: &User) -> Vec<&'a Zone> {
    user.zone_ids.iter().filter_map(|zone_id| snapshot.find_zone(zone_id)).map(AsRef::as_ref).collect()
}

async fn create_user(State(directory): State<Directory>, body: Bytes) -> Result<Response, ApiError> {
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

async fn update_user(State(directory): State<Directory>, path: PathTexts, body: Bytes) -> Result<Response, ApiError> {
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
    Ok(Json(json!({ "message": format!("User {id} deleted successfully") })))
}

async fn assign_zones(State(directory): State<Directory>, path: PathTexts, body: Bytes) -> Result<Response, ApiError> {
    let id = path.integer(0, "user_id")?;
    let mut fields = Fields::parse(&body)?;
    let zone_ids = fields.required("zone_ids", |faults, loc, value| faults.texts(loc, value, &NAME_CHARACTERS));
    fields.finish()?;
    let command = Command::AssignZones { id, zone_ids: zone_ids.unwrap_or_default() };
    assigned(&directory, command, |count, _| format!("Assigned {count} zones to user {id}")).await
}

async fn add_zone(State(directory): State<Directory>, path: PathTexts) -> Result<Response, ApiError> {
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

async fn remove_zone(State(directory): State<Directory>, path: PathTexts) -> Result<Response, ApiError> {
    let (id, zone_id) = (path.integer(0, "user_id")?, path.text(1).to_owned());
    if zone_id.contains('\0') {
        // No store can hold a NUL, nor be asked for one: nobody has such a zone.
        let view = directory.read().await?;
        let user = view.snapshot.find_user(id).ok_or_else(user_not_found)?;
        let message = format!("User {id} doesn't have zone {zone_id}");
        return json_response(&Assigned { message, zones: user.zone_ids.to_vec() }, view.stale);
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
) -> Result<Response, ApiError> {
    match directory.write(command).await? {
        Outcome::Assignments { zone_ids, changed } => {
            json_response(&Assigned { message: message(zone_ids.len(), changed), zones: zone_ids }, None)
        }
        other => Err(unexpected(&other)),
    }
}

async fn count_users(State(directory): State<Directory>) -> Result<Response, ApiError> {
    let view = directory.read().await?;
    json_response(&json!({ "total_users": view.snapshot.count_users() }), view.stale)
}

fn user_of(outcome: Outcome) -> Result<Response, ApiError> {
    match outcome {
        Outcome::User(user) => json_response(&user, None),
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
