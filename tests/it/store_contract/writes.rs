//! Commands: what they do, what they refuse and in which order, and that they leave alone what they
//! do not change.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use unified_backend::directory::geometry::PolygonFault;
use unified_backend::directory::{Command, Outcome, Refusal, UserPatch, WriteError, ZonePatch};

use super::{Store, assignments, create_user, new_zone, owned, user, zone, zones_of};
use crate::on_both_engines;
use crate::support::backends::Database;

on_both_engines!(
    a_user_is_created_as_asked,
    a_creation_is_refused_for_unknown_zones_first_and_leaves_nothing,
    an_update_changes_what_it_names_and_moves_its_time_only_then,
    an_update_is_refused_whole,
    assignments_keep_their_order_and_tell_whether_they_changed,
    assignments_are_refused_for_the_user_first,
    a_deleted_user_is_gone_and_its_id_is_never_given_again,
    zones_are_created_changed_and_refused,
    a_deleted_zone_leaves_its_users_and_touches_them,
    of_many_creations_of_one_global_id_exactly_one_wins,
    commands_that_cross_each_other_all_end,
    many_commands_are_carried_out_in_order_and_refused_one_by_one,
    the_dict_is_read_past_every_copy,
    extreme_keys_and_names_come_back_as_they_were,
);

async fn a_user_is_created_as_asked(database: Database) {
    let store = Store::open(&database).await;
    store.create_zone("b").await;
    store.create_zone("a").await;
    let user = store.create_user(7, "Ада 🧑‍🚀 O'Neil \"x\"", &["b", "a"]).await;
    assert_eq!((user.global_id, &*user.name, zones_of(&user)), (7, "Ада 🧑‍🚀 O'Neil \"x\"", vec!["b", "a"]));
    assert!(user.id > 0 && user.updated_at.is_none(), "{user:?}");
    assert_eq!(store.find_user(user.id).await, user);
    let second = store.create_user(8, "Ада 🧑‍🚀 O'Neil \"x\"", &[]).await;
    assert!(second.id > user.id && second.created_at >= user.created_at);
}

async fn a_creation_is_refused_for_unknown_zones_first_and_leaves_nothing(database: Database) {
    let store = Store::open(&database).await;
    store.create_zone("a").await;
    store.create_user(7, "Ada", &[]).await;
    let refusal = store.refusal(create_user(7, "Bob", &["y", "a", "x"])).await;
    assert_eq!(refusal, Refusal::UnknownZones { zone_ids: owned(&["y", "x"]) });
    assert_eq!(refusal.to_string(), "unknown zone: y, x");
    let refusal = store.refusal(create_user(7, "Bob", &["a"])).await;
    assert_eq!(refusal, Refusal::UserExists { global_id: 7 });
    assert_eq!(refusal.to_string(), "User with global_id 7 already exists");
    store.refusal(create_user(8, "Bob", &["x"])).await;
    let dict = store.directory.read_users_dict().await.expect("the dict");
    assert_eq!(dict, BTreeMap::from([(7, "Ada".to_owned())]));
}

async fn an_update_changes_what_it_names_and_moves_its_time_only_then(database: Database) {
    let store = Store::open(&database).await;
    for zone_id in ["a", "b"] {
        store.create_zone(zone_id).await;
    }
    let created = store.create_user(7, "Ada", &["a", "b"]).await;
    let update = async |name: Option<&str>, zone_ids: Option<&[&str]>| {
        let patch = UserPatch { name: name.map(str::to_owned), zone_ids: zone_ids.map(owned) };
        user(store.write(Command::UpdateUser { id: created.id, patch }).await)
    };
    assert_eq!(update(None, None).await, created);
    assert_eq!(update(Some("Ada"), Some(&["a", "b"])).await, created);
    let renamed = update(Some("Eva"), None).await;
    assert_eq!((&*renamed.name, zones_of(&renamed)), ("Eva", vec!["a", "b"]));
    assert!(renamed.updated_at.expect("it moved") > created.created_at);
    let turned = update(None, Some(&["b", "a"])).await;
    assert_eq!((&*turned.name, zones_of(&turned)), ("Eva", vec!["b", "a"]));
    assert!(turned.updated_at > renamed.updated_at, "{turned:?} after {renamed:?}");
    assert_eq!(update(Some("Eva"), Some(&["b", "a"])).await, turned);
    let bare = update(None, Some(&[])).await;
    assert!(bare.zone_ids.is_empty() && bare.updated_at > turned.updated_at);
    assert_eq!((bare.id, bare.global_id, bare.created_at), (created.id, 7, created.created_at));
    assert_eq!(store.find_user(created.id).await, bare);
}

async fn an_update_is_refused_whole(database: Database) {
    let store = Store::open(&database).await;
    store.create_zone("a").await;
    let created = store.create_user(7, "Ada", &["a"]).await;
    let patch = UserPatch { name: Some("Eva".to_owned()), zone_ids: Some(owned(&["a", "nope"])) };
    let refusal = store.refusal(Command::UpdateUser { id: created.id, patch: patch.clone() }).await;
    assert_eq!(refusal, Refusal::UnknownZones { zone_ids: owned(&["nope"]) });
    assert_eq!(store.find_user(created.id).await, created);
    let id = created.id + 1;
    assert_eq!(store.refusal(Command::UpdateUser { id, patch }).await, Refusal::UserNotFound { id });
}

async fn assignments_keep_their_order_and_tell_whether_they_changed(database: Database) {
    let store = Store::open(&database).await;
    for zone_id in ["a", "b", "c"] {
        store.create_zone(zone_id).await;
    }
    let id = store.create_user(7, "Ada", &[]).await.id;
    let assign = async |zone_ids: &[&str]| {
        assignments(store.write(Command::AssignZones { id, zone_ids: owned(zone_ids) }).await)
    };
    let add =
        async |zone_id: &str| assignments(store.write(Command::AddZone { id, zone_id: zone_id.to_owned() }).await);
    let remove =
        async |zone_id: &str| assignments(store.write(Command::RemoveZone { id, zone_id: zone_id.to_owned() }).await);
    assert_eq!(assign(&["c", "a"]).await, (owned(&["c", "a"]), true));
    let before = store.find_user(id).await;
    assert!(before.updated_at.is_some());
    assert_eq!(assign(&["c", "a"]).await, (owned(&["c", "a"]), false));
    assert_eq!(add("a").await, (owned(&["c", "a"]), false));
    assert_eq!(remove("b").await, (owned(&["c", "a"]), false));
    assert_eq!(remove("no such zone").await, (owned(&["c", "a"]), false));
    assert_eq!(store.find_user(id).await, before);
    assert_eq!(add("b").await, (owned(&["c", "a", "b"]), true));
    let added = store.find_user(id).await;
    assert!(added.updated_at > before.updated_at);
    assert_eq!(remove("c").await, (owned(&["a", "b"]), true));
    assert!(store.find_user(id).await.updated_at > added.updated_at);
    assert_eq!(add("c").await, (owned(&["a", "b", "c"]), true));
    assert_eq!(assign(&["b", "c"]).await, (owned(&["b", "c"]), true));
    assert_eq!(assign(&["c", "a", "b"]).await, (owned(&["c", "a", "b"]), true));
    assert_eq!(assign(&[]).await, (vec![], true));
}

async fn assignments_are_refused_for_the_user_first(database: Database) {
    let store = Store::open(&database).await;
    store.create_zone("a").await;
    let (id, zone_ids) = (store.create_user(7, "Ada", &["a"]).await.id, owned(&["x", "a", "y"]));
    let nobody = id + 1;
    let not_found = Refusal::UserNotFound { id: nobody };
    assert_eq!(store.refusal(Command::AssignZones { id: nobody, zone_ids: zone_ids.clone() }).await, not_found);
    assert_eq!(store.refusal(Command::AddZone { id: nobody, zone_id: "x".into() }).await, not_found);
    assert_eq!(store.refusal(Command::RemoveZone { id: nobody, zone_id: "a".into() }).await, not_found);
    let unknown = Refusal::UnknownZones { zone_ids: owned(&["x", "y"]) };
    assert_eq!(store.refusal(Command::AssignZones { id, zone_ids }).await, unknown);
    let no_zone = Refusal::ZoneNotFound { zone_id: "x".into() };
    assert_eq!(store.refusal(Command::AddZone { id, zone_id: "x".into() }).await, no_zone);
    assert_eq!(zones_of(&store.find_user(id).await), ["a"]);
}

async fn a_deleted_user_is_gone_and_its_id_is_never_given_again(database: Database) {
    let store = Store::open(&database).await;
    store.create_zone("a").await;
    let first = store.create_user(7, "Ada", &["a"]).await;
    assert_eq!(store.write(Command::DeleteUser { id: first.id }).await, Outcome::Deleted);
    let not_found = Refusal::UserNotFound { id: first.id };
    assert_eq!(store.refusal(Command::DeleteUser { id: first.id }).await, not_found);
    let second = store.create_user(7, "Eva", &[]).await;
    assert!(second.id > first.id, "{} after {}", second.id, first.id);
    assert!(second.zone_ids.is_empty(), "{second:?}");
}

async fn zones_are_created_changed_and_refused(database: Database) {
    let store = Store::open(&database).await;
    let created = store.create_zone("dock/№ 7").await;
    let wanted = new_zone("dock/№ 7");
    assert_eq!((&*created.zone_id, &*created.zone_name), (&*wanted.zone_id, &*wanted.zone_name));
    assert_eq!((created.corners, created.updated_at), (wanted.corners, None));
    let refusal = store.refusal(Command::CreateZone(wanted)).await;
    assert_eq!(refusal, Refusal::ZoneExists { zone_id: "dock/№ 7".into() });
    let update = |patch: ZonePatch| Command::UpdateZone { zone_id: "dock/№ 7".into(), patch };
    assert_eq!(zone(store.write(update(ZonePatch::default())).await), created);
    let mut same = ZonePatch { zone_name: Some(created.zone_name.to_string()), ..ZonePatch::default() };
    same.corners[1][0] = Some(4.0);
    assert_eq!(zone(store.write(update(same)).await), created);
    let mut wider = ZonePatch::default();
    wider.corners[1][0] = Some(5.5);
    let widened = zone(store.write(update(wider)).await);
    assert_eq!(widened.corners, [[0.0, 0.0], [5.5, 0.0], [4.0, 3.0], [0.0, 3.0]]);
    assert!(widened.updated_at.expect("it moved") > created.created_at);
    let renamed =
        zone(store.write(update(ZonePatch { zone_name: Some("Dock 🚢".into()), ..Default::default() })).await);
    assert_eq!((&*renamed.zone_name, renamed.corners), ("Dock 🚢", widened.corners));
    assert!(renamed.updated_at > widened.updated_at);
    let mut crossed = ZonePatch { zone_name: Some("never".into()), ..ZonePatch::default() };
    crossed.corners[2] = [Some(-9.0), Some(1.0)];
    let refusal = store.refusal(update(crossed)).await;
    assert_eq!(refusal, Refusal::InvalidPolygon(PolygonFault::EdgesCross));
    let no_zone = Refusal::ZoneNotFound { zone_id: "x".into() };
    let patch = ZonePatch::default();
    assert_eq!(store.refusal(Command::UpdateZone { zone_id: "x".into(), patch }).await, no_zone);
    assert_eq!(store.refusal(Command::DeleteZone { zone_id: "x".into() }).await, no_zone);
    let loaded = store.directory.open_feed().await.expect("a feed").load().await.expect("everything");
    assert_eq!(loaded.zones, [renamed]);
}

async fn a_deleted_zone_leaves_its_users_and_touches_them(database: Database) {
    let store = Store::open(&database).await;
    for zone_id in ["a", "b"] {
        store.create_zone(zone_id).await;
    }
    let (with, without) = (store.create_user(1, "Ada", &["a", "b"]).await, store.create_user(2, "Bob", &["b"]).await);
    assert_eq!(store.write(Command::DeleteZone { zone_id: "a".into() }).await, Outcome::Deleted);
    let left = store.find_user(with.id).await;
    assert_eq!(zones_of(&left), ["b"]);
    assert!(left.updated_at.expect("it moved") > with.created_at);
    assert_eq!(store.find_user(without.id).await, without);
}

async fn of_many_creations_of_one_global_id_exactly_one_wins(database: Database) {
    let store = Store::open(&database).await;
    for round in 0..10 {
        let creations = (0..16).map(|task| {
            let directory = store.directory.clone();
            tokio::spawn(async move { directory.write(create_user(round, &format!("task {task}"), &[])).await })
        });
        let mut winners = 0;
        for outcome in join_all(creations).await {
            match outcome.expect("no panic") {
                Ok(_) => winners += 1,
                Err(WriteError::Refused(refusal)) => assert_eq!(refusal, Refusal::UserExists { global_id: round }),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners, 1);
    }
}

async fn commands_that_cross_each_other_all_end(database: Database) {
    let store = Store::open(&database).await;
    let zone_ids = owned(&["a", "b", "c"]);
    for zone_id in &zone_ids {
        store.create_zone(zone_id).await;
    }
    let id = store.create_user(1, "Ada", &[]).await.id;
    let tasks = (0..12_usize).map(|task| {
        let (directory, zone_ids) = (store.directory.clone(), zone_ids.clone());
        tokio::spawn(async move {
            for turn in 0..15 {
                let zone_id = zone_ids[(task + turn) % 3].clone();
                let mut turned = zone_ids.clone();
                turned.rotate_left((task + turn) % 3);
                let command = match task % 5 {
                    0 => Command::AssignZones { id, zone_ids: turned },
                    1 => Command::DeleteZone { zone_id },
                    2 => Command::CreateZone(new_zone(&zone_id)),
                    3 => Command::AddZone { id, zone_id },
                    _ => Command::UpdateUser {
                        id,
                        patch: UserPatch { name: Some(format!("{task} {turn}")), zone_ids: Some(turned) },
                    },
                };
                match directory.write(command).await {
                    Ok(_) | Err(WriteError::Refused(_)) => {}
                    Err(WriteError::Store(error)) => panic!("{error}"),
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.expect("no task failed");
    }
    let loaded = store.directory.open_feed().await.expect("a feed").load().await.expect("everything");
    let known: Vec<_> = loaded.zones.iter().map(|zone| &zone.zone_id).collect();
    assert!(loaded.users[0].zone_ids.iter().all(|zone_id| known.contains(&zone_id)), "{loaded:?}");
}

async fn many_commands_are_carried_out_in_order_and_refused_one_by_one(database: Database) {
    let store = Store::open(&database).await;
    let commands = vec![
        create_user(1, "Ada", &["a"]),
        Command::CreateZone(new_zone("a")),
        create_user(1, "Ada", &["a"]),
        create_user(1, "Eva", &[]),
        Command::CreateZone(new_zone("a")),
        create_user(2, "Bob", &["a"]),
    ];
    let verdicts = store.directory.write_all(commands).await.expect("one transaction");
    assert_eq!(verdicts.len(), 6);
    assert_eq!(verdicts[0], Err(Refusal::UnknownZones { zone_ids: owned(&["a"]) }));
    assert!(matches!(&verdicts[1], Ok(Outcome::Zone(_))) && matches!(&verdicts[2], Ok(Outcome::User(_))));
    assert_eq!(verdicts[3], Err(Refusal::UserExists { global_id: 1 }));
    assert_eq!(verdicts[4], Err(Refusal::ZoneExists { zone_id: "a".into() }));
    assert!(matches!(&verdicts[5], Ok(Outcome::User(_))), "{verdicts:?}");
    let dict = store.directory.read_users_dict().await.expect("the dict");
    assert_eq!(dict, BTreeMap::from([(1, "Ada".to_owned()), (2, "Bob".to_owned())]));
}

async fn the_dict_is_read_past_every_copy(database: Database) {
    let store = Store::open(&database).await;
    assert!(store.directory.read_users_dict().await.expect("the dict").is_empty());
    database.execute(r#"INSERT INTO "user" (global_id, name) VALUES (-3, ''), (10, 'ten 🔟'), (9, 'nine')"#).await;
    let dict = store.directory.read_users_dict().await.expect("the dict");
    let expected = [(-3, String::new()), (9, "nine".to_owned()), (10, "ten 🔟".to_owned())];
    assert_eq!(dict, BTreeMap::from(expected));
}

async fn extreme_keys_and_names_come_back_as_they_were(database: Database) {
    let store = Store::open(&database).await;
    let long = "👩‍👩‍👧‍👦".chars().cycle().take(100).collect::<String>();
    let zone_id = "%2F/'\"\\ é".to_owned();
    store.create_zone(&zone_id).await;
    for (global_id, name) in [(i64::MAX, long.as_str()), (i64::MIN, "'; DROP TABLE \"user\"; --"), (0, " ")] {
        let created = store.create_user(global_id, name, &[&zone_id]).await;
        assert_eq!((created.global_id, &*created.name, zones_of(&created)), (global_id, name, vec![&*zone_id]));
        assert_eq!(store.find_user(created.id).await, created);
    }
    let id = i64::MAX;
    assert_eq!(store.refusal(Command::DeleteUser { id }).await, Refusal::UserNotFound { id });
}
