//! The users dict as a hash in Redis, with the mark that says what it holds: every change is a compare
//! and set on the mark, made in one step. Knows no directory.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use redis::{Cmd, Pipeline, cmd};

use super::connection::{Access, CallError, Connection};
use super::script::Script;
use crate::directory::Cursor;

/// Sent at once while a new dict is built: little enough for the budget of one call.
const CHUNK_FIELDS: usize = 500;
const CHUNK_BYTES: usize = 64 * 1024;
/// A dict under construction that nobody finishes goes away by itself.
const BUILDING_LIFE: Duration = Duration::from_secs(60);
/// Up to here a dict is read at one moment; a larger one, in pages, so that Redis is not blocked.
const FIELDS_READ_AT_ONCE: usize = 5_000;
const PAGE_FIELDS: usize = 1_000;

pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

pub struct DictHash {
    connection: Connection,
    dict: String,
    /// In the same slot of a cluster.
    mark: String,
    look: Script,
    delta: Script,
    replace: Script,
}

/// What the hash holds: the moment of the database, and how many entries of which content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub cursor: Cursor,
    pub fields: usize,
    pub etag: String,
}

impl Mark {
    /// `None` for anything that [`Self::fmt`] does not write.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let cursor = Cursor::parse(parts.next()?)?;
        let fields = parts.next()?.parse().ok()?;
        Some(Self { cursor, fields, etag: parts.next()?.to_owned() })
    }
}

/// `token fields etag`
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.cursor, self.fields, self.etag)
    }
}

/// What is there now.
#[derive(Clone, Debug)]
pub struct Look {
    /// As it stands, ours or garbage; empty: none.
    pub mark: String,
    /// -1: the key holds something else than a hash.
    pub fields: i64,
    /// Of the one that ends first; -1: one is without end, -2: neither is there.
    pub life_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Applied,
    /// Another writer was here since.
    Lost,
    /// The hash, or the new one, is not what it was to be.
    Broken,
}

impl DictHash {
    pub fn new(connection: Connection, name: &str) -> Self {
        Self {
            connection,
            dict: name.to_owned(),
            mark: format!("{{{name}}}:at"),
            look: Script::new("dict_look", Access::Read, include_str!("look.lua")),
            delta: Script::new("dict_delta", Access::Write, include_str!("delta.lua")),
            replace: Script::new("dict_replace", Access::Write, include_str!("replace.lua")),
        }
    }

    pub fn name(&self) -> &str {
        &self.dict
    }

    /// Whether a key is of this dict.
    pub fn owns(&self, key: &str) -> bool {
        key == self.dict || key.strip_prefix('{').is_some_and(|rest| rest.starts_with(&format!("{}}}:", self.dict)))
    }

    pub async fn look(&self) -> Result<Look, CallError> {
        let keys = [&*self.dict, &*self.mark];
        let (mark, fields, life_ms): (Vec<u8>, i64, i64) = self.look.run(&self.connection, &keys, |_| {}).await?;
        Ok(Look { mark: String::from_utf8_lossy(&mark).into_owned(), fields, life_ms })
    }

    /// Changes entries, from what `look` saw to what `next` says. The two lives begin anew.
    pub async fn apply(
        &self,
        look: &Look,
        next: &Mark,
        ttl: Duration,
        set: &[(i64, Box<str>)],
        deleted: &[i64],
    ) -> Result<Written, CallError> {
        let add_arguments = |call: &mut Cmd| {
            call.arg(&look.mark).arg(look.fields).arg(next.to_string()).arg(next.fields).arg(millis(ttl));
            call.arg(deleted.len()).arg(deleted);
            for (global_id, name) in set {
                call.arg(global_id).arg(&**name);
            }
        };
        self.delta.run(&self.connection, &[&self.dict, &self.mark], add_arguments).await.map(written)
    }

    /// Puts another dict in the place of this one, in one step; built beside it, in pieces.
    /// `expected`: the mark that must be there; `None`: any. `next`: `None` leaves none.
    pub async fn replace<'a>(
        &self,
        expected: Option<&str>,
        next: Option<&Mark>,
        entries: impl Iterator<Item = (i64, &'a str)> + Send,
        ttl: Duration,
    ) -> Result<Written, CallError> {
        let building = format!("{{{}}}:new:{}", self.dict, uuid::Uuid::new_v4().simple());
        let outcome = self.build_and_swap(&building, expected, next, entries, ttl).await;
        if !matches!(outcome, Ok(Written::Applied)) {
            let mut unlink = cmd("UNLINK");
            unlink.arg(&building);
            if let Err(error) = self.connection.query::<u64>("dict_discard", Access::Write, &unlink).await {
                tracing::debug!(?error, "an unfinished dict stays in Redis until its life ends");
            }
        }
        outcome
    }

    async fn build_and_swap<'a>(
        &self,
        building: &str,
        expected: Option<&str>,
        next: Option<&Mark>,
        entries: impl Iterator<Item = (i64, &'a str)> + Send,
        ttl: Duration,
    ) -> Result<Written, CallError> {
        let mut entries = entries.peekable();
        let mut count = 0_usize;
        while entries.peek().is_some() {
            let (mut fields, mut bytes) = (0, 0);
            let mut pipeline = Pipeline::new();
            pipeline.cmd("HSET").arg(building);
            while let Some((global_id, name)) = entries.next_if(|_| fields < CHUNK_FIELDS && bytes < CHUNK_BYTES) {
                pipeline.arg(global_id).arg(name);
                (fields, bytes) = (fields + 1, bytes + name.len() + 20);
            }
            pipeline.ignore().cmd("PEXPIRE").arg(building).arg(millis(BUILDING_LIFE)).ignore();
            self.connection.query::<()>("dict_build", Access::Write, &pipeline).await?;
            count += fields;
        }
        let next_mark = next.map(Mark::to_string).unwrap_or_default();
        let add_arguments = |call: &mut Cmd| {
            call.arg(expected.unwrap_or("*")).arg(&next_mark).arg(count).arg(millis(ttl));
        };
        self.replace.run(&self.connection, &[&self.dict, &self.mark, building], add_arguments).await.map(written)
    }

    /// Forgets what the hash holds; who mirrors writes it anew. Readers keep the entries meanwhile.
    pub async fn forget_mark(&self) -> Result<(), CallError> {
        let mut delete = cmd("DEL");
        delete.arg(&self.mark);
        self.connection.query::<u64>("dict_forget", Access::Write, &delete).await.map(|_| ())
    }

    /// Whether there was a dict.
    pub async fn remove(&self) -> Result<bool, CallError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("UNLINK").arg(&self.dict).cmd("DEL").arg(&self.mark).ignore();
        let (removed,): (u64,) = self.connection.query("invalidate_users_dict", Access::Write, &pipeline).await?;
        Ok(removed > 0)
    }

    /// One page, and where the next one begins; 0: this was the last.
    pub async fn scan(&self, cursor: u64, fields: usize) -> Result<(u64, Fields), CallError> {
        let mut scan = cmd("HSCAN");
        scan.arg(&self.dict).arg(cursor).arg("COUNT").arg(fields);
        self.connection.query("dict_scan", Access::Read, &scan).await
    }

    /// All entries, `None` when there is no dict. A large one may be of several moments.
    pub async fn read(&self) -> Result<Option<BTreeMap<Vec<u8>, Vec<u8>>>, CallError> {
        let mut count = cmd("HLEN");
        count.arg(&self.dict);
        let fields: usize = self.connection.query("get_users_dict", Access::Read, &count).await?;
        if fields == 0 {
            return Ok(None);
        }
        if fields <= FIELDS_READ_AT_ONCE {
            let mut read = cmd("HGETALL");
            read.arg(&self.dict);
            let entries: Fields = self.connection.query("get_users_dict", Access::Read, &read).await?;
            return Ok(Some(entries.into_iter().collect()).filter(|entries: &BTreeMap<_, _>| !entries.is_empty()));
        }
        let (mut entries, mut cursor) = (BTreeMap::new(), 0);
        loop {
            let (next, page) = self.scan(cursor, PAGE_FIELDS).await?;
            entries.extend(page);
            if next == 0 {
                return Ok(Some(entries));
            }
            cursor = next;
        }
    }
}

fn written(answer: String) -> Written {
    match &*answer {
        "applied" => Written::Applied,
        "lost" => Written::Lost,
        _ => Written::Broken,
    }
}

/// Redis takes no life of zero.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_way_to_redis_and_garbage_is_none() {
        let cursor = Cursor { epoch: 7, xmin: 9, xmax: 12, xip: vec![9, 10] };
        let mark = Mark { cursor, fields: 3, etag: "W/\"3-ab\"".to_owned() };
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        for garbage in ["", "7.c", "7.c x W/\"3-ab\"", "x 3 W/\"3-ab\"", "7.c 3"] {
            assert_eq!(Mark::parse(garbage), None, "{garbage}");
        }
    }
}
