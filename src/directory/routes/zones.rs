//! `/zones`.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};

use super::reads::{Asked, Read, USERS_WRITTEN_INLINE, read};
use super::users::unexpected;
use super::{TOTAL_COUNT, page};
use crate::directory::geometry::check_polygon;
use crate::directory::{Command, Directory, NAME_CHARACTERS, NewZone, Outcome, User, Zone, ZonePatch};
use crate::http::answer::{Answer, to_json};
use crate::http::error::ApiError;
use crate::http::extract::{Faults, Fields, PathTexts, not_found};

pub fn router() -> Router<Directory> {
    Router::new()
        .route("/zones", read(list_zones).post(create_zone))
        .route("/zones/{zone_id}", read(get_zone).put(update_zone).delete(delete_zone))
        .route("/zones/{zone_id}/with-users", read(get_zone_with_users))
        .route("/stats/zones", read(count_zones))
}

const COORDINATES: [[&str; 2]; 4] = [["x1", "y1"], ["x2", "y2"], ["x3", "y3"], ["x4", "y4"]];

pub fn list_zones(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let (skip, limit) = page(asked.query)?;
    Ok(Read::of_view(move |view| {
        let mut answer = to_json(&view.snapshot.list_zones(skip, limit))?;
        answer.headers_mut().insert(TOTAL_COUNT, HeaderValue::from(view.snapshot.count_zones()));
        Ok(answer)
    }))
}

pub fn get_zone(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let zone_id = asked.text(0).to_owned();
    Ok(Read::of_view(move |view| to_json(view.snapshot.find_zone(&zone_id).ok_or_else(zone_not_found)?)))
}

#[derive(Serialize)]
struct ZoneWithUsers<'a> {
    #[serde(flatten)]
    zone: &'a Zone,
    users: Vec<&'a User>,
}

pub fn get_zone_with_users(asked: &Asked<'_>) -> Result<Read, ApiError> {
    let zone_id = asked.text(0).to_owned();
    let asked_for = zone_id.clone();
    Ok(Read::of_long_view(
        move |snapshot| snapshot.count_users_in_zone(&asked_for) > USERS_WRITTEN_INLINE,
        move |view| {
            let zone = view.snapshot.find_zone(&zone_id).ok_or_else(zone_not_found)?;
            let users = view.snapshot.list_users_in_zone(&zone_id).map(AsRef::as_ref).collect();
            to_json(&ZoneWithUsers { zone, users })
        },
    ))
}

async fn create_zone(State(directory): State<Directory>, body: Bytes) -> Result<Answer, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let zone_id = fields.required("zone_id", |faults, loc, value| faults.text(loc, value, &NAME_CHARACTERS));
    let zone_name = fields.required("zone_name", |faults, loc, value| faults.text(loc, value, &NAME_CHARACTERS));
    let mut corners = [[0.0; 2]; 4];
    let mut is_complete = true;
    for (corner, names) in corners.iter_mut().zip(COORDINATES) {
        for (coordinate, name) in corner.iter_mut().zip(names) {
            match fields.required(name, Faults::number) {
                Some(value) => *coordinate = value,
                None => is_complete = false,
            }
        }
    }
    if is_complete && let Err(fault) = check_polygon(&corners) {
        fields.refuse(&fault.to_string());
    }
    fields.finish()?;
    let (Some(zone_id), Some(zone_name)) = (zone_id, zone_name) else {
        return Err(ApiError::invalid(Vec::new()));
    };
    zone_of(directory.write(Command::CreateZone(NewZone { zone_id, zone_name, corners })).await?)
}

async fn update_zone(State(directory): State<Directory>, path: PathTexts, body: Bytes) -> Result<Answer, ApiError> {
    let mut fields = Fields::parse(&body)?;
    let zone_name = fields.optional("zone_name", |faults, loc, value| faults.text(loc, value, &NAME_CHARACTERS));
    let mut patch = ZonePatch { zone_name, ..ZonePatch::default() };
    for (corner, names) in patch.corners.iter_mut().zip(COORDINATES) {
        for (coordinate, name) in corner.iter_mut().zip(names) {
            *coordinate = fields.optional(name, Faults::number);
        }
    }
    fields.finish()?;
    zone_of(directory.write(Command::UpdateZone { zone_id: storable(&path)?, patch }).await?)
}

async fn delete_zone(State(directory): State<Directory>, path: PathTexts) -> Result<Json<Value>, ApiError> {
    let zone_id = storable(&path)?;
    directory.write(Command::DeleteZone { zone_id: zone_id.clone() }).await?;
    Ok(Json(json!({ "message": format!("Zone {zone_id} deleted successfully") })))
}

pub fn count_zones(_: &Asked<'_>) -> Result<Read, ApiError> {
    #[derive(Serialize)]
    struct Count<'a> {
        zone_id: &'a str,
        zone_name: &'a str,
        user_count: usize,
    }
    #[derive(Serialize)]
    struct Counts<'a> {
        total_zones: usize,
        zones: Vec<Count<'a>>,
    }
    Ok(Read::of_view(|view| {
        let zones = view.snapshot.list_zones(0, usize::MAX).iter().map(|zone| Count {
            zone_id: &zone.zone_id,
            zone_name: &zone.zone_name,
            user_count: view.snapshot.count_users_in_zone(&zone.zone_id),
        });
        to_json(&Counts { total_zones: view.snapshot.count_zones(), zones: zones.collect() })
    }))
}

/// No store can hold a NUL, so there is no such zone.
fn storable(path: &PathTexts) -> Result<String, ApiError> {
    if path.text(0).contains('\0') { Err(zone_not_found()) } else { Ok(path.text(0).to_owned()) }
}

fn zone_of(outcome: Outcome) -> Result<Answer, ApiError> {
    match outcome {
        Outcome::Zone(zone) => to_json(&zone),
        other => Err(unexpected(&other)),
    }
}

fn zone_not_found() -> ApiError {
    not_found("zone_not_found", "Zone not found")
}
