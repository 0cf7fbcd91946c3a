//! The one connection of a service to Redis: made on first use, made again when it breaks, and asked
//! only as long as the budget of a call lasts. Owns the breaker and what the health board says of
//! Redis; knows no key.
//!
//! Connecting has a task of its own that outlives the call which began it: where it takes longer than
//! one call may, a later call finds it done. Many calls share the connection; answers come in the
//! order of the questions, and the answer to a call that left is dropped in its place, so nobody is
//! handed another one's. A connection on which a call ran out of time is still given up: a peer that
//! vanished without a sign looks just like that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult};

use super::breaker::Breaker;
use super::fault::{self, Fault, FaultKind};
use super::target::{self, CONNECT_LIMIT, Open, Pushes, Target};
use crate::config::RedisConfig;
use crate::telemetry::health::{HealthBoard, State, name};
use crate::telemetry::metrics::Metrics;

/// What a call is to Redis, and so what its end says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Proves that Redis answers.
    Read,
    /// Proves that it takes writes, too.
    Write,
    /// As a read; that it is refused worries nobody.
    Aside,
}

#[derive(Clone, Copy)]
pub enum Request<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
}

impl<'a> From<&'a Cmd> for Request<'a> {
    fn from(command: &'a Cmd) -> Self {
        Self::Command(command)
    }
}

impl<'a> From<&'a Pipeline> for Request<'a> {
    fn from(pipeline: &'a Pipeline) -> Self {
        Self::Pipeline(pipeline)
    }
}

/// How a call failed.
#[derive(Clone, Debug)]
pub enum CallError {
    /// Redis cannot be used now; why.
    NotAvailable(String),
    /// The key holds another type of value.
    WrongType,
    /// The script must be sent in full.
    NoScript,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<ConnectionShared>,
}

struct ConnectionShared {
    /// The error is about the URL and stays.
    target: Result<Target, Fault>,
    budget: Duration,
    state: Mutex<ConnectionState>,
    metrics: Arc<Metrics>,
    health: HealthBoard,
}

#[derive(Default)]
struct ConnectionState {
    breaker: Breaker,
    attempt: Option<Attempt>,
    last_id: u64,
    is_known: bool,
    /// Nothing works.
    outage: Option<Fault>,
    /// Redis answers, and refuses what we need.
    refusal: Option<Fault>,
}

/// One connection, or the way to it.
#[derive(Clone)]
struct Attempt {
    id: u64,
    connecting: Shared<BoxFuture<'static, Result<Open, Fault>>>,
}

enum Failure {
    Connecting(Fault),
    Calling(RedisError),
}

impl Connection {
    /// Connects to nothing yet.
    pub fn new(config: &RedisConfig, metrics: Arc<Metrics>, health: HealthBoard) -> Self {
        let target = Target::parse(config.url.expose()).map_err(|text| Fault::new(FaultKind::Url, text));
        match &target {
            Ok(_) => health.report(name::REDIS, State::Starting, Some("not used yet".to_owned())),
            Err(fault) => {
                tracing::error!(fault = fault.text, "Redis cannot be used; the service does without");
                health.report(name::REDIS, State::Degraded, Some(fault.text.clone()))
            }
        };
        let state = Mutex::new(ConnectionState::default());
        Self { shared: Arc::new(ConnectionShared { target, budget: config.timeout, state, metrics, health }) }
    }

    /// Asks Redis. Answers or fails within the budget.
    pub async fn query<'a, T: FromRedisValue>(
        &self,
        operation: &'static str,
        access: Access,
        request: impl Into<Request<'a>>,
    ) -> Result<T, CallError> {
        let request = request.into();
        let target = self.shared.target.as_ref().map_err(|fault| CallError::NotAvailable(fault.text.clone()))?;
        let begun_at = now();
        self.admit(operation, begun_at)?;
        let mut used = None;
        let outcome = tokio::time::timeout(self.shared.budget, self.attempt(target, request, &mut used)).await;
        let took = now().saturating_duration_since(begun_at);
        self.shared.metrics.redis_call_seconds.observe(took.as_secs_f64());
        let (fault, result) = match outcome {
            Ok(Ok(answer)) => {
                self.record_success(access, took);
                self.count(operation, "ok");
                return Ok(answer);
            }
            Ok(Err(Failure::Calling(error))) if fault::is_wrong_type(&error) => {
                self.record_success(Access::Read, took);
                self.count(operation, "error");
                return Err(CallError::WrongType);
            }
            Ok(Err(Failure::Calling(error))) if fault::is_missing_script(&error) => {
                self.count(operation, "ok");
                return Err(CallError::NoScript);
            }
            Ok(Err(Failure::Calling(error))) => (Fault::of(&error, &target.address), "error"),
            Ok(Err(Failure::Connecting(fault))) => (fault, "error"),
            Err(_) => (Fault::timeout(&target.address, self.shared.budget), "timeout"),
        };
        self.count(operation, result);
        if let Some(id) = used.filter(|_| fault.kind.needs_new_connection()) {
            self.give_up(id);
        }
        let told = CallError::NotAvailable(fault.text.clone());
        self.record_failure(access, fault);
        Err(told)
    }

    /// Waits for the connection, longer than a call would.
    pub async fn connect(&self) -> Result<(), CallError> {
        let target = self.shared.target.as_ref().map_err(|fault| CallError::NotAvailable(fault.text.clone()))?;
        let begun_at = now();
        match self.connection(target).connecting.await {
            Ok(_) => {
                self.record_success(Access::Read, now().saturating_duration_since(begun_at));
                Ok(())
            }
            Err(fault) => {
                let told = CallError::NotAvailable(fault.text.clone());
                self.record_failure(Access::Read, fault);
                Err(told)
            }
        }
    }

    /// A connection of its own, for subscriptions.
    pub async fn connect_apart(&self, pushes: Pushes) -> Result<Open, Fault> {
        let target = self.shared.target.as_ref().map_err(Clone::clone)?;
        connect(target.clone(), Some(pushes)).await
    }

    /// Redis answers, and refuses writes (or did when it was last asked for one).
    pub fn refuses_writes(&self) -> bool {
        self.shared.state.lock().refusal.is_some()
    }

    /// Lets the connection go; the next call makes a new one.
    pub fn close(&self) {
        self.shared.state.lock().attempt = None;
    }

    fn admit(&self, operation: &'static str, at: Instant) -> Result<(), CallError> {
        let mut state = self.shared.state.lock();
        if state.breaker.admits(at) {
            return Ok(());
        }
        let why = state.outage.as_ref().or(state.refusal.as_ref()).map(|fault| fault.text.clone());
        drop(state);
        self.count(operation, "rejected");
        Err(CallError::NotAvailable(why.unwrap_or_else(|| "it failed several times in a row".to_owned())))
    }

    /// `used`: the connection on which the request was sent.
    async fn attempt<T: FromRedisValue>(
        &self,
        target: &Target,
        request: Request<'_>,
        used: &mut Option<u64>,
    ) -> Result<T, Failure> {
        loop {
            let Attempt { id, connecting } = self.connection(target);
            let mut open = connecting.await.map_err(Failure::Connecting)?;
            let is_first = used.replace(id).is_none();
            match request.send(&mut open).await {
                // It broke while nobody looked, as when the server closes what is idle. What is sent
                // here does no harm when it is sent twice.
                Err(error) if is_first && error.is_connection_dropped() => self.give_up(id),
                answer => return answer.map_err(Failure::Calling),
            }
        }
    }

    /// The connection, or the way to it; a new one when there is none or connecting failed.
    fn connection(&self, target: &Target) -> Attempt {
        let mut state = self.shared.state.lock();
        let usable = state.attempt.as_ref().filter(|attempt| !matches!(attempt.connecting.peek(), Some(Err(_))));
        if let Some(attempt) = usable {
            return attempt.clone();
        }
        state.last_id += 1;
        let connecting = tokio::spawn(connect(target.clone(), None));
        let connecting = async move {
            let lost = |join| Err(Fault::new(FaultKind::Other, format!("connecting to Redis failed: {join}")));
            connecting.await.unwrap_or_else(lost)
        };
        let attempt = Attempt { id: state.last_id, connecting: connecting.boxed().shared() };
        state.attempt = Some(attempt.clone());
        attempt
    }

    fn give_up(&self, id: u64) {
        let mut state = self.shared.state.lock();
        if state.attempt.as_ref().is_some_and(|attempt| attempt.id == id) {
            state.attempt = None;
        }
    }

    fn record_success(&self, access: Access, took: Duration) {
        let mut state = self.shared.state.lock();
        state.breaker.record_success();
        self.shared.metrics.redis_breaker_open.set(0);
        let was_troubled = state.outage.take().is_some() | (access == Access::Write && state.refusal.take().is_some());
        let is_news = was_troubled || !state.is_known;
        state.is_known = true;
        if is_news && state.refusal.is_none() {
            if self.shared.health.report(name::REDIS, State::Up, None) {
                tracing::info!("Redis works");
            }
        } else if is_news && let Some(refusal) = &state.refusal {
            self.shared.health.report(name::REDIS, State::Degraded, Some(refusal.text.clone()));
        }
        drop(state);
        self.shared.health.report_latency(name::REDIS, took);
    }

    fn record_failure(&self, access: Access, fault: Fault) {
        let is_refusal = fault.kind.is_refusal();
        if access == Access::Aside && (is_refusal || fault.kind == FaultKind::Other) {
            return;
        }
        let mut state = self.shared.state.lock();
        state.breaker.record_failure(now());
        self.shared.metrics.redis_breaker_open.set(i64::from(state.breaker.is_open()));
        state.is_known = true;
        let known = if is_refusal { &mut state.refusal } else { &mut state.outage };
        let is_news = known.as_ref().is_none_or(|known| known.kind != fault.kind);
        *known = Some(fault.clone());
        if is_refusal {
            state.outage = None;
        }
        self.shared.health.report(name::REDIS, State::Degraded, Some(fault.text.clone()));
        if is_news {
            tracing::warn!(fault = fault.text, "Redis does not work as it should; the service does without");
        }
    }

    fn count(&self, operation: &'static str, result: &'static str) {
        self.shared.metrics.redis_calls.with_label_values(&[operation, result]).inc();
    }
}

impl Request<'_> {
    async fn send<T: FromRedisValue>(self, open: &mut Open) -> RedisResult<T> {
        match self {
            Self::Command(command) => command.query_async(open).await,
            Self::Pipeline(pipeline) => pipeline.query_async(open).await,
        }
    }
}

async fn connect(target: Target, pushes: Option<Pushes>) -> Result<Open, Fault> {
    let connected = tokio::time::timeout(CONNECT_LIMIT, target.connect(pushes)).await;
    let connected = connected.unwrap_or_else(|_| Err(target::too_slow()));
    connected.map_err(|error| Fault::of(&error, &target.address))
}

/// The runtime's clock, which tests can hold.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
