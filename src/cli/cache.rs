//! `cache`: the operations of the Redis cache by hand.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::exit::Failure;
use super::{Exit, Settings, print};
use crate::redis::{CacheError, RedisCache};
use crate::telemetry::health::HealthBoard;
use crate::telemetry::metrics::Metrics;

/// Look into and change the Redis cache
#[derive(clap::Args)]
#[command(after_help = "\
Exit code 1: no such key, or a failed self-test; 69: Redis is not configured or does not answer.

Examples:
  unified-backend cache stats
  unified-backend cache set greeting '{\"text\":\"hello\"}' --ttl 60
  unified-backend cache get greeting
  unified-backend cache selftest")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print figures of the server
    Stats,
    /// Print the value of a key
    Get { key: String },
    /// Store a JSON value
    Set {
        key: String,
        /// JSON, e.g. 5, '"text"' or '{"a":1}'
        json: String,
        /// Seconds until it is gone
        #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
        ttl: u64,
    },
    /// Remove a key
    Delete { key: String },
    /// Tell whether a key is there
    Exists { key: String },
    /// Remove the users dict; a running service fills it again by itself
    Invalidate,
    /// Remove everything that is ours
    Clear,
    /// Run every operation once and tell how each went
    Selftest,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let config = settings.load()?;
    let Some(config) = &config.redis else {
        return Err(Failure::unavailable(
            "Redis is not configured: set REDIS_URL=redis://host:6379/0, or REDIS_HOST, or REDIS_ENABLED=true for 127.0.0.1",
        ));
    };
    let cache = RedisCache::new(config, Arc::new(Metrics::new()?), HealthBoard::default());
    // A far server, or one behind TLS, takes longer to connect to than one call may. Should it fail, the
    // action tells.
    if let Err(error) = cache.connect().await {
        tracing::debug!(%error, "not connected");
    }
    let exit = carry_out(&cache, arguments.action).await;
    cache.close().await;
    exit
}

async fn carry_out(cache: &RedisCache, action: Action) -> anyhow::Result<Exit> {
    match action {
        Action::Stats => {
            let stats = cache.get_stats().await;
            print(&serde_json::to_string_pretty(&stats)?)?;
            Ok(if stats.get("error").is_some() { Exit::Unavailable } else { Exit::Done })
        }
        Action::Get { key } => match cache.get(&key).await.map_err(unavailable)? {
            Some(value) => {
                print(&value.to_string())?;
                Ok(Exit::Done)
            }
            None => {
                super::complain(&format!("no key {key}"));
                Ok(Exit::Failed)
            }
        },
        Action::Set { key, json, ttl } => {
            let value: Value = serde_json::from_str(&json).map_err(|error| {
                Failure::usage(format!("the value is not JSON ({error}); write a text as '\"text\"'"))
            })?;
            cache.set(&key, &value, Duration::from_secs(ttl)).await.map_err(unavailable)?;
            print(&format!("set {key} for {ttl} s"))?;
            Ok(Exit::Done)
        }
        Action::Delete { key } => {
            let was_there = cache.delete(&key).await.map_err(unavailable)?;
            answer(was_there, "deleted", "was not there")
        }
        Action::Exists { key } => {
            let is_there = cache.exists(&key).await.map_err(unavailable)?;
            answer(is_there, "true", "false")
        }
        Action::Invalidate => {
            let was_there = cache.invalidate_users_dict().await.map_err(unavailable)?;
            print(if was_there { "users dict invalidated" } else { "there was no users dict" })?;
            Ok(Exit::Done)
        }
        Action::Clear => {
            let count = cache.clear_all().await.map_err(unavailable)?;
            print(&format!("{count} keys removed"))?;
            Ok(Exit::Done)
        }
        Action::Selftest => {
            let mut exit = Exit::Done;
            for (operation, outcome) in cache.selftest().await {
                match outcome {
                    Ok(detail) => print(&format!("ok    {operation}: {detail}"))?,
                    Err(error) => {
                        exit = Exit::Failed;
                        print(&format!("FAIL  {operation}: {error}"))?;
                    }
                }
            }
            Ok(exit)
        }
    }
}

fn answer(is_so: bool, yes: &str, no: &str) -> anyhow::Result<Exit> {
    print(if is_so { yes } else { no })?;
    Ok(if is_so { Exit::Done } else { Exit::Failed })
}

fn unavailable(error: CacheError) -> anyhow::Error {
    Failure::unavailable(error.to_string())
}
