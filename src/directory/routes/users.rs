//! `/users` and the zones of a user.

use std::sync::Arc;

use axum::http::HeaderValue;
use serde::Serialize;
use serde_json::{Value, json};

use super::calls::{Asked, Call, USERS_WRITTEN_INLINE};
use super::{TOTAL_COUNT, page, with_field};
use crate::directory::json::{write_user, write_users};
use crate::directory::{Command, Directory, NAME_CHARACTERS, NewUser, Outcome, User, UserPatch, View, Zone};
use crate::http::answer::{Answer, json_of, to_bytes, to_json};
use crate::http::error::ApiError;
use crate::http::extract::{Faults, Fields, not_found};

pub fn list_users(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let (skip, limit) = page(asked.query)?;
    let answer = move |view: &View| {
        let mut answer = json_of(view.snapshot.users_json(skip, limit));
        answer.headers_mut().insert(TOTAL_COUNT, HeaderValue::from(view.snapshot.count_users()));
        Ok(answer)
    };
    Ok(Call::of_long_view(move |_| limit > USERS_WRITTEN_INLINE, answer))
}

pub fn get_user(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let id = asked.integer(0, "user_id")?;
    Ok(Call::of_view(move |view| view.snapshot.find_user(id).map(|user| one(user)).ok_or_else(user_not_found)))
}

pub fn get_user_by_global_id(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let global_id = asked.integer(0, "global_id")?;
    Ok(Call::of_view(move |view| {
        view.snapshot.find_user_by_global_id(global_id).map(|user| one(user)).ok_or_else(user_not_found)
    }))
}

fn one(user: &User) -> Answer {
    json_of(write_user(user))
}

pub fn list_users_in_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let zone_id = asked.text(0).to_owned();
    let zone = zone_id.clone();
    Ok(Call::of_long_view(
        move |snapshot| snapshot.count_users_in_zone(&zone) > USERS_WRITTEN_INLINE,
        move |view| Ok(json_of(write_users(view.snapshot.list_users_in_zone(&zone_id)))),
    ))
}

pub fn get_user_with_zones(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let id = asked.integer(0, "user_id")?;
    Ok(Call::of_view(move |view| {
        let user = view.snapshot.find_user(id).ok_or_else(user_not_found)?;
        let zones = user.zone_ids.iter().filter_map(|zone_id| view.snapshot.find_zone(zone_id));
        let zones: Vec<&Zone> = zones.map(AsRef::as_ref).collect();
        Ok(json_of(with_field(write_user(user), "zones", &to_bytes(&zones)?)))
    }))
}

pub fn create_user(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let mut fields = Fields::parse(asked.body)?;
    let global_id = fields.required("global_id", Faults::integer);
    let name = fields.required("name", |faults, location, value| faults.text(location, value, &NAME_CHARACTERS));
    let zone_ids = wanted_zones(&mut fields).unwrap_or_default();
    fields.finish()?;
    let (Some(global_id), Some(name)) = (global_id, name) else {
        return Err(ApiError::invalid(Vec::new()));
    };
    Ok(change_of_user(Command::CreateUser(NewUser { global_id, name, zone_ids })))
}

pub fn update_user(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let id = asked.integer(0, "user_id")?;
    let mut fields = Fields::parse(asked.body)?;
    let name = fields.optional("name", |faults, location, value| faults.text(location, value, &NAME_CHARACTERS));
    let zone_ids = wanted_zones(&mut fields);
    fields.finish()?;
    Ok(change_of_user(Command::UpdateUser { id, patch: UserPatch { name, zone_ids } }))
}

fn change_of_user(command: Command) -> Call {
    Call::of_directory(async move |directory: Directory| match directory.write(command).await? {
        Outcome::User(user) => Ok(one(&user)),
        other => Err(unexpected(&other)),
    })
}

/// `zone_id` is the field that older clients know; given both, they must agree.
fn wanted_zones(fields: &mut Fields) -> Option<Vec<String>> {
    let single = fields.optional("zone_id", |faults, location, value| match value {
        Value::Null => Some(None),
        value => faults.text(location, value, &NAME_CHARACTERS).map(Some),
    });
    let list = fields.optional("zone_ids", |faults, location, value| faults.texts(location, value, &NAME_CHARACTERS));
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

pub fn delete_user(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let id = asked.integer(0, "user_id")?;
    Ok(Call::of_directory(async move |directory: Directory| {
        directory.write(Command::DeleteUser { id }).await?;
        to_json(&json!({ "message": format!("User {id} deleted successfully") }))
    }))
}

pub fn assign_zones(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let id = asked.integer(0, "user_id")?;
    let mut fields = Fields::parse(asked.body)?;
    let zone_ids =
        fields.required("zone_ids", |faults, location, value| faults.texts(location, value, &NAME_CHARACTERS));
    fields.finish()?;
    let command = Command::AssignZones { id, zone_ids: zone_ids.unwrap_or_default() };
    Ok(assigned(command, move |count, _| format!("Assigned {count} zones to user {id}")))
}

pub fn add_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let (id, zone_id) = (asked.integer(0, "user_id")?, asked.text(1).to_owned());
    if zone_id.contains('\0') {
        return Err(not_found("zone_not_found", "Zone not found"));
    }
    Ok(assigned(Command::AddZone { id, zone_id: zone_id.clone() }, move |_, changed| {
        if changed {
            format!("Added zone {zone_id} to user {id}")
        } else {
            format!("User {id} already has zone {zone_id}")
        }
    }))
}

pub fn remove_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let (id, zone_id) = (asked.integer(0, "user_id")?, asked.text(1).to_owned());
    if zone_id.contains('\0') {
        // No store can hold a NUL, nor be asked for one: nobody has such a zone.
        return Ok(Call::of_view(move |view| {
            let user = view.snapshot.find_user(id).ok_or_else(user_not_found)?;
            let message = format!("User {id} doesn't have zone {zone_id}");
            to_json(&Assigned { message, zones: user.zone_ids.to_vec() })
        }));
    }
    Ok(assigned(Command::RemoveZone { id, zone_id: zone_id.clone() }, move |_, changed| {
        if changed {
            format!("Removed zone {zone_id} from user {id}")
        } else {
            format!("User {id} doesn't have zone {zone_id}")
        }
    }))
}

#[derive(Serialize)]
struct Assigned {
    message: String,
    zones: Vec<Arc<str>>,
}

fn assigned(command: Command, message: impl FnOnce(usize, bool) -> String + Send + 'static) -> Call {
    Call::of_directory(async move |directory: Directory| match directory.write(command).await? {
        Outcome::Assignments { zone_ids, changed } => {
            to_json(&Assigned { message: message(zone_ids.len(), changed), zones: zone_ids })
        }
        other => Err(unexpected(&other)),
    })
}

pub fn count_users(_: &Asked<'_>) -> Result<Call, ApiError> {
    Ok(Call::of_view(|view| to_json(&json!({ "total_users": view.snapshot.count_users() }))))
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
