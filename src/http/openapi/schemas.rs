//! The shapes that requests and answers have, as JSON Schema.

use serde_json::{Map, Value, json};

/// By name.
pub fn all() -> Map<String, Value> {
    [directory(), requests(), dict(), alerts(), rejected(), service(), errors()].into_iter().flatten().collect()
}

type Schemas = Vec<(String, Value)>;

fn named<const N: usize>(schemas: [(&str, Value); N]) -> Schemas {
    schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// Every property is required.
fn object(description: &str, properties: Value) -> Value {
    let required: Vec<&String> = properties.as_object().map(|all| all.keys().collect()).unwrap_or_default();
    json!({ "type": "object", "description": description, "required": required, "properties": properties })
}

/// Only the named properties are required.
fn input(description: &str, required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "description": description, "required": required, "properties": properties })
}

pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn list(name: &str) -> Value {
    json!({ "type": "array", "items": reference(name) })
}

fn text(description: &str) -> Value {
    json!({ "type": "string", "description": description })
}

fn count(description: &str) -> Value {
    json!({ "type": "integer", "format": "int64", "minimum": 0, "description": description })
}

fn integer(description: &str) -> Value {
    json!({ "type": "integer", "format": "int64", "description": description })
}

fn time(description: &str) -> Value {
    json!({ "type": "string", "format": "date-time", "description": format!("{description} RFC 3339, UTC, microseconds.") })
}

fn time_or_null(description: &str) -> Value {
    json!({ "type": ["string", "null"], "format": "date-time", "description": description })
}

/// A name or a zone id as it may be sent.
fn name(description: &str) -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 100,
        "description": format!("{description} 1 to 100 Unicode characters, without control characters; kept as sent.") })
}

fn zone_ids(description: &str) -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "description": description })
}

fn user_properties() -> Value {
    json!({
        "global_id": integer("The number by which detectors know the person. Never changes."),
        "name": text("As stored; names that came by SQL may be any text."),
        "zone_id": { "type": ["string", "null"], "description": "The first of `zone_ids`, for older clients." },
        "zone_ids": zone_ids("The assignments in the order they were made."),
        "id": integer("Our own key."),
        "created_at": time("When the user was made."),
        "updated_at": time_or_null("The last real change of the user or of its zones."),
    })
}

fn with_coordinates(mut properties: Value, description: &str) -> Value {
    for corner in 1..=4 {
        for axis in ["x", "y"] {
            properties[format!("{axis}{corner}")] = json!({ "type": "number",
                "description": format!("Corner {corner}, {axis}. {description}") });
        }
    }
    properties
}

fn zone_properties() -> Value {
    let properties = json!({
        "zone_id": text("Chosen by whoever made the zone."),
        "zone_name": text("For people."),
        "created_at": time("When the zone was made."),
        "updated_at": time_or_null("The last real change of the zone."),
    });
    with_coordinates(properties, "The corners are connected in their order.")
}

fn with(mut properties: Value, name: &str, schema: Value) -> Value {
    properties[name] = schema;
    properties
}

fn directory() -> Schemas {
    let zone_count = json!({
        "zone_id": text("The zone."),
        "zone_name": text("Its name."),
        "user_count": count("Users assigned to it; 0 is shown too."),
    });
    named([
        ("User", object("A known person.", user_properties())),
        (
            "UserWithZones",
            object("A user and its zones, in the order of `zone_ids`.", with(user_properties(), "zones", list("Zone"))),
        ),
        ("Zone", object("A quadrilateral on a floor or camera plane.", zone_properties())),
        (
            "ZoneWithUsers",
            object("A zone and its users by `global_id`.", with(zone_properties(), "users", list("User"))),
        ),
        ("Message", object("What was done, for people.", json!({ "message": text("For people.") }))),
        (
            "Assigned",
            object(
                "The zones of a user after a change.",
                json!({
                    "message": text("What was done, for people."),
                    "zones": zone_ids("The assignments as stored."),
                }),
            ),
        ),
        ("UserStats", object("How many users there are.", json!({ "total_users": count("All users.") }))),
        (
            "ZoneStats",
            object(
                "How many users each zone has, by `zone_id`.",
                json!({
                    "total_zones": count("All zones."),
                    "zones": { "type": "array", "items": object("One zone.", zone_count) },
                }),
            ),
        ),
    ])
}

fn requests() -> Schemas {
    let single = json!({ "type": ["string", "null"], "minLength": 1, "maxLength": 100,
        "description": "As `zone_ids` with this one zone; null: none. With `zone_ids` given too, it must be the first of them." });
    let zones = json!({ "type": "array", "items": name("An existing zone."),
        "description": "Replaces the assignments, in this order; repeats are dropped. Null is refused." });
    let global_id = json!({ "anyOf": [
            { "type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX },
            { "type": "string", "pattern": "^[+-]?[0-9]+(\\.0+)?$" },
            { "type": "boolean" },
        ], "description": "A 64-bit integer; `\"1005\"`, `2.0` and `true` are read as integers too." });
    let coordinate = "Finite. The four corners must make a polygon with area whose edges do not cross.";
    let update_zone = with_coordinates(json!({ "zone_name": name("For people.") }), coordinate);
    let create_zone = with(update_zone.clone(), "zone_id", name("Must not exist yet."));
    let all_of_zone: Vec<&str> = create_zone.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    named([
        (
            "UserCreate",
            input(
                "A user to be made.",
                &["global_id", "name"],
                json!({
                    "global_id": global_id, "name": name("The person's name."), "zone_id": single, "zone_ids": zones,
                }),
            ),
        ),
        (
            "UserUpdate",
            input(
                "What to change; a field that is absent is left alone.",
                &[],
                json!({
                    "name": name("The person's name."), "zone_id": single, "zone_ids": zones,
                }),
            ),
        ),
        ("ZoneAssignment", input("The zones a user is to have.", &["zone_ids"], json!({ "zone_ids": zones }))),
        ("ZoneCreate", input("A zone to be made.", &all_of_zone, create_zone.clone())),
        ("ZoneUpdate", input("What to change; a field that is absent is left alone.", &[], update_zone)),
    ])
}

fn dict() -> Schemas {
    let map = json!({ "type": "object", "additionalProperties": { "type": "string" },
        "propertyNames": { "pattern": "^-?[0-9]+$" },
        "description": "`global_id` to name, in ascending numeric order." });
    named([
        ("UsersDict", map.clone()),
        (
            "DictDelta",
            object(
                "What changed after a token.",
                json!({
                    "version": text("The token of the state after these changes."),
                    "reset": { "type": "boolean", "description": "The token could not be followed: `set` is the whole map, forget the rest." },
                    "set": map,
                    "del": { "type": "array", "items": { "type": "string" }, "description": "`global_id`s that are gone." },
                }),
            ),
        ),
    ])
}

/// As it comes and goes.
fn alert() -> Value {
    json!({ "type": "object", "additionalProperties": true,
        "description": "Any JSON object of at most 1 MiB, nested at most 128 deep. Shown exactly as it came: key order, \
            number spelling. The fields below are looked at; one of another type costs nothing but its filter.",
        "properties": {
            "user_id": { "description": "`global_id` of the person as a string or integer; null: unknown." },
            "user_name": { "description": "Name of the person, or null." },
            "camera_id": { "description": "Integer or text." },
            "zone_id": { "description": "Integer or text." },
            "zone_name": { "description": "For people." },
            "iop": { "description": "Intersection over person, 0 to 1." },
            "threshold": { "description": "The detector's threshold." },
            "status": { "description": "`violation`, `incomplete`, `authorized`, …" },
            "timestamp": { "description": "ISO 8601; without an offset it is in `ALERTS_TIMEZONE`." },
            "frame_id": { "description": "Integer or null." },
            "event_id": { "description": "1 to 200 characters that name the alert once for ever: a repeat is a duplicate." },
        } })
}

fn next() -> Value {
    json!({ "type": ["integer", "null"], "format": "int64",
        "description": "Where the next page begins, in the same direction; null: this was the last." })
}

fn alerts() -> Schemas {
    let stored = json!({
        "seq": integer("From 1, dense, in the order of the commits."),
        "received_at": time("When it was stored."),
        "occurred_at": time_or_null("Its own `timestamp`, where it has one that can be read."),
        "source": text("`http`, or `kafka:<topic>/<partition>/<offset>`."),
        "alert": reference("Alert"),
    });
    let item =
        json!({ "index": count("Place in the array; 0 for a single object."), "reason": text("Why it is no alert.") });
    named([
        ("Alert", alert()),
        (
            "AlertPage",
            object(
                "A page of the log.",
                json!({
                    "alerts": { "type": "array", "items": object("An alert and what the log knows of it.", stored) }, "next": next(),
                }),
            ),
        ),
        (
            "RecentAlerts",
            object(
                "The newest alerts, oldest first.",
                json!({
                    "count": count("How many."), "messages": list("Alert"),
                }),
            ),
        ),
        (
            "Accepted",
            object(
                "What became of each item.",
                json!({
                    "accepted": count("Stored."),
                    "duplicates": count("Not stored: their `event_id` was stored before."),
                    "rejected": { "type": "array", "items": object("An item that is no alert.", item) },
                }),
            ),
        ),
        (
            "EnvelopedAlert",
            object(
                "A frame of `/ws/alerts?envelope=true`.",
                json!({
                    "seq": integer("Its number in the log, for `after`."), "alert": reference("Alert"),
                }),
            ),
        ),
    ])
}

fn rejected() -> Schemas {
    let letter = json!({
        "id": integer("Its key."),
        "received_at": time("When it was put aside."),
        "topic": text("Kafka topic."),
        "partition": integer("Kafka partition."),
        "offset": integer("Kafka offset."),
        "reason": text("Why it is no alert, for people."),
        "size": count("Bytes of the whole message."),
        "raw_base64": { "type": "string", "contentEncoding": "base64", "description": "Its first 64 KiB." },
    });
    named([
        (
            "RejectedPage",
            object(
                "Messages from Kafka that are no alerts.",
                json!({
                    "rejected": { "type": "array", "items": object("One of them.", letter) }, "next": next(),
                }),
            ),
        ),
        (
            "Retried",
            object(
                "The letter is gone.",
                json!({
                    "id": integer("The letter."),
                    "seq": { "type": ["integer", "null"], "format": "int64", "description": "Its number in the log; null: it was a duplicate." },
                }),
            ),
        ),
    ])
}

fn service() -> Schemas {
    let state = json!({ "type": "string", "enum": ["up", "starting", "degraded", "down"] });
    let check = json!({ "type": "object", "additionalProperties": true, "required": ["state", "since"],
        "description": "A dependency, and figures of its own.",
        "properties": {
            "state": state,
            "since": time("When it entered this state."),
            "latency_ms": { "type": ["number", "null"], "description": "Of its last answer." },
            "detail": { "type": ["string", "null"], "description": "What is wrong and what to do." },
        } });
    let redis = json!({ "type": "object", "required": ["enabled"], "description":
            "`{\"enabled\":false}`, or the figures, or `error` when Redis does not answer.",
        "properties": {
            "enabled": { "type": "boolean" }, "host": { "type": "string" }, "port": { "type": "integer" },
            "db": { "type": "integer" }, "total_keys": count("Keys in the database."),
            "memory_used": text("As Redis writes it: `1.06M`."),
            "connected_clients": count("Clients of the server."), "uptime_seconds": count("Of the server."),
            "error": text("Why there are no figures."),
        } });
    let directory = json!({
        "entries": count("Users in memory."), "bytes": count("Estimated memory."),
        "version": { "type": ["string", "null"], "description": "Token of the newest content." },
        "validated_ms_ago": { "type": ["integer", "null"], "description": "Age of the last validation." },
        "rebuilds": count("Times that everything was loaded."),
    });
    let mut cache = redis.clone();
    cache["properties"]["directory"] = object("The users in memory, from which reads are answered.", directory);
    named([
        (
            "Index",
            object(
                "What the service is and has.",
                json!({
                    "service": { "type": "string" }, "version": { "type": "string" },
                    "endpoints": { "type": "object", "additionalProperties": { "type": "string" } },
                }),
            ),
        ),
        (
            "Health",
            object(
                "The state of the service and of all it depends on.",
                json!({
                    "status": { "type": "string", "enum": ["healthy", "degraded", "unhealthy"] },
                    "service": { "type": "string" }, "version": { "type": "string" },
                    "database": { "type": "string", "enum": ["PostgreSQL + tokio-postgres", "SQLite (embedded)"] },
                    "orm": { "type": "string", "const": "none" },
                    "kafka_enabled": { "type": "boolean" }, "kafka_running": { "type": "boolean" },
                    "messages_received": count("Messages from Kafka since the start."),
                    "redis": reference("RedisStats"),
                    "checks": { "type": "object", "additionalProperties": reference("Check") },
                }),
            ),
        ),
        ("Check", check),
        ("Status", object("One word.", json!({ "status": { "type": "string", "enum": ["alive", "ready"] } }))),
        ("RedisStats", redis),
        ("CacheStats", cache),
    ])
}

fn errors() -> Schemas {
    let code = || text("For programs, stable: `user_not_found`, `database_unavailable`, …");
    let id = || text("The request's id, as in the logs.");
    named([
        ("Error", object("A failure.", json!({ "detail": text("For people."), "code": code(), "request_id": id() }))),
        (
            "ValidationError",
            object(
                "All that is wrong with a request.",
                json!({
                    "detail": list("Fault"), "code": { "type": "string", "const": "validation_error" }, "request_id": id(),
                }),
            ),
        ),
        (
            "Fault",
            object(
                "One thing that is wrong.",
                json!({
                    "type": text("`missing`, `int_parsing`, `string_too_long`, `value_error`, …"),
                    "loc": { "type": "array", "items": { "type": ["string", "integer"] }, "description": "Where: `[\"body\",\"name\"]`." },
                    "msg": text("For people."),
                    "input": { "description": "What was sent there." },
                }),
            ),
        ),
    ])
}
