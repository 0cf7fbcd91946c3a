//! Carries rings between instances by Redis' publish and subscribe. A ring is a hint: the poll of the
//! log is the truth, so a ring that is lost costs a moment, and nothing here is ever waited for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use redis::{FromRedisValue, PushInfo, PushKind, cmd};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::connection::{Access, Connection};
use super::fault::Fault;
use crate::alerts::Doorbell;

const CHANNEL: &str = "unified_backend:alerts";
/// Rings that come within this time of one another are carried as one.
const COALESCED_WITHIN: Duration = Duration::from_millis(5);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often the subscription's connection is tried, so that one which died without a sign is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_LIMIT: Duration = Duration::from_secs(2);

pub struct Carrier {
    connection: Connection,
    doorbell: Doorbell,
    /// By which we know our own rings.
    instance: String,
}

impl Carrier {
    pub fn new(connection: Connection, doorbell: Doorbell) -> Self {
        Self { connection, doorbell, instance: uuid::Uuid::new_v4().simple().to_string() }
    }

    pub async fn run(self, closing: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = closing.cancelled() => Ok(()),
            never = self.publish() => match never {},
            never = self.subscribe() => match never {},
        }
    }

    async fn publish(&self) -> Infallible {
        let mut publish = cmd("PUBLISH");
        publish.arg(CHANNEL).arg(&self.instance);
        loop {
            self.doorbell.announced().await;
            if let Err(error) = self.connection.query::<u64>("ring", Access::Aside, &publish).await {
                tracing::debug!(?error, "a ring was not carried; the others poll");
            }
            tokio::time::sleep(COALESCED_WITHIN).await;
        }
    }

    /// Says little: what is wrong with Redis is told where it is asked things.
    async fn subscribe(&self) -> Infallible {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let begun_at = tokio::time::Instant::now();
            if let Err(fault) = self.listen().await {
                tracing::debug!(fault = fault.text, "rings of other instances are not heard; polling");
            }
            let was_good = begun_at.elapsed() > LONGEST_BACKOFF;
            backoff = if was_good { FIRST_BACKOFF } else { backoff };
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// One subscription, until its connection ends.
    async fn listen(&self) -> Result<(), Fault> {
        let ended = Arc::new(Notify::new());
        let (doorbell, instance, ending) = (self.doorbell.clone(), self.instance.clone(), ended.clone());
        let mut open = self
            .connection
            .connect_apart(Arc::new(move |push: PushInfo| {
                match push.kind {
                    PushKind::Message if !is_from(&push, &instance) => doorbell.ring(),
                    PushKind::Disconnection => ending.notify_one(),
                    _ => {}
                }
                Ok(())
            }))
            .await?;
        let gone = |error: &redis::RedisError| Fault::of(error, "the subscription");
        let subscribing = tokio::time::timeout(PING_LIMIT, open.subscribe(CHANNEL)).await;
        subscribing.unwrap_or_else(|_| Err(super::target::too_slow())).map_err(|error| gone(&error))?;
        // Others may have rung while nobody listened.
        self.doorbell.ring();
        loop {
            tokio::select! {
                () = ended.notified() => return Ok(()),
                () = tokio::time::sleep(PING_INTERVAL) => {}
            }
            let ping = cmd("PING");
            let answer = tokio::time::timeout(PING_LIMIT, ping.query_async::<redis::Value>(&mut open)).await;
            answer.unwrap_or_else(|_| Err(super::target::too_slow())).map_err(|error| gone(&error))?;
        }
    }
}

/// A message is (channel, payload).
fn is_from(push: &PushInfo, instance: &str) -> bool {
    let payload = push.data.get(1).and_then(|payload| String::from_redis_value_ref(payload).ok());
    payload.is_some_and(|payload| payload == instance)
}
