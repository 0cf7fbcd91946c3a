//! The replica against a model: a map of rows, changed the same way.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::time::Timestamp;

/// What the tables hold, and what was logged at which moment.
#[derive(Default)]
struct Model {
    users: BTreeMap<i64, User>,
    zones: BTreeMap<Arc<str>, Zone>,
    moment: u64,
}

#[derive(Clone, Debug)]
enum Step {
    PutUser { id: i64, global_id: i64, name: String, zones: Vec<u8> },
    DeleteUser { id: i64 },
    SwapGlobalIds { one: i64, other: i64 },
    PutZone { zone: u8, name: String },
    DeleteZone { zone: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        4 => (0..60_i64, 0..60_i64, "[a-c]{1,3}", prop::collection::vec(0..6_u8, 0..3))
            .prop_map(|(id, global_id, name, zones)| Step::PutUser { id, global_id, name, zones }),
        2 => (0..60_i64).prop_map(|id| Step::DeleteUser { id }),
        1 => (0..60_i64, 0..60_i64).prop_map(|(one, other)| Step::SwapGlobalIds { one, other }),
        1 => (0..6_u8, "[a-c]{1,3}").prop_map(|(zone, name)| Step::PutZone { zone, name }),
        1 => (0..6_u8).prop_map(|zone| Step::DeleteZone { zone }),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..6), 1..40)
}

impl Model {
    fn cursor(&self) -> Cursor {
        Cursor { epoch: 1, xmin: self.moment, xmax: self.moment, xip: Vec::new() }
    }

    /// One transaction; the keys it touched are read again afterwards, as a feed does.
    fn transact(&mut self, steps: &[Step]) -> Changes {
        let (mut users, mut zones) = (BTreeSet::new(), BTreeSet::new());
        let before = self.users.clone();
        for step in steps {
            self.step(step, &mut users, &mut zones);
        }
        self.moment += 1;
        let both = |id: &i64| [before.get(id), self.users.get(id)].into_iter().flatten().map(|user| user.global_id);
        Changes {
            global_ids: users.iter().flat_map(both).collect(),
            cursor: self.cursor(),
            users: users.into_iter().map(|id| (id, self.users.get(&id).cloned().map(Arc::new))).collect(),
            zones: zones.into_iter().map(|zone_id| (zone_id.clone(), self.zones.get(&zone_id).cloned())).collect(),
        }
    }

    fn step(&mut self, step: &Step, users: &mut BTreeSet<i64>, zones: &mut BTreeSet<Arc<str>>) {
        let at = Timestamp::from_micros(i64::try_from(self.moment).expect("small"));
        match step {
            Step::PutUser { id, global_id, name, zones } => {
                if self.users.values().any(|user| user.global_id == *global_id && user.id != *id) {
                    return;
                }
                let mut zone_ids: Vec<Arc<str>> = Vec::new();
                for zone_id in zones.iter().map(|zone| zone_id(*zone)) {
                    if self.zones.contains_key(&zone_id) && !zone_ids.contains(&zone_id) {
                        zone_ids.push(zone_id);
                    }
                }
                let user = User {
                    id: *id,
                    global_id: *global_id,
                    name: name.as_str().into(),
                    zone_ids: zone_ids.into(),
                    created_at: at,
                    updated_at: None,
                };
                self.users.insert(*id, user);
                users.insert(*id);
            }
            Step::DeleteUser { id } => {
                if self.users.remove(id).is_some() {
                    users.insert(*id);
                }
            }
            Step::SwapGlobalIds { one, other } => {
                if let (Some(mine), Some(theirs)) = (self.users.get(one).cloned(), self.users.get(other).cloned()) {
                    self.users.insert(*one, User { global_id: theirs.global_id, ..mine.clone() });
                    self.users.insert(*other, User { global_id: mine.global_id, ..theirs });
                    if one == other {
                        self.users.insert(*one, mine);
                    }
                    users.extend([*one, *other]);
                }
            }
            Step::PutZone { zone, name } => {
                let zone_id = zone_id(*zone);
                let zone = Zone {
                    zone_id: zone_id.clone(),
                    zone_name: name.as_str().into(),
                    corners: [[0.0; 2]; 4],
                    created_at: at,
                    updated_at: None,
                };
                self.zones.insert(zone_id.clone(), zone);
                zones.insert(zone_id);
            }
            Step::DeleteZone { zone } => {
                let zone_id = zone_id(*zone);
                if self.zones.remove(&zone_id).is_none() {
                    return;
                }
                for user in self.users.values_mut().filter(|user| user.zone_ids.contains(&zone_id)) {
                    user.zone_ids = user.zone_ids.iter().filter(|one| **one != zone_id).cloned().collect();
                    users.insert(user.id);
                }
                zones.insert(zone_id);
            }
        }
    }

    fn loaded(&self) -> Loaded {
        let mut users: Vec<User> = self.users.values().cloned().collect();
        users.sort_by_key(|user| user.global_id);
        Loaded { cursor: self.cursor(), users, zones: self.zones.values().cloned().collect() }
    }
}

fn zone_id(zone: u8) -> Arc<str> {
    format!("ZONE_{zone}").into()
}

fn dict_of(snapshot: &Snapshot) -> BTreeMap<i64, String> {
    snapshot.dict_entries().map(|(global_id, name)| (global_id, name.to_owned())).collect()
}

/// Everything a snapshot can be asked, against the model and against a fresh load.
fn check(snapshot: &Snapshot, model: &Model) {
    let fresh = Snapshot::load(model.loaded());
    let all: Vec<&Arc<User>> = snapshot.list_users(0, usize::MAX).collect();
    let expected: Vec<&Arc<User>> = fresh.list_users(0, usize::MAX).collect();
    assert_eq!(all, expected);
    assert_eq!(snapshot.count_users(), model.users.len());
    for (skip, limit) in [(0, 3), (1, 1), (7, 20), (model.users.len(), 5), (1000, 10)] {
        let page: Vec<&Arc<User>> = snapshot.list_users(skip, limit).collect();
        assert_eq!(page, all.iter().copied().skip(skip).take(limit).collect::<Vec<_>>());
    }
    for id in 0..60 {
        assert_eq!(snapshot.find_user(id).map(|user| &**user), model.users.get(&id));
        let by_global_id = model.users.values().find(|user| user.global_id == id);
        assert_eq!(snapshot.find_user_by_global_id(id).map(|user| &**user), by_global_id);
    }
    assert_eq!(snapshot.list_zones(0, usize::MAX), fresh.list_zones(0, usize::MAX));
    for zone in 0..6 {
        let zone_id = zone_id(zone);
        let inside: Vec<&Arc<User>> = snapshot.list_users_in_zone(&zone_id).collect();
        assert_eq!(inside, fresh.list_users_in_zone(&zone_id).collect::<Vec<_>>());
        assert_eq!(snapshot.count_users_in_zone(&zone_id), inside.len());
        assert_eq!(snapshot.find_zone(&zone_id).map(|zone| &**zone), model.zones.get(&zone_id));
    }
    assert_eq!(snapshot.dict_etag(), fresh.dict_etag());
    let json: BTreeMap<i64, String> =
        serde_json::from_slice(&snapshot.dict_json().chunks.concat()).expect("the dict is JSON");
    assert_eq!(json, dict_of(&fresh));
}

proptest! {
    #[test]
    fn a_replica_that_follows_equals_one_that_loads(transactions in steps()) {
        let mut model = Model::default();
        let mut snapshot = Snapshot::load(model.loaded());
        let mut past = vec![(snapshot.cursor().clone(), dict_of(&snapshot))];
        for transaction in &transactions {
            let changes = model.transact(transaction);
            snapshot = snapshot.apply(&changes);
            // A second time: overlapping validations bring the same rows twice.
            snapshot = snapshot.apply(&changes);
            check(&snapshot, &model);
            past.push((snapshot.cursor().clone(), dict_of(&snapshot)));
        }
        let now = dict_of(&snapshot);
        for (since, mut dict) in past {
            for global_id in snapshot.find_dict_changes(&since, snapshot.cursor()).expect("remembered") {
                match snapshot.find_user_by_global_id(global_id) {
                    Some(user) => dict.insert(global_id, user.name.to_string()),
                    None => dict.remove(&global_id),
                };
            }
            prop_assert_eq!(&dict, &now);
        }
    }
}

/// What a feed brings that was asked once for several transactions.
fn merge(several: &[Changes]) -> Changes {
    let (mut users, mut zones, mut global_ids) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for changes in several {
        users.extend(changes.users.iter().cloned());
        zones.extend(changes.zones.iter().cloned());
        global_ids.extend(&changes.global_ids);
    }
    let cursor = several.last().expect("some").cursor.clone();
    let (users, zones) = (users.into_iter().collect(), zones.into_iter().collect());
    Changes { cursor, users, zones, global_ids: global_ids.into_iter().collect() }
}

proptest! {
    #[test]
    fn a_token_of_another_instance_is_followed_past_what_came_and_went(
        transactions in steps(), jumps in prop::collection::vec(1..4_usize, 40),
    ) {
        let mut model = Model::default();
        let (mut often, mut seldom) = (Snapshot::load(model.loaded()), Snapshot::load(model.loaded()));
        let mut tokens = vec![(often.cursor().clone(), dict_of(&often))];
        let (mut held, mut jumps) = (Vec::new(), jumps.into_iter());
        let mut jump = jumps.next();
        for transaction in &transactions {
            let changes = model.transact(transaction);
            often = often.apply(&changes);
            tokens.push((often.cursor().clone(), dict_of(&often)));
            held.push(changes);
            if Some(held.len()) == jump {
                seldom = seldom.apply(&merge(&held));
                held.clear();
                jump = jumps.next();
            }
        }
        let now = dict_of(&seldom);
        for (since, mut dict) in tokens.into_iter().filter(|(since, _)| since.is_within(seldom.cursor())) {
            for global_id in seldom.find_dict_changes(&since, seldom.cursor()).expect("remembered") {
                match seldom.find_user_by_global_id(global_id) {
                    Some(user) => dict.insert(global_id, user.name.to_string()),
                    None => dict.remove(&global_id),
                };
            }
            prop_assert_eq!(&dict, &now);
        }
    }
}

#[test]
fn chunks_split_and_merge_as_the_directory_grows_and_shrinks() {
    let mut model = Model::default();
    let mut snapshot = Snapshot::load(model.loaded());
    let put = |id: i64| Step::PutUser { id, global_id: (id * 7919) % 5000, name: format!("user {id}"), zones: vec![] };
    for block in 0..50 {
        let steps: Vec<Step> = (block * 100..block * 100 + 100).map(put).collect();
        snapshot = snapshot.apply(&model.transact(&steps));
    }
    assert!(snapshot.chunks.len() > 4 && snapshot.chunks.iter().all(|chunk| chunk.users.len() <= CHUNK_USERS));
    check(&snapshot, &model);
    for id in (0..5000).filter(|id| id % 97 != 0) {
        snapshot = snapshot.apply(&model.transact(&[Step::DeleteUser { id }]));
    }
    assert!(snapshot.chunks.len() < 4, "{} chunks for {} users", snapshot.chunks.len(), snapshot.count_users());
    check(&snapshot, &model);
    for id in (0..5000).filter(|id| id % 97 == 0) {
        snapshot = snapshot.apply(&model.transact(&[Step::DeleteUser { id }]));
    }
    assert!(snapshot.chunks.is_empty());
    check(&snapshot, &model);
}

#[test]
fn unknown_foreign_and_future_tokens_are_not_followed() {
    let mut model = Model::default();
    let first = Snapshot::load(model.loaded());
    let later = first.apply(&model.transact(&[Step::PutUser { id: 1, global_id: 1, name: "a".into(), zones: vec![] }]));
    assert_eq!(later.find_dict_changes(first.cursor(), later.cursor()), Some(vec![1]));
    assert_eq!(later.find_dict_changes(later.cursor(), later.cursor()), Some(vec![]));
    assert_eq!(first.find_dict_changes(later.cursor(), first.cursor()), None, "the future");
    let foreign = Cursor { epoch: 2, ..first.cursor().clone() };
    assert_eq!(later.find_dict_changes(&foreign, later.cursor()), None, "another database");
}
