//! The table of operations. Each says what it takes, what it answers and how it fails.

use super::examples::{ALERT, ALERT_PAGE, ANN, ANN_WITH_ZONES, ANNS, DELTA, DOCK, DOCK_WITH_USERS, DOCKS, NEW_DOCK};
use super::{Answer, Content, Endpoint, Failure, Parameter};

pub const INTRODUCTION: &str = "\
Who is who, who may be where, and what the cameras saw.

**Reads are never stale.** The answer to any `GET` of users, zones, statistics or the dict contains every write that was \
acknowledged before the request arrived, whichever instance or SQL client made it.

**Alerts are stored exactly once** and numbered densely in commit order (`seq`): who has seen n has seen all before n. \
Every stream resumes from the last `seq` it saw, without gap or duplicate.

**Errors** are `{\"detail\",\"code\",\"request_id\"}`; a 422 lists all faults of the request in `detail`. Any path answers \
404 (`not_found`) where there is nothing, 405 (`method_not_allowed`, with `Allow`) to a method it lacks, 307 to a trailing \
slash, 413 to a body over 1 MiB (`POST /alerts`: 16 MiB), 408 to a body that does not arrive in time, and 503 with \
`Retry-After` when a request takes too long (`request_deadline`) or the service has all the connections it may have \
(`too_many_connections`). `HEAD` works wherever `GET` does. Unknown JSON fields are ignored.";

const USERS: &str = "users";
const ZONES: &str = "zones";
const DICT: &str = "users dict";
const ALERTS: &str = "alerts";
const SERVICE: &str = "service";

pub const TAGS: [(&str, &str); 5] = [
    (USERS, "Known people and the zones they may be in."),
    (ZONES, "Quadrilaterals on a floor or camera plane."),
    (DICT, "`global_id` to name, for detectors and screens: whole, by changes, or as a stream."),
    (ALERTS, "The log of alerts: in, out, live."),
    (SERVICE, "The service about itself."),
];

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

const fn failure(status: u16, code: &'static str, detail: &'static str) -> Failure {
    Failure { status, code, detail }
}

const fn json(description: &'static str, contents: &'static [Content]) -> Answer {
    Answer { status: 200, description, headers: &[], contents }
}

const fn content(schema: &'static str, examples: &'static [(&'static str, &'static str)]) -> Content {
    Content { media_type: JSON, schema, examples }
}

const fn parameter(
    name: &'static str,
    place: &'static str,
    schema: &'static str,
    description: &'static str,
) -> Parameter {
    Parameter { name, place, schema, description }
}

const INT64: &str = r#"{"type":"integer","format":"int64"}"#;
const TEXT: &str = r#"{"type":"string"}"#;
const TEXTS: &str = r#"{"type":"array","maxItems":100,"items":{"type":"string"}}"#;

const USER_ID: Parameter = parameter("id", "path", INT64, "The user's `id`.");
const GLOBAL_ID: Parameter = parameter("global_id", "path", INT64, "The user's `global_id`.");
const ZONE_ID: Parameter =
    parameter("zone_id", "path", TEXT, "The zone's id, percent-decoded once: `%2F` is a slash within it.");
const SKIP: Parameter =
    parameter("skip", "query", r#"{"type":"integer","minimum":0,"default":0}"#, "How many to leave out.");
const LIMIT: Parameter =
    parameter("limit", "query", r#"{"type":"integer","minimum":1,"maximum":10000,"default":100}"#, "How many at most.");
const LIMIT_1000: Parameter =
    parameter("limit", "query", r#"{"type":"integer","minimum":1,"maximum":1000,"default":100}"#, "How many at most.");
const SEQ: &str = r#"{"type":"integer","format":"int64","minimum":0}"#;
const FILTER_ZONE: Parameter = parameter("zone_id", "query", TEXTS, "Only of these zones; repeatable.");
const FILTER_USER: Parameter = parameter("user_id", "query", TEXTS, "Only of these people; repeatable.");
const FILTER_STATUS: Parameter = parameter("status", "query", TEXTS, "Only with these statuses; repeatable.");
const FILTER_CAMERA: Parameter = parameter("camera_id", "query", TEXTS, "Only of these cameras; repeatable.");
const RESUME: Parameter = parameter("after", "query", SEQ, "The last `seq` seen; the stream goes on behind it.");
const ENVELOPE: Parameter = parameter(
    "envelope",
    "query",
    r#"{"type":"boolean","default":false}"#,
    "`{\"seq\",\"alert\"}` instead of the bare object.",
);

const DATABASE_AWAY: Failure =
    failure(503, "database_unavailable", r#""database is not available right now, try again in a moment""#);
const DATABASE_SLOW: Failure =
    failure(503, "database_deadline", r#""database is not available right now, try again in a moment""#);
const LOG_AWAY: Failure =
    failure(503, "database_unavailable", r#""alert log is not available right now, try again in a moment""#);
const NO_USER: Failure = failure(404, "user_not_found", r#""User not found""#);
const NO_ZONE: Failure = failure(404, "zone_not_found", r#""Zone not found""#);
const BAD_PAGE: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"less_than_equal","loc":["query","limit"],"msg":"Input should be less than or equal to 10000","input":"10001"}]"#,
);
const BAD_ID: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"int_parsing","loc":["path","user_id"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":"abc"}]"#,
);
const BAD_GLOBAL_ID: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"int_parsing","loc":["path","global_id"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":"abc"}]"#,
);
const BAD_USER: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"missing","loc":["body","name"],"msg":"Field required","input":{"global_id":7}}]"#,
);
const UNKNOWN_ZONE: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"value_error","loc":["body","zone_ids"],"msg":"Value error, unknown zone: roof","input":["roof"]}]"#,
);
const BAD_ZONE: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"value_error","loc":["body"],"msg":"Value error, the zone has no area: its corners lie on one line","input":null}]"#,
);
const BAD_PATH: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"value_error","loc":["path"],"msg":"Value error, Invalid UTF-8 in `zone_id`","input":"/zones/%FF"}]"#,
);
const BAD_LOG_QUERY: Failure = failure(
    422,
    "validation_error",
    r#"[{"type":"datetime_parsing","loc":["query","from"],"msg":"Input should be a valid datetime, as in 2026-11-24T09:24:00Z","input":"noon"}]"#,
);
const BEYOND_END: Failure = failure(
    422,
    "seq_beyond_end",
    r#""the log ends at 41, 9000 is beyond it: it is another log, start over without `after`""#,
);
const BAD_ORIGIN: Failure = failure(
    403,
    "origin_not_allowed",
    r#""pages of https://elsewhere.example may not listen here; add it to API_CORS_ORIGINS if they should""#,
);

/// Of every operation with a body.
pub const BODY_FAILURES: &[Failure] = &[
    failure(408, "body_timeout", r#""the body did not arrive within 30 s""#),
    failure(413, "body_too_large", r#""the body is larger than 1048576 bytes""#),
];

const USER: Content = content(r##"{"$ref":"#/components/schemas/User"}"##, &[("user", ANN)]);
const USER_LIST: Content =
    content(r##"{"type":"array","items":{"$ref":"#/components/schemas/User"}}"##, &[("users", ANNS), ("nobody", "[]")]);
const ZONE: Content = content(r##"{"$ref":"#/components/schemas/Zone"}"##, &[("zone", DOCK)]);
const ASSIGNED: &str = r##"{"$ref":"#/components/schemas/Assigned"}"##;
const MESSAGE: &str = r##"{"$ref":"#/components/schemas/Message"}"##;

pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint::new("get", "/users", USERS, "List users")
        .about("By `global_id`.")
        .takes(&[SKIP, LIMIT])
        .answers(&[Answer { headers: &["X-Total-Count"], ..json("A page of users.", &[USER_LIST]) }])
        .fails(&[BAD_PAGE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("post", "/users", USERS, "Create a user")
        .body(
            r##"{"$ref":"#/components/schemas/UserCreate"}"##,
            &[
                ("user", r#"{"global_id":1005,"name":"Ann","zone_ids":["dock","hall"]}"#),
                ("smallest", r#"{"global_id":"1006","name":"Bob"}"#),
            ],
        )
        .answers(&[json("The user as stored.", &[USER])])
        .fails(&[
            failure(400, "user_exists", r#""User with global_id 1005 already exists""#),
            BAD_USER,
            DATABASE_AWAY,
            DATABASE_SLOW,
        ]),
    Endpoint::new("get", "/users/{id}", USERS, "Find a user")
        .takes(&[USER_ID])
        .answers(&[json("The user.", &[USER])])
        .fails(&[NO_USER, BAD_ID, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("put", "/users/{id}", USERS, "Change a user")
        .about("A field that is absent is left alone; `global_id` never changes. A PUT of what GET gave changes nothing, not even `updated_at`.")
        .takes(&[USER_ID])
        .body(
            r##"{"$ref":"#/components/schemas/UserUpdate"}"##,
            &[("rename", r#"{"name":"Anna"}"#), ("no zones", r#"{"zone_id":null}"#)],
        )
        .answers(&[json("The user as stored.", &[USER])])
        .fails(&[NO_USER, UNKNOWN_ZONE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("delete", "/users/{id}", USERS, "Delete a user")
        .takes(&[USER_ID])
        .answers(&[json("Done.", &[content(MESSAGE, &[("deleted", r#"{"message":"User 1 deleted successfully"}"#)])])])
        .fails(&[NO_USER, BAD_ID, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/users/global/{global_id}", USERS, "Find a user by global_id")
        .takes(&[GLOBAL_ID])
        .answers(&[json("The user.", &[USER])])
        .fails(&[NO_USER, BAD_GLOBAL_ID, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/users/by-zone/{zone_id}", USERS, "List the users of a zone")
        .about("By `global_id`. Nobody is in an unknown zone.")
        .takes(&[ZONE_ID])
        .answers(&[json("The users.", &[USER_LIST])])
        .fails(&[BAD_PATH, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/users/{id}/zones", USERS, "Find a user with its zones")
        .takes(&[USER_ID])
        .answers(&[json(
            "The user and its zones.",
            &[content(r##"{"$ref":"#/components/schemas/UserWithZones"}"##, &[("user", ANN_WITH_ZONES)])],
        )])
        .fails(&[NO_USER, BAD_ID, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("post", "/users/{id}/zones/assign", USERS, "Replace the zones of a user")
        .about("In the given order; repeats are dropped.")
        .takes(&[USER_ID])
        .body(
            r##"{"$ref":"#/components/schemas/ZoneAssignment"}"##,
            &[("two zones", r#"{"zone_ids":["dock","hall"]}"#), ("none", r#"{"zone_ids":[]}"#)],
        )
        .answers(&[json(
            "The zones as stored.",
            &[content(ASSIGNED, &[("assigned", r#"{"message":"Assigned 2 zones to user 1","zones":["dock","hall"]}"#)])],
        )])
        .fails(&[NO_USER, UNKNOWN_ZONE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("post", "/users/{id}/zones/{zone_id}/add", USERS, "Add a zone to a user")
        .about("Atomic: of two that add different zones at once, neither is lost.")
        .takes(&[USER_ID, ZONE_ID])
        .answers(&[json(
            "The zones as stored.",
            &[content(
                ASSIGNED,
                &[
                    ("added", r#"{"message":"Added zone hall to user 1","zones":["dock","hall"]}"#),
                    ("nothing to do", r#"{"message":"User 1 already has zone hall","zones":["dock","hall"]}"#),
                ],
            )],
        )])
        .fails(&[NO_USER, NO_ZONE, BAD_ID, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("delete", "/users/{id}/zones/{zone_id}", USERS, "Take a zone from a user")
        .takes(&[USER_ID, ZONE_ID])
        .answers(&[json(
            "The zones as stored.",
            &[content(
                ASSIGNED,
                &[
                    ("removed", r#"{"message":"Removed zone hall from user 1","zones":["dock"]}"#),
                    ("nothing to do", r#"{"message":"User 1 doesn't have zone hall","zones":["dock"]}"#),
                ],
            )],
        )])
        .fails(&[NO_USER, BAD_ID, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/stats/users", USERS, "Count users")
        .answers(&[json(
            "The count.",
            &[content(r##"{"$ref":"#/components/schemas/UserStats"}"##, &[("count", r#"{"total_users":42}"#)])],
        )])
        .fails(&[DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/zones", ZONES, "List zones")
        .about("By `zone_id`, compared by its UTF-8 bytes.")
        .takes(&[SKIP, LIMIT])
        .answers(&[Answer {
            headers: &["X-Total-Count"],
            ..json(
                "A page of zones.",
                &[content(
                    r##"{"type":"array","items":{"$ref":"#/components/schemas/Zone"}}"##,
                    &[("zones", DOCKS), ("none", "[]")],
                )],
            )
        }])
        .fails(&[BAD_PAGE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("post", "/zones", ZONES, "Create a zone")
        .about("The four points, connected in their order, must make a polygon with area whose edges do not cross.")
        .body(r##"{"$ref":"#/components/schemas/ZoneCreate"}"##, &[("zone", NEW_DOCK)])
        .answers(&[json("The zone as stored.", &[ZONE])])
        .fails(&[
            failure(400, "zone_exists", r#""Zone with zone_id dock already exists""#),
            BAD_ZONE,
            DATABASE_AWAY,
            DATABASE_SLOW,
        ]),
    Endpoint::new("get", "/zones/{zone_id}", ZONES, "Find a zone")
        .takes(&[ZONE_ID])
        .answers(&[json("The zone.", &[ZONE])])
        .fails(&[NO_ZONE, BAD_PATH, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("put", "/zones/{zone_id}", ZONES, "Change a zone")
        .about("What results must be a polygon as for a new zone. A field that is absent is left alone.")
        .takes(&[ZONE_ID])
        .body(
            r##"{"$ref":"#/components/schemas/ZoneUpdate"}"##,
            &[("rename", r#"{"zone_name":"East dock"}"#), ("move a corner", r#"{"x3":5.5,"y3":3}"#)],
        )
        .answers(&[json("The zone as stored.", &[ZONE])])
        .fails(&[NO_ZONE, BAD_ZONE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("delete", "/zones/{zone_id}", ZONES, "Delete a zone")
        .about("Its users stay; their assignments to it go.")
        .takes(&[ZONE_ID])
        .answers(&[json(
            "Done.",
            &[content(MESSAGE, &[("deleted", r#"{"message":"Zone dock deleted successfully"}"#)])],
        )])
        .fails(&[NO_ZONE, BAD_PATH, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/zones/{zone_id}/with-users", ZONES, "Find a zone with its users")
        .takes(&[ZONE_ID])
        .answers(&[json(
            "The zone and its users by `global_id`.",
            &[content(r##"{"$ref":"#/components/schemas/ZoneWithUsers"}"##, &[("zone", DOCK_WITH_USERS)])],
        )])
        .fails(&[NO_ZONE, BAD_PATH, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/stats/zones", ZONES, "Count the users of each zone")
        .about("By `zone_id`; zones without users are counted too.")
        .answers(&[json(
            "The counts.",
            &[content(
                r##"{"$ref":"#/components/schemas/ZoneStats"}"##,
                &[("counts", r#"{"total_zones":1,"zones":[{"zone_id":"dock","zone_name":"Loading dock","user_count":2}]}"#)],
            )],
        )])
        .fails(&[DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/users-dict", DICT, "Read the users dict, or what changed in it")
        .about("Without a token: the whole map. Keep its `ETag` and send it as `If-None-Match`: as long as nothing changed the \
            answer is 304. Keep its `Dict-Version` and send it as `since` (or `Last-Event-ID`, which beats it): the answer is what \
            changed; a token that is unknown, foreign or too old is answered with `reset: true` and the whole map, so there is one \
            way to handle both. With `wait` the answer is held until something changes. With `Accept: text/event-stream` the same \
            objects come as events whose id is the token; a comment every 15 s keeps the line open. With a token, `If-None-Match` \
            and `use_cache` are ignored.")
        .takes(&[
            parameter("use_cache", "query", r#"{"type":"boolean","default":true}"#, "`false` reads the database itself."),
            parameter("since", "query", TEXT, "A token."),
            parameter("wait", "query", r#"{"type":"integer","minimum":0,"maximum":60,"default":0}"#, "Seconds to wait for a change after `since`."),
            parameter("Last-Event-ID", "header", TEXT, "A token; beats `since`."),
            parameter("If-None-Match", "header", TEXT, "Entity tags that are known already, or `*`."),
        ])
        .answers(&[
            Answer {
                headers: &["ETag", "Dict-Version", "Cache-Control", "Vary"],
                ..json(
                    "The map, or what changed.",
                    &[
                        content(
                            r##"{"anyOf":[{"$ref":"#/components/schemas/DictDelta"},{"$ref":"#/components/schemas/UsersDict"}]}"##,
                            &[("whole", r#"{"12":"Bob","1005":"Ann"}"#), ("nobody", "{}"), ("since", DELTA)],
                        ),
                        Content {
                            media_type: EVENTS,
                            schema: TEXT,
                            examples: &[(
                                "events",
                                "id: 5f3c9a1.2b7\ndata: {\"version\":\"5f3c9a1.2b7\",\"reset\":false,\"set\":{\"12\":\"Bob\"},\"del\":[\"13\"]}\n\n",
                            )],
                        },
                    ],
                )
            },
            Answer {
                status: 304,
                description: "What is known is still right.",
                headers: &["ETag", "Dict-Version", "Cache-Control", "Vary"],
                contents: &[],
            },
        ])
        .fails(&[
            failure(
                422,
                "validation_error",
                r#"[{"type":"less_than_equal","loc":["query","wait"],"msg":"Input should be less than or equal to 60","input":"61"}]"#,
            ),
            DATABASE_AWAY,
            DATABASE_SLOW,
        ]),
    Endpoint::new("post", "/cache/invalidate/users-dict", DICT, "Rebuild the users dict and its mirror in Redis")
        .about("Never needed for correctness: reads are validated, and the mirror follows by itself.")
        .answers(&[json(
            "Done, or there is no Redis.",
            &[content(
                MESSAGE,
                &[
                    ("rebuilt", r#"{"message":"Users dict cache invalidated"}"#),
                    ("without Redis", r#"{"message":"Redis not available"}"#),
                ],
            )],
        )])
        .fails(&[DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/alerts", ALERTS, "Read the log of alerts")
        .about("Newest first; with `after`, ascending. Values of one filter are alternatives, several filters must all match. \
            A page ends after 16 MiB of alerts even where `limit` allows more: go on with `next`.")
        .takes(&[
            parameter("after", "query", SEQ, "Only alerts with a greater `seq`, ascending."),
            parameter("before", "query", r#"{"type":"integer","format":"int64","minimum":1}"#, "Only alerts with a smaller `seq`, newest first. Not with `after`."),
            LIMIT_1000,
            FILTER_ZONE,
            FILTER_USER,
            FILTER_STATUS,
            FILTER_CAMERA,
            parameter("from", "query", r#"{"type":"string","format":"date-time"}"#, "Only alerts that occurred then or later."),
            parameter("to", "query", r#"{"type":"string","format":"date-time"}"#, "Only alerts that occurred before."),
        ])
        .answers(&[json(
            "A page of the log.",
            &[content(
                r##"{"$ref":"#/components/schemas/AlertPage"}"##,
                &[("page", ALERT_PAGE), ("end", r#"{"alerts":[],"next":null}"#)],
            )],
        )])
        .fails(&[BAD_LOG_QUERY, BEYOND_END, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("post", "/alerts", ALERTS, "Store alerts")
        .about("One object or an array of at most 1000. Answered after the commit. A repeat of an `event_id` is counted and not \
            stored, so a request whose answer was lost is simply sent again. An item that is no alert is reported and costs the \
            others nothing.")
        .body(
            r##"{"oneOf":[{"$ref":"#/components/schemas/Alert"},{"type":"array","maxItems":1000,"items":{}}]}"##,
            &[("one", ALERT), ("several", r#"[{"zone_id":"dock","status":"violation"},{"zone_id":"hall","status":"authorized"}]"#)],
        )
        .answers(&[json(
            "What became of each.",
            &[content(
                r##"{"$ref":"#/components/schemas/Accepted"}"##,
                &[
                    ("all stored", r#"{"accepted":2,"duplicates":0,"rejected":[]}"#),
                    ("mixed", r#"{"accepted":1,"duplicates":1,"rejected":[{"index":2,"reason":"the message is JSON, but not an object"}]}"#),
                ],
            )],
        )])
        .fails(&[
            failure(
                422,
                "validation_error",
                r#"[{"type":"too_long","loc":["body"],"msg":"List should have at most 1000 items after validation, not 1001","input":null}]"#,
            ),
            LOG_AWAY,
            DATABASE_SLOW,
        ]),
    Endpoint::new("get", "/alerts/stream", ALERTS, "Follow alerts as server-sent events")
        .about("`id:` is the `seq`, `data:` the object (line breaks between its tokens are spaces). Resumed by `Last-Event-ID`, \
            which beats `after`; without either the newest alerts, at most 100, come first. A comment every 15 s. A client that \
            takes nothing for 10 s is cut.")
        .takes(&[
            RESUME,
            ENVELOPE,
            FILTER_ZONE,
            FILTER_USER,
            FILTER_STATUS,
            FILTER_CAMERA,
            parameter("Last-Event-ID", "header", SEQ, "The last `seq` seen; beats `after`."),
        ])
        .answers(&[Answer {
            headers: &["Cache-Control"],
            ..json(
                "Events without end.",
                &[Content {
                    media_type: EVENTS,
                    schema: TEXT,
                    examples: &[("events", "id: 41\ndata: {\"user_id\":1005,\"status\":\"violation\"}\n\n")],
                }],
            )
        }])
        .fails(&[BAD_ORIGIN, BAD_LOG_QUERY, BEYOND_END, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/ws/alerts", ALERTS, "Follow alerts over a WebSocket")
        .about("On connect the newest alerts that match, at most 100, then each new one: one text frame per alert, the bare \
            object (with `envelope`, `{\"seq\",\"alert\"}`). `after` resumes without gap or duplicate; a position beyond the log is \
            closed with 1008 and `seq_beyond_end`. The text `ping` is answered with `{\"type\":\"pong\"}`; ping frames come every \
            20 s. A client that takes nothing for 10 s is closed with 1013, a stopping service closes with 1001; both name the \
            last `seq`.")
        .takes(&[RESUME, ENVELOPE, FILTER_ZONE, FILTER_USER, FILTER_STATUS, FILTER_CAMERA])
        .answers(&[Answer { status: 101, description: "The WebSocket is open.", headers: &[], contents: &[] }])
        .fails(&[
            BAD_ORIGIN,
            BAD_LOG_QUERY,
            failure(426, "upgrade_required", r#""this is a WebSocket: the headers `connection: upgrade` and `upgrade: websocket` are missing""#),
        ]),
    Endpoint::new("get", "/messages/recent", ALERTS, "The newest alerts")
        .about("The newest n objects, oldest of them first; fewer where they have more than 16 MiB together.")
        .takes(&[parameter(
            "limit",
            "query",
            r#"{"type":"integer","minimum":1,"maximum":1000,"default":50}"#,
            "How many at most.",
        )])
        .answers(&[json(
            "The objects as they came.",
            &[content(
                r##"{"$ref":"#/components/schemas/RecentAlerts"}"##,
                &[("two", r#"{"count":2,"messages":[{"zone_id":"dock","status":"violation"},{"zone_id":"hall","status":"authorized"}]}"#)],
            )],
        )])
        .fails(&[BAD_PAGE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("get", "/alerts/rejected", ALERTS, "Messages from Kafka that are no alerts")
        .about("By `id`. They are kept until they are retried.")
        .takes(&[parameter("after", "query", SEQ, "Only with a greater `id`."), LIMIT_1000])
        .answers(&[json(
            "A page of them.",
            &[content(
                r##"{"$ref":"#/components/schemas/RejectedPage"}"##,
                &[("page", r#"{"rejected":[{"id":3,"received_at":"2026-11-24T09:24:00.250000Z","topic":"person_reid_alerts","partition":0,"offset":17,"reason":"the message is empty","size":0,"raw_base64":""}],"next":null}"#)],
            )],
        )])
        .fails(&[BAD_PAGE, DATABASE_AWAY, DATABASE_SLOW]),
    Endpoint::new("post", "/alerts/rejected/{id}/retry", ALERTS, "Try a rejected message again")
        .about("For messages that a newer version understands.")
        .takes(&[parameter("id", "path", INT64, "The letter's `id`.")])
        .answers(&[json(
            "It is in the log, and the letter is gone.",
            &[content(r##"{"$ref":"#/components/schemas/Retried"}"##, &[("stored", r#"{"id":3,"seq":42}"#)])],
        )])
        .fails(&[
            failure(404, "dead_letter_not_found", r#""Rejected message not found""#),
            failure(422, "still_rejected", r#""the message is empty""#),
            BAD_ID,
            DATABASE_AWAY,
            DATABASE_SLOW,
        ]),
    Endpoint::new("get", "/", SERVICE, "What the service is")
        .answers(&[json(
            "Name, version, operations.",
            &[content(
                r##"{"$ref":"#/components/schemas/Index"}"##,
                &[("index", r#"{"service":"unified_backend","version":"2.0.0","endpoints":{"GET /users":"List users"}}"#)],
            )],
        )]),
    Endpoint::new("get", "/health", SERVICE, "The state of everything")
        .about("Always 200 while the process lives; read `status`.")
        .answers(&[json(
            "The state.",
            &[content(
                r##"{"$ref":"#/components/schemas/Health"}"##,
                &[("healthy", r#"{"status":"healthy","service":"unified_backend","version":"2.0.0","database":"SQLite (embedded)","orm":"none","kafka_enabled":false,"kafka_running":false,"messages_received":0,"redis":{"enabled":false},"checks":{"database":{"state":"up","since":"2026-11-24T09:24:00.000000Z","latency_ms":0.2,"detail":null}}}"#)],
            )],
        )]),
    Endpoint::new("get", "/health/live", SERVICE, "Whether the process lives")
        .answers(&[json(
            "It does.",
            &[content(r##"{"$ref":"#/components/schemas/Status"}"##, &[("alive", r#"{"status":"alive"}"#)])],
        )]),
    Endpoint::new("get", "/health/ready", SERVICE, "Whether to send requests here")
        .about("Redis and Kafka degrade the service; only its database takes it out of the balancer, and its own stop.")
        .answers(&[json(
            "Send.",
            &[content(r##"{"$ref":"#/components/schemas/Status"}"##, &[("ready", r#"{"status":"ready"}"#)])],
        )])
        .fails(&[
            DATABASE_AWAY,
            failure(503, "stopping", r#""service is not available right now, try again in a moment""#),
        ]),
    Endpoint::new("get", "/cache/stats", SERVICE, "Figures of Redis and of the users in memory").answers(&[json(
        "The figures.",
        &[content(
            r##"{"$ref":"#/components/schemas/CacheStats"}"##,
            &[("without Redis", r#"{"enabled":false,"directory":{"entries":42,"bytes":9000,"version":"5f3c9a1.2b7","validated_ms_ago":12,"rebuilds":1}}"#)],
        )],
    )]),
    Endpoint::new("post", "/cache/clear", SERVICE, "Remove our keys from Redis")
        .about("The mirror of the users dict is filled again by itself.")
        .answers(&[json(
            "Done, or there is no Redis.",
            &[content(
                MESSAGE,
                &[
                    ("cleared", r#"{"message":"All cache cleared successfully"}"#),
                    ("without Redis", r#"{"message":"Redis cache not available"}"#),
                ],
            )],
        )]),
    Endpoint::new("get", "/metrics", SERVICE, "Metrics for Prometheus")
        .answers(&[json(
            "The Prometheus text format.",
            &[Content { media_type: "text/plain", schema: TEXT, examples: &[("metrics", "http_connections 3\n")] }],
        )])
        .fails(&[failure(503, "metrics_unavailable", r#""the metrics cannot be rendered""#)]),
    Endpoint::new("get", "/openapi.json", SERVICE, "This document").answers(&[json(
        "OpenAPI 3.1.",
        &[content(r#"{"type":"object"}"#, &[("beginning", r#"{"openapi":"3.1.0"}"#)])],
    )]),
    Endpoint::new("get", "/docs", SERVICE, "This document for people (Swagger UI)").answers(&[Answer {
        status: 307,
        description: "To the page.",
        headers: &["Location"],
        contents: &[],
    }]),
    Endpoint::new("get", "/redoc", SERVICE, "This document for people (ReDoc)").answers(&[Answer {
        headers: &["Content-Security-Policy"],
        ..json(
            "The page; nothing in it is loaded from elsewhere.",
            &[Content { media_type: "text/html", schema: TEXT, examples: &[("page", "<!DOCTYPE html>")] }],
        )
    }]),
];
