//! `/zones`.

use axum::http::HeaderValue;
use serde::Serialize;
use serde_json::json;

use super::calls::{Asked, Call, USERS_WRITTEN_INLINE};
use super::users::unexpected;
use super::{TOTAL_COUNT, page, with_field};
use crate::directory::geometry::check_polygon;
use crate::directory::json::write_users;
use crate::directory::{Command, Directory, NAME_CHARACTERS, NewZone, Outcome, ZonePatch};
use crate::http::answer::{json_of, to_bytes, to_json};
use crate::http::error::ApiError;
use crate::http::extract::{Faults, Fields, not_found};

const COORDINATES: [[&str; 2]; 4] = [["x1", "y1"], ["x2", "y2"], ["x3", "y3"], ["x4", "y4"]];

pub fn list_zones(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let (skip, limit) = page(asked.query)?;
    Ok(Call::of_view(move |view| {
        let mut answer = to_json(&view.snapshot.list_zones(skip, limit))?;
        answer.headers_mut().insert(TOTAL_COUNT, HeaderValue::from(view.snapshot.count_zones()));
        Ok(answer)
    }))
}

pub fn get_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let zone_id = asked.text(0).to_owned();
    Ok(Call::of_view(move |view| to_json(view.snapshot.find_zone(&zone_id).ok_or_else(zone_not_found)?)))
}

pub fn get_zone_with_users(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let zone_id = asked.text(0).to_owned();
    let asked_for = zone_id.clone();
    Ok(Call::of_long_view(
        move |snapshot| snapshot.count_users_in_zone(&asked_for) > USERS_WRITTEN_INLINE,
        move |view| {
            let zone = view.snapshot.find_zone(&zone_id).ok_or_else(zone_not_found)?;
            let users = write_users(view.snapshot.list_users_in_zone(&zone_id));
            Ok(json_of(with_field(to_bytes(zone)?, "users", &users)))
        },
    ))
}

pub fn create_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let mut fields = Fields::parse(asked.body)?;
    let zone_id = fields.required("zone_id", |faults, location, value| faults.text(location, value, &NAME_CHARACTERS));
    let zone_name =
        fields.required("zone_name", |faults, location, value| faults.text(location, value, &NAME_CHARACTERS));
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
    Ok(change_of_zone(Command::CreateZone(NewZone { zone_id, zone_name, corners })))
}

pub fn update_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let mut fields = Fields::parse(asked.body)?;
    let zone_name =
        fields.optional("zone_name", |faults, location, value| faults.text(location, value, &NAME_CHARACTERS));
    let mut patch = ZonePatch { zone_name, ..ZonePatch::default() };
    for (corner, names) in patch.corners.iter_mut().zip(COORDINATES) {
        for (coordinate, name) in corner.iter_mut().zip(names) {
            *coordinate = fields.optional(name, Faults::number);
        }
    }
    fields.finish()?;
    Ok(change_of_zone(Command::UpdateZone { zone_id: storable(asked)?, patch }))
}

pub fn delete_zone(asked: &Asked<'_>) -> Result<Call, ApiError> {
    let zone_id = storable(asked)?;
    Ok(Call::of_directory(async move |directory: Directory| {
        directory.write(Command::DeleteZone { zone_id: zone_id.clone() }).await?;
        to_json(&json!({ "message": format!("Zone {zone_id} deleted successfully") }))
    }))
}

pub fn count_zones(_: &Asked<'_>) -> Result<Call, ApiError> {
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
    Ok(Call::of_view(|view| {
        let zones = view.snapshot.list_zones(0, usize::MAX).iter().map(|zone| Count {
            zone_id: &zone.zone_id,
            zone_name: &zone.zone_name,
            user_count: view.snapshot.count_users_in_zone(&zone.zone_id),
        });
        to_json(&Counts { total_zones: view.snapshot.count_zones(), zones: zones.collect() })
    }))
}

/// No store can hold a NUL, so there is no such zone.
fn storable(asked: &Asked<'_>) -> Result<String, ApiError> {
    if asked.text(0).contains('\0') { Err(zone_not_found()) } else { Ok(asked.text(0).to_owned()) }
}

fn change_of_zone(command: Command) -> Call {
    Call::of_directory(async move |directory: Directory| match directory.write(command).await? {
        Outcome::Zone(zone) => to_json(&zone),
        other => Err(unexpected(&other)),
    })
}

fn zone_not_found() -> ApiError {
    not_found("zone_not_found", "Zone not found")
}
