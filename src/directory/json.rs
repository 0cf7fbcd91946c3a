//! People as JSON. By hand, as nearly all that is asked for is one of them or a page of them: the general
//! serialiser took a sixth of the instructions of a whole request, mostly to look for what needs escaping in
//! names of fields. Pure.

use std::sync::Arc;

use super::types::User;
use crate::time::Timestamp;

/// Room for most.
const USER_BYTES: usize = 224;

/// Field order and the derived `zone_id` are the contract's.
pub fn write_user(user: &User) -> Vec<u8> {
    let mut json = Vec::with_capacity(USER_BYTES);
    push_user(&mut json, user);
    json
}

/// A list, in the order in which they come.
pub fn write_users<'a>(users: impl IntoIterator<Item = &'a Arc<User>>) -> Vec<u8> {
    let users = users.into_iter();
    let mut json = Vec::with_capacity(2 + users.size_hint().0 * USER_BYTES);
    push_list(&mut json, users, |json, user| push_user(json, user));
    json
}

fn push_user(json: &mut Vec<u8>, user: &User) {
    json.extend_from_slice(b"{\"global_id\":");
    push_integer(json, user.global_id);
    json.extend_from_slice(b",\"name\":");
    push_text(json, &user.name);
    match &*user.zone_ids {
        [] => json.extend_from_slice(b",\"zone_id\":null,\"zone_ids\":[],\"id\":"),
        [first, ..] => {
            json.extend_from_slice(b",\"zone_id\":");
            push_text(json, first);
            json.extend_from_slice(b",\"zone_ids\":");
            push_list(json, user.zone_ids.iter(), |json, zone_id| push_text(json, zone_id));
            json.extend_from_slice(b",\"id\":");
        }
    }
    push_integer(json, user.id);
    json.extend_from_slice(b",\"created_at\":");
    push_time(json, user.created_at);
    json.extend_from_slice(b",\"updated_at\":");
    match user.updated_at {
        Some(time) => push_time(json, time),
        None => json.extend_from_slice(b"null"),
    }
    json.push(b'}');
}

fn push_list<T>(json: &mut Vec<u8>, items: impl Iterator<Item = T>, push: impl Fn(&mut Vec<u8>, T)) {
    json.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            json.push(b',');
        }
        push(json, item);
    }
    json.push(b']');
}

pub fn push_integer(json: &mut Vec<u8>, value: i64) {
    json.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn push_time(json: &mut Vec<u8>, time: Timestamp) {
    json.push(b'"');
    match time.digits() {
        Some(digits) => json.extend_from_slice(&digits),
        None => json.extend_from_slice(time.to_string().as_bytes()),
    }
    json.push(b'"');
}

pub fn push_text(json: &mut Vec<u8>, text: &str) {
    let is_plain = text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
    if is_plain {
        json.push(b'"');
        json.extend_from_slice(text.as_bytes());
        json.push(b'"');
    } else {
        json.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn fields_are_in_the_order_of_the_contract() {
        let user = User {
            id: 7,
            global_id: -1004,
            name: "Ann \"A\" Ö\n".into(),
            zone_ids: [Arc::from("ZONE_002"), Arc::from("ZONE_001")].into(),
            created_at: Timestamp::from_micros(1_000_000),
            updated_at: None,
        };
        let expected = r#"{"global_id":-1004,"name":"Ann \"A\" Ö\n","zone_id":"ZONE_002","zone_ids":["ZONE_002","ZONE_001"],"id":7,"created_at":"1970-01-01T00:00:01.000000Z","updated_at":null}"#;
        assert_eq!(String::from_utf8(write_user(&user)).expect("UTF-8"), expected);
        let users = [Arc::new(user.clone()), Arc::new(user)];
        assert_eq!(String::from_utf8(write_users(&users)).expect("UTF-8"), format!("[{expected},{expected}]"));
        assert_eq!(write_users([]), b"[]");
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_any_reader_reads(
            (id, global_id) in any::<(i64, i64)>(), name in any::<String>(),
            zone_ids in prop::collection::vec(any::<String>(), 0..4),
            created in any::<i64>(), updated in any::<Option<i64>>(),
        ) {
            let zones: Vec<Arc<str>> = zone_ids.iter().map(|zone_id| Arc::from(zone_id.as_str())).collect();
            let (created_at, updated_at) = (Timestamp::from_micros(created), updated.map(Timestamp::from_micros));
            let user = User { id, global_id, name: name.as_str().into(), zone_ids: zones.into(), created_at, updated_at };
            let read: Value = serde_json::from_slice(&write_user(&user)).expect("JSON");
            let expected = json!({
                "global_id": global_id, "name": name, "zone_id": zone_ids.first(), "zone_ids": zone_ids, "id": id,
                "created_at": created_at.to_string(), "updated_at": updated_at.map(|time| time.to_string()),
            });
            prop_assert_eq!(read, expected);
        }
    }
}
