//! Looks the server over for an operator: version, memory, rights. Leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::RedisCache;
use super::target::Target;
use crate::config::RedisConfig;
use crate::store_error::describe;
use crate::telemetry::finding::Finding;
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

const SUBJECT: &str = "redis";
/// More than the service grants: an examination may wait.
const TIMEOUT: Duration = Duration::from_secs(2);
const OLDEST_VERSION: u32 = 6;

pub async fn examine(config: &RedisConfig, metrics: Arc<Metrics>) -> Vec<Finding> {
    let information = match tokio::time::timeout(TIMEOUT * 2, read_information(config)).await {
        Ok(Ok(information)) => information,
        Ok(Err(error)) => {
            let remedy = "is Redis running at the host and port of REDIS_URL, and is the password right? The service goes on without it";
            return vec![Finding::failure(SUBJECT, error, remedy)];
        }
        Err(_) => {
            let remedy = "does the network let us through to the host and port of REDIS_URL?";
            return vec![Finding::failure(SUBJECT, "no answer in time", remedy)];
        }
    };
    let mut findings = vec![judge_version(&information)];
    findings.extend(judge_memory(&information));
    let cache = RedisCache::new(config, metrics, HealthBoard::default());
    let refused: Vec<String> = cache
        .selftest()
        .await
        .into_iter()
        .filter_map(|(operation, outcome)| outcome.err().map(|error| format!("{operation}: {error}")))
        .collect();
    cache.close().await;
    findings.push(if refused.is_empty() {
        Finding::ok(SUBJECT, "every operation of the cache works")
    } else {
        let remedy = "give the user the rights (ACL SETUSER … ~* +@all -@admin -@dangerous +info), and see `unified-backend cache selftest`";
        Finding::failure(SUBJECT, refused.join("; "), remedy)
    });
    findings
}

/// The answer of INFO; in a cluster, that of one node.
async fn read_information(config: &RedisConfig) -> Result<String, String> {
    let target = Target::parse(config.url.expose())?;
    let mut open = target.connect(None).await.map_err(|error| describe(&error))?;
    let answer: Value = redis::cmd("INFO").query_async(&mut open).await.map_err(|error| describe(&error))?;
    let text = match answer {
        Value::Map(nodes) => nodes.into_iter().map(|(_, information)| information).next().unwrap_or(Value::Nil),
        single => single,
    };
    redis::from_redis_value(text).map_err(|error| describe(&error))
}

fn judge_version(information: &str) -> Finding {
    let version = field(information, "redis_version").unwrap_or("unknown");
    let major: Option<u32> = version.split('.').next().and_then(|major| major.parse().ok());
    if major.is_some_and(|major| major >= OLDEST_VERSION) {
        Finding::ok(SUBJECT, format!("Redis {version} answers"))
    } else {
        Finding::warning(SUBJECT, format!("Redis {version} is not known to work"), "use version 6 or later")
    }
}

/// A server that evicts may drop the users dict and nobody is told; one that is full refuses it.
fn judge_memory(information: &str) -> Option<Finding> {
    let policy = field(information, "maxmemory_policy")?;
    let limit: u64 = field(information, "maxmemory")?.parse().ok()?;
    Some(match (limit, policy) {
        (0, _) => Finding::ok(SUBJECT, "no memory limit"),
        (_, "noeviction") => Finding::ok(SUBJECT, "when its memory is full it refuses writes and keeps the users dict"),
        _ => Finding::warning(
            SUBJECT,
            format!("maxmemory-policy is {policy}: when its memory is full it may drop the users dict"),
            "set maxmemory-policy noeviction, or give the users dict a server of its own",
        ),
    })
}

fn field<'a>(information: &'a str, name: &str) -> Option<&'a str> {
    information.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::finding::Verdict;

    #[test]
    fn a_server_that_may_drop_the_dict_is_warned_of() {
        let verdict = |information: &str| judge_memory(information).map(|finding| finding.verdict);
        assert_eq!(verdict("maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n"), Some(Verdict::Ok));
        assert_eq!(verdict("maxmemory:1000\r\nmaxmemory_policy:noeviction\r\n"), Some(Verdict::Ok));
        assert_eq!(verdict("maxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n"), Some(Verdict::Warning));
        assert_eq!(verdict("used_memory:1"), None);
        assert_eq!(judge_version("redis_version:7.0.15\r\n").verdict, Verdict::Ok);
        assert_eq!(judge_version("redis_version:5.0.1\r\n").verdict, Verdict::Warning);
    }
}
