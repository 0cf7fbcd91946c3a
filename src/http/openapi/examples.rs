//! What requests and answers look like, as JSON.

pub const ANN: &str = r#"{"global_id":1005,"name":"Ann","zone_id":"dock","zone_ids":["dock","hall"],"id":1,"created_at":"2026-11-24T09:24:00.123456Z","updated_at":null}"#;
pub const ANNS: &str = r#"[{"global_id":1005,"name":"Ann","zone_id":"dock","zone_ids":["dock","hall"],"id":1,"created_at":"2026-11-24T09:24:00.123456Z","updated_at":null}]"#;
pub const DOCK: &str = r#"{"zone_id":"dock","zone_name":"Loading dock","x1":0.0,"y1":0.0,"x2":4.0,"y2":0.0,"x3":4.0,"y3":3.0,"x4":0.0,"y4":3.0,"created_at":"2026-11-24T09:20:00.000000Z","updated_at":null}"#;
pub const DOCKS: &str = r#"[{"zone_id":"dock","zone_name":"Loading dock","x1":0.0,"y1":0.0,"x2":4.0,"y2":0.0,"x3":4.0,"y3":3.0,"x4":0.0,"y4":3.0,"created_at":"2026-11-24T09:20:00.000000Z","updated_at":null}]"#;
pub const ANN_WITH_ZONES: &str = r#"{"global_id":1005,"name":"Ann","zone_id":"dock","zone_ids":["dock"],"id":1,"created_at":"2026-11-24T09:24:00.123456Z","updated_at":null,"zones":[{"zone_id":"dock","zone_name":"Loading dock","x1":0.0,"y1":0.0,"x2":4.0,"y2":0.0,"x3":4.0,"y3":3.0,"x4":0.0,"y4":3.0,"created_at":"2026-11-24T09:20:00.000000Z","updated_at":null}]}"#;
pub const DOCK_WITH_USERS: &str = r#"{"zone_id":"dock","zone_name":"Loading dock","x1":0.0,"y1":0.0,"x2":4.0,"y2":0.0,"x3":4.0,"y3":3.0,"x4":0.0,"y4":3.0,"created_at":"2026-11-24T09:20:00.000000Z","updated_at":null,"users":[{"global_id":1005,"name":"Ann","zone_id":"dock","zone_ids":["dock"],"id":1,"created_at":"2026-11-24T09:24:00.123456Z","updated_at":null}]}"#;
pub const NEW_DOCK: &str =
    r#"{"zone_id":"dock","zone_name":"Loading dock","x1":0,"y1":0,"x2":4,"y2":0,"x3":4,"y3":3,"x4":0,"y4":3}"#;
pub const ALERT: &str = r#"{"user_id":1005,"user_name":"Ann","camera_id":3,"zone_id":"dock","zone_name":"Loading dock","iop":0.82,"threshold":0.5,"status":"violation","timestamp":"2026-11-24T09:24:00Z","frame_id":77,"event_id":"cam3-77"}"#;
pub const ALERT_PAGE: &str = r#"{"alerts":[{"seq":41,"received_at":"2026-11-24T09:24:00.250000Z","occurred_at":"2026-11-24T09:24:00.000000Z","source":"kafka:person_reid_alerts/0/512","alert":{"user_id":1005,"status":"violation","timestamp":"2026-11-24T09:24:00Z"}}],"next":41}"#;
pub const DELTA: &str = r#"{"version":"5f3c9a1.2b7","reset":false,"set":{"12":"Bob"},"del":["13"]}"#;
