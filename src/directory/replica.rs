//! The directory in memory: immutable snapshots, swapped whole; a new one shares with the old all
//! that did not change. Pure: knows no store, no clock, no task.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use super::cursor::Cursor;
use super::dict::{self, DictBody, DictChunk};
use super::history::DictHistory;
use super::json::write_users;
use super::pages::Pages;
use super::store::{Changes, Loaded};
use super::types::{User, Zone};

/// Users per chunk: a write copies one chunk's pointers and encodes its part of the dict again.
const CHUNK_USERS: usize = 1024;
/// Neighbours that together have no more than this become one chunk.
const MERGE_USERS: usize = 256;

/// The directory at one moment. Cheap to share, never changed.
pub struct Snapshot {
    cursor: Cursor,
    /// By `global_id`; no chunk is empty.
    chunks: Vec<Arc<Chunk>>,
    /// For each chunk, how many users stand before it.
    starts: Vec<usize>,
    user_count: usize,
    global_ids: OrdMap<i64, i64>,
    zone_members: OrdMap<Arc<str>, OrdSet<i64>>,
    /// By `zone_id`.
    zones: Arc<[Arc<Zone>]>,
    etag: Bytes,
    /// The cursor as text.
    version: Bytes,
    history: DictHistory,
    json: OnceLock<DictBody>,
    gzip: OnceLock<DictBody>,
    pages: Arc<Pages>,
}

/// What becomes of a global id: the user that has it now, or nobody.
type Edit = (i64, Option<Arc<User>>);

struct Chunk {
    users: Box<[Arc<User>]>,
    dict: Arc<DictChunk>,
    /// Estimated memory of the users.
    bytes: usize,
}

impl Chunk {
    fn new(users: Vec<Arc<User>>) -> Arc<Self> {
        let dict = Arc::new(DictChunk::encode(users.iter().map(|user| (user.global_id, &*user.name))));
        let bytes = users.iter().map(|user| user_bytes(user)).sum();
        Arc::new(Self { users: users.into(), dict, bytes })
    }

    fn first_global_id(&self) -> i64 {
        self.users.first().map_or(i64::MIN, |user| user.global_id)
    }
}

impl Snapshot {
    /// The first snapshot of an epoch, or of a rebuild. O(n).
    pub fn load(loaded: Loaded) -> Self {
        let Loaded { cursor, users, zones } = loaded;
        let zones: Arc<[Arc<Zone>]> = zones.into_iter().map(Arc::new).collect();
        let mut global_ids = Vec::with_capacity(users.len());
        let mut members: BTreeMap<Arc<str>, Vec<i64>> = BTreeMap::new();
        let mut chunks = Vec::with_capacity(users.len() / CHUNK_USERS + 1);
        let user_count = users.len();
        let mut filling = Vec::with_capacity(CHUNK_USERS.min(user_count));
        for user in users {
            let user = with_shared_zone_ids(Arc::new(user), &zones);
            global_ids.push((user.id, user.global_id));
            for zone_id in &user.zone_ids {
                members.entry(zone_id.clone()).or_default().push(user.global_id);
            }
            filling.push(user);
            if filling.len() == CHUNK_USERS {
                chunks.push(Chunk::new(std::mem::take(&mut filling)));
            }
        }
        if !filling.is_empty() {
            chunks.push(Chunk::new(filling));
        }
        let zone_members: OrdMap<Arc<str>, OrdSet<i64>> =
            members.into_iter().map(|(zone_id, ids)| (zone_id, OrdSet::from_iter(ids))).collect();
        let history = DictHistory::starting_at(cursor.clone());
        Self::assemble(cursor, chunks, global_ids.into_iter().collect(), zone_members, zones, history)
    }

    /// The snapshot after `changes`. O(changed users · chunk size + chunks). Rows are absolute, so
    /// changes that are in already are harmless.
    pub fn apply(&self, changes: &Changes) -> Self {
        let zones = self.zones_after(changes);
        let mut global_ids = self.global_ids.clone();
        let mut zone_members = self.zone_members.clone();
        let mut edits: BTreeMap<i64, Option<Arc<User>>> = BTreeMap::new();
        // All that was there goes first: rows may have swapped their global ids.
        for (id, _) in &changes.users {
            let Some(global_id) = global_ids.remove(id) else { continue };
            edits.insert(global_id, None);
            for zone_id in self.find_user_by_global_id(global_id).iter().flat_map(|user| &user.zone_ids) {
                let emptied = zone_members.get_mut(zone_id).is_some_and(|members| {
                    members.remove(&global_id);
                    members.is_empty()
                });
                if emptied {
                    zone_members.remove(zone_id);
                }
            }
        }
        for user in changes.users.iter().filter_map(|(_, user)| user.as_ref()) {
            let user = with_shared_zone_ids(user.clone(), &zones);
            global_ids.insert(user.id, user.global_id);
            for zone_id in &user.zone_ids {
                zone_members.entry(zone_id.clone()).or_default().insert(user.global_id);
            }
            edits.insert(user.global_id, Some(user));
        }
        let named: Vec<i64> = edits
            .iter()
            .filter(|(global_id, after)| {
                let before = self.find_user_by_global_id(**global_id).map(|user| &*user.name);
                before != after.as_ref().map(|user| &*user.name)
            })
            .map(|(global_id, _)| *global_id)
            .collect();
        let chunks = self.chunks_after(edits, &named);
        let (from, to) = (self.cursor.clone(), changes.cursor.clone());
        let history = self.history.with(from, to, named, changes.global_ids.clone());
        Self::assemble(changes.cursor.clone(), chunks, global_ids, zone_members, zones, history)
    }

    /// The same content at a later moment.
    pub fn at(&self, cursor: Cursor) -> Self {
        Self {
            version: cursor.to_string().into(),
            cursor,
            chunks: self.chunks.clone(),
            starts: self.starts.clone(),
            user_count: self.user_count,
            global_ids: self.global_ids.clone(),
            zone_members: self.zone_members.clone(),
            zones: self.zones.clone(),
            etag: self.etag.clone(),
            history: self.history.clone(),
            json: self.json.clone(),
            gzip: self.gzip.clone(),
            pages: self.pages.clone(),
        }
    }

    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// O(log n).
    pub fn find_user(&self, id: i64) -> Option<&Arc<User>> {
        self.find_user_by_global_id(*self.global_ids.get(&id)?)
    }

    /// O(log n).
    pub fn find_user_by_global_id(&self, global_id: i64) -> Option<&Arc<User>> {
        let users = &self.chunks.get(self.chunk_of(global_id))?.users;
        users.binary_search_by_key(&global_id, |user| user.global_id).ok().map(|index| &users[index])
    }

    /// By `global_id`; O(log n + limit).
    pub fn list_users(&self, skip: usize, limit: usize) -> impl Iterator<Item = &Arc<User>> {
        let chunk = self.starts.partition_point(|start| *start <= skip).saturating_sub(1);
        let inside = skip - self.starts.get(chunk).copied().unwrap_or(0).min(skip);
        self.chunks[chunk.min(self.chunks.len())..].iter().flat_map(|chunk| chunk.users.iter()).skip(inside).take(limit)
    }

    /// [`Self::list_users`] as JSON. The pages that clients ask for again and again are written once.
    pub fn users_json(&self, skip: usize, limit: usize) -> Bytes {
        self.pages.get_or_write((skip, limit), || write_users(self.list_users(skip, limit)).into())
    }

    /// By `global_id`; O(answer · log n). Empty for an unknown zone.
    pub fn list_users_in_zone(&self, zone_id: &str) -> impl Iterator<Item = &Arc<User>> {
        let members = self.zone_members.get(zone_id);
        members.into_iter().flatten().filter_map(|global_id| self.find_user_by_global_id(*global_id))
    }

    /// O(log zones).
    pub fn find_zone(&self, zone_id: &str) -> Option<&Arc<Zone>> {
        find_zone(&self.zones, zone_id)
    }

    /// By `zone_id`.
    pub fn list_zones(&self, skip: usize, limit: usize) -> &[Arc<Zone>] {
        let zones = &self.zones[skip.min(self.zones.len())..];
        &zones[..limit.min(zones.len())]
    }

    pub fn count_users(&self) -> usize {
        self.user_count
    }

    pub fn count_zones(&self) -> usize {
        self.zones.len()
    }

    pub fn count_users_in_zone(&self, zone_id: &str) -> usize {
        self.zone_members.get(zone_id).map_or(0, OrdSet::len)
    }

    /// Weak entity tag of the dict, with `W/` and quotes: equal on every instance at equal content.
    pub fn dict_etag(&self) -> &str {
        std::str::from_utf8(&self.etag).unwrap_or_default()
    }

    /// [`Self::dict_etag`], shared.
    pub fn dict_etag_bytes(&self) -> Bytes {
        self.etag.clone()
    }

    /// The cursor as text, shared.
    pub fn version_bytes(&self) -> Bytes {
        self.version.clone()
    }

    pub fn dict_json(&self) -> &DictBody {
        self.json.get_or_init(|| dict::json_body(self.dict_chunks()))
    }

    /// One gzip member; deflates chunks that nobody asked for yet, so it may take milliseconds.
    pub fn dict_gzip(&self) -> &DictBody {
        self.gzip.get_or_init(|| dict::gzip_body(self.dict_chunks()))
    }

    /// Whether [`Self::dict_gzip`] is at hand.
    pub fn has_dict_gzip(&self) -> bool {
        self.gzip.get().is_some()
    }

    /// (global_id, name), ascending.
    pub fn dict_entries(&self) -> impl Iterator<Item = (i64, &str)> {
        self.chunks.iter().flat_map(|chunk| chunk.users.iter()).map(|user| (user.global_id, &*user.name))
    }

    /// The ids whose entry in the dict changed after `since`, as far as this snapshot remembers:
    /// ascending, each once, maybe some that did not change. `None`: ask the store. `validated`: the
    /// moment up to which this content is known to hold, [`Self::cursor`] or later.
    pub fn find_dict_changes(&self, since: &Cursor, validated: &Cursor) -> Option<Vec<i64>> {
        since.is_within(validated).then(|| self.history.find_changes(since))?
    }

    /// Estimated memory. O(chunks).
    pub fn count_bytes(&self) -> usize {
        let users: usize = self.chunks.iter().map(|chunk| chunk.bytes).sum();
        users + self.dict_chunks().map(DictChunk::count_bytes).sum::<usize>() + self.zones.len() * size_of::<Zone>()
    }

    fn assemble(
        cursor: Cursor,
        chunks: Vec<Arc<Chunk>>,
        global_ids: OrdMap<i64, i64>,
        zone_members: OrdMap<Arc<str>, OrdSet<i64>>,
        zones: Arc<[Arc<Zone>]>,
        history: DictHistory,
    ) -> Self {
        let mut user_count = 0;
        let mut digest = 0_u128;
        let mut starts = Vec::with_capacity(chunks.len());
        for chunk in &chunks {
            starts.push(user_count);
            user_count += chunk.users.len();
            digest = digest.wrapping_add(chunk.dict.digest());
        }
        Self {
            version: cursor.to_string().into(),
            cursor,
            chunks,
            starts,
            user_count,
            global_ids,
            zone_members,
            zones,
            etag: dict::etag(user_count, digest).into(),
            history,
            json: OnceLock::new(),
            gzip: OnceLock::new(),
            pages: Arc::default(),
        }
    }

    fn dict_chunks(&self) -> impl Iterator<Item = &DictChunk> {
        self.chunks.iter().map(|chunk| &*chunk.dict)
    }

    /// The chunk that has, or would have, the id.
    fn chunk_of(&self, global_id: i64) -> usize {
        self.chunks.partition_point(|chunk| chunk.first_global_id() <= global_id).saturating_sub(1)
    }

    /// `named`: the ids whose dict entry changes; chunks without one keep their encoding.
    fn chunks_after(&self, edits: BTreeMap<i64, Option<Arc<User>>>, named: &[i64]) -> Vec<Arc<Chunk>> {
        let mut by_chunk: BTreeMap<usize, Vec<Edit>> = BTreeMap::new();
        for (global_id, user) in edits {
            by_chunk.entry(self.chunk_of(global_id)).or_default().push((global_id, user));
        }
        let mut chunks: Vec<Arc<Chunk>> = Vec::with_capacity(self.chunks.len() + 1);
        let mut copied = 0;
        for (index, edits) in by_chunk {
            chunks.extend_from_slice(&self.chunks[copied..index.max(copied).min(self.chunks.len())]);
            copied = (index + 1).min(self.chunks.len());
            let old = self.chunks.get(index);
            let encoding_stays = !edits.iter().any(|(global_id, _)| named.binary_search(global_id).is_ok());
            let users = merge(old.map_or(&[], |chunk| &chunk.users), edits);
            match old {
                Some(old) if encoding_stays => {
                    let bytes = users.iter().map(|user| user_bytes(user)).sum();
                    chunks.push(Arc::new(Chunk { users: users.into(), dict: old.dict.clone(), bytes }));
                }
                _ => push_users(&mut chunks, users),
            }
        }
        chunks.extend_from_slice(&self.chunks[copied..]);
        chunks
    }

    fn zones_after(&self, changes: &Changes) -> Arc<[Arc<Zone>]> {
        if changes.zones.is_empty() {
            return self.zones.clone();
        }
        let mut zones: BTreeMap<Arc<str>, Arc<Zone>> =
            self.zones.iter().map(|zone| (zone.zone_id.clone(), zone.clone())).collect();
        for (zone_id, zone) in &changes.zones {
            match zone {
                Some(zone) => zones.insert(zone_id.clone(), Arc::new(zone.clone())),
                None => zones.remove(zone_id),
            };
        }
        zones.into_values().collect()
    }
}

/// The user, its texts and its places in the chunk and the indexes.
fn user_bytes(user: &User) -> usize {
    let places = 3 * size_of::<usize>() + 4 * size_of::<i64>();
    size_of::<User>() + user.name.len() + user.zone_ids.len() * size_of::<Arc<str>>() + places
}

/// Both in ascending order of the id.
fn merge(users: &[Arc<User>], edits: Vec<Edit>) -> Vec<Arc<User>> {
    let mut merged = Vec::with_capacity(users.len() + edits.len());
    let mut rest = users;
    for (global_id, user) in edits {
        let before = rest.partition_point(|user| user.global_id < global_id);
        merged.extend_from_slice(&rest[..before]);
        rest = &rest[before..];
        if rest.first().is_some_and(|user| user.global_id == global_id) {
            rest = &rest[1..];
        }
        merged.extend(user);
    }
    merged.extend_from_slice(rest);
    merged
}

fn push_users(chunks: &mut Vec<Arc<Chunk>>, mut users: Vec<Arc<User>>) {
    if let Some(last) = chunks.pop_if(|last| last.users.len() + users.len() <= MERGE_USERS) {
        users.splice(0..0, last.users.iter().cloned());
    }
    let pieces = users.len().div_ceil(CHUNK_USERS);
    if pieces > 0 {
        chunks.extend(users.chunks(users.len().div_ceil(pieces)).map(|piece| Chunk::new(piece.to_vec())));
    }
}

/// A million users name few zones: they share the zones' own text.
fn with_shared_zone_ids(mut user: Arc<User>, zones: &[Arc<Zone>]) -> Arc<User> {
    if user.zone_ids.is_empty() {
        return user;
    }
    for zone_id in &mut Arc::make_mut(&mut user).zone_ids {
        if let Some(zone) = find_zone(zones, zone_id) {
            *zone_id = zone.zone_id.clone();
        }
    }
    user
}

fn find_zone<'a>(zones: &'a [Arc<Zone>], zone_id: &str) -> Option<&'a Arc<Zone>> {
    zones.binary_search_by(|zone| (*zone.zone_id).cmp(zone_id)).ok().map(|index| &zones[index])
}

#[cfg(test)]
mod tests;
