//! Sample people and zones: the same ones every time.

use crate::directory::geometry::Corners;
use crate::directory::{Command, NewUser, NewZone};

/// The first sample person's; the others follow.
const FIRST_GLOBAL_ID: i64 = 1001;

const ZONES: [(&str, &str); 8] = [
    ("entrance", "Entrance"),
    ("lobby", "Lobby"),
    ("office", "Open-plan office"),
    ("canteen", "Canteen"),
    ("warehouse", "Warehouse"),
    ("loading-dock", "Loading dock"),
    ("laboratory", "Laboratory"),
    ("server-room", "Server room"),
];

const FIRST_NAMES: [&str; 20] = [
    "Ada", "Bruno", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hiroshi", "Inés", "Jonas", "Kavya", "Liam", "Mei",
    "Nuria", "Olu", "Petra", "Quentin", "Rana", "Søren", "Tomáš",
];

const LAST_NAMES: [&str; 20] = [
    "Adeyemi",
    "Bergström",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Fischer",
    "García",
    "Horváth",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Lindqvist",
    "Moreau",
    "Nakamura",
    "Okafor",
    "Petrov",
    "Quispe",
    "Rossi",
    "Singh",
    "Tanaka",
];

/// Eight rooms of 10 × 8 m in two rows, a corridor of 2 m between them.
pub fn zones() -> Vec<NewZone> {
    let zone = |(index, (zone_id, zone_name)): (usize, &(&str, &str))| {
        let (column, row) = (index % 4, index / 4);
        let (x, y) = (column as f64 * 12.0, row as f64 * 10.0);
        let corners: Corners = [[x, y], [x + 10.0, y], [x + 10.0, y + 8.0], [x, y + 8.0]];
        NewZone { zone_id: (*zone_id).to_owned(), zone_name: (*zone_name).to_owned(), corners }
    };
    ZONES.iter().enumerate().map(zone).collect()
}

/// Everybody may be in the entrance and in one or two rooms more.
pub fn users(count: usize) -> Vec<NewUser> {
    (0..count).map(user).collect()
}

fn user(index: usize) -> NewUser {
    let first = FIRST_NAMES[index % FIRST_NAMES.len()];
    let last = LAST_NAMES[(index / FIRST_NAMES.len() + index * 7) % LAST_NAMES.len()];
    // From here on the pairs of names repeat.
    let generation = index / (FIRST_NAMES.len() * LAST_NAMES.len()) + 1;
    let name = if generation == 1 { format!("{first} {last}") } else { format!("{first} {last} {generation}") };
    let mut zone_ids = vec![ZONES[0].0.to_owned()];
    for wanted in [Some(index % ZONES.len()), index.is_multiple_of(3).then_some((index * 5 + 3) % ZONES.len())] {
        let Some((zone_id, _)) = wanted.map(|wanted| ZONES[wanted]) else { continue };
        if !zone_ids.iter().any(|known| known == zone_id) {
            zone_ids.push(zone_id.to_owned());
        }
    }
    NewUser { global_id: FIRST_GLOBAL_ID + index as i64, name, zone_ids }
}

/// Zones first: people refer to them.
pub fn commands(count: usize) -> Vec<Command> {
    let zones = zones().into_iter().map(Command::CreateZone);
    zones.chain(users(count).into_iter().map(Command::CreateUser)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::directory::geometry::check_polygon;

    #[test]
    fn samples_are_valid_and_nobody_shares_a_name() {
        let zones = zones();
        assert!(zones.iter().all(|zone| check_polygon(&zone.corners).is_ok()));
        let known: HashSet<&str> = zones.iter().map(|zone| zone.zone_id.as_str()).collect();
        assert_eq!(known.len(), ZONES.len());
        let users = users(2_000);
        assert!(users.iter().flat_map(|user| &user.zone_ids).all(|zone_id| known.contains(zone_id.as_str())));
        assert_eq!(users.iter().map(|user| &user.name).collect::<HashSet<_>>().len(), users.len());
        assert_eq!(users.iter().map(|user| user.global_id).collect::<HashSet<_>>().len(), users.len());
        assert_eq!(users, super::users(2_000));
    }
}
