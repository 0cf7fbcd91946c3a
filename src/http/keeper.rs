//! What each open connection is doing, and the one task that ends those that are silent, slow or stuck for too
//! long, or that have to go. Knows neither sockets nor what is served.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use super::taken::Taken;
use crate::config::ApiConfig;
use crate::lifecycle::Lifecycle;
use crate::telemetry::metrics::Metrics;

/// What a connection has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    Serve,
    /// Finish what is under way and take nothing new.
    Finish,
    /// End now.
    Close,
}

/// All connections of a listener.
pub struct Keeper {
    config: ApiConfig,
    metrics: Arc<Metrics>,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    /// For those that come.
    order: Order,
    next: u64,
    connections: HashMap<u64, Arc<Progress>>,
}

/// Milliseconds since the listener began.
struct Clock {
    begun_at: Instant,
    pause: Duration,
    /// The end of the pause that the keeper is in: no earlier than now, as long as it is on time. When it is late, what
    /// became idle meanwhile is taken for idle that much longer.
    rounded_up_ms: AtomicU64,
}

/// A connection as the keeper sees it; leaves it when dropped.
pub struct Kept {
    number: u64,
    pub progress: Arc<Progress>,
}

/// What a connection is doing, as far as its limits are concerned.
pub struct Progress {
    keeper: Arc<Keeper>,
    opened_at_ms: u64,
    in_request: AtomicBool,
    had_request: AtomicBool,
    /// Plus one; zero: no byte of a next request yet.
    head_since_ms: AtomicU64,
    /// The end of the last request, or of the last write; rounded up.
    idle_since_ms: AtomicU64,
    /// Plus one; zero: the client takes what it is sent.
    stuck_since_ms: AtomicU64,
    order: AtomicU8,
    /// It may be over a limit, as it looked from outside.
    is_suspect: AtomicBool,
    task: AtomicWaker,
    pub taken: Taken,
}

impl Keeper {
    pub fn new(config: ApiConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        let limits = [config.first_byte_timeout, config.header_timeout, config.keep_alive_timeout, config.body_timeout];
        let shortest = limits.into_iter().min().unwrap_or_default();
        let pause = (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let clock = Clock { begun_at: Instant::now(), pause, rounded_up_ms: AtomicU64::new(0) };
        clock.turn();
        let state = State { order: Order::Serve, next: 0, connections: HashMap::new() };
        Arc::new(Self { config, metrics, clock, state: Mutex::new(state) })
    }

    pub fn enter(self: &Arc<Self>) -> Kept {
        let mut state = self.state.lock();
        let progress = Arc::new(Progress {
            keeper: self.clone(),
            opened_at_ms: self.clock.now_ms(),
            in_request: AtomicBool::new(false),
            had_request: AtomicBool::new(false),
            head_since_ms: AtomicU64::new(0),
            idle_since_ms: AtomicU64::new(self.clock.rounded_up_ms.load(Ordering::Relaxed)),
            stuck_since_ms: AtomicU64::new(0),
            order: AtomicU8::new(state.order as u8),
            is_suspect: AtomicBool::new(false),
            task: AtomicWaker::new(),
            taken: Taken::default(),
        });
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, progress.clone());
        Kept { number, progress }
    }

    /// Looks after the connections until there is no work any more, or it is dropped.
    pub async fn run(self: Arc<Self>, lifecycle: Lifecycle) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(self.clock.pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_draining = false;
        loop {
            tokio::select! {
                biased;
                // Fires before an abort does, and in an orderly stop when no connection is left.
                () = lifecycle.closing().cancelled() => {
                    self.order_all(Order::Close);
                    return Ok(());
                }
                () = lifecycle.draining().cancelled(), if !is_draining => {
                    is_draining = true;
                    self.order_all(Order::Finish);
                }
                _ = ticks.tick() => self.look_around(),
            }
        }
    }

    fn look_around(&self) {
        self.clock.turn();
        let now_ms = self.clock.now_ms();
        for progress in self.state.lock().connections.values() {
            if progress.find_reason_to_close(now_ms).is_some() {
                progress.is_suspect.store(true, Ordering::Release);
                progress.task.wake();
            }
        }
    }

    fn order_all(&self, order: Order) {
        let mut state = self.state.lock();
        state.order = state.order.max(order);
        state.connections.values().for_each(|progress| progress.give(order));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.progress.keeper.state.lock().connections.remove(&self.number);
    }
}

impl Clock {
    fn turn(&self) {
        self.rounded_up_ms.store(to_ms(self.begun_at.elapsed() + self.pause), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        to_ms(self.begun_at.elapsed())
    }
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Progress {
    /// What to do; the task of `context` is woken when that changes.
    pub fn poll_order(&self, context: &Context<'_>) -> Order {
        self.task.register(context.waker());
        match self.order.load(Ordering::Acquire) {
            order if order == Order::Serve as u8 => Order::Serve,
            order if order == Order::Finish as u8 => Order::Finish,
            _ => Order::Close,
        }
    }

    /// An order is never taken back.
    fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.task.wake();
    }

    /// Whether the connection has to end, counted with its reason. For its own task, when nothing more has come: from
    /// outside it cannot be told whether a request is just beginning.
    pub fn is_overdue(&self) -> bool {
        if !self.is_suspect.swap(false, Ordering::AcqRel) {
            return false;
        }
        let reason = self.find_reason_to_close(self.keeper.clock.now_ms());
        if let Some(reason) = reason.filter(|reason| *reason != "idle") {
            self.keeper.metrics.http_connections_refused.with_label_values(&[reason]).inc();
        }
        reason.is_some()
    }

    pub fn saw_bytes(&self) {
        if !self.in_request.load(Ordering::Relaxed) && self.head_since_ms.load(Ordering::Relaxed) == 0 {
            self.head_since_ms.store(self.keeper.clock.now_ms() + 1, Ordering::Relaxed);
        }
    }

    /// `written`: the bytes that the client took; `None`: it takes nothing for the time being.
    pub fn saw_write(&self, written: Option<usize>) {
        match written {
            Some(bytes) => {
                self.stuck_since_ms.store(0, Ordering::Relaxed);
                self.begin_idleness();
                self.taken.add(bytes);
            }
            None if self.stuck_since_ms.load(Ordering::Relaxed) == 0 => {
                self.stuck_since_ms.store(self.keeper.clock.now_ms() + 1, Ordering::Relaxed);
            }
            None => {}
        }
    }

    /// The request lasts as long as what is answered.
    pub fn begin_request(self: &Arc<Self>) -> RequestEnd {
        self.in_request.store(true, Ordering::Relaxed);
        self.had_request.store(true, Ordering::Relaxed);
        self.head_since_ms.store(0, Ordering::Relaxed);
        RequestEnd(self.clone())
    }

    fn begin_idleness(&self) {
        self.idle_since_ms.store(self.keeper.clock.rounded_up_ms.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn find_reason_to_close(&self, now_ms: u64) -> Option<&'static str> {
        let config = &self.keeper.config;
        let is_over = |since_ms: u64, limit: Duration| u128::from(now_ms.saturating_sub(since_ms)) > limit.as_millis();
        let stuck_since_ms = self.stuck_since_ms.load(Ordering::Relaxed);
        // Who is still to take an answer is not idle, even when the answer was handed out whole.
        if stuck_since_ms > 0 {
            return is_over(stuck_since_ms - 1, config.body_timeout).then_some("answer");
        }
        if self.in_request.load(Ordering::Relaxed) {
            return None;
        }
        match self.head_since_ms.load(Ordering::Relaxed) {
            0 if !self.had_request.load(Ordering::Relaxed) => {
                is_over(self.opened_at_ms, config.first_byte_timeout).then_some("first_byte")
            }
            0 => is_over(self.idle_since_ms.load(Ordering::Relaxed), config.keep_alive_timeout).then_some("idle"),
            since_ms => is_over(since_ms - 1, config.header_timeout).then_some("headers"),
        }
    }
}

/// Marks the end of a request, however it ends: its answer was handed out whole, or is given up.
pub struct RequestEnd(Arc<Progress>);

impl Drop for RequestEnd {
    fn drop(&mut self) {
        self.0.begin_idleness();
        self.0.in_request.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::task::Waker;

    use tokio::time::advance;

    use super::*;

    pub fn config() -> ApiConfig {
        ApiConfig {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            allow_unauthenticated: false,
            cors_origins: Vec::new(),
            max_connections: 10,
            threads: 1,
            first_byte_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(40),
            request_deadline: Duration::from_secs(30),
        }
    }

    struct World(Arc<Keeper>);

    impl World {
        fn new() -> Self {
            Self(Keeper::new(config(), Arc::new(Metrics::new().expect("metrics"))))
        }

        /// Seconds until the connection has to close, looking around every second; at most a hundred.
        async fn seconds_until_closed(&self, kept: &Kept) -> u64 {
            for second in 0..100 {
                self.0.look_around();
                if kept.progress.is_overdue() {
                    return second;
                }
                advance(Duration::from_secs(1)).await;
            }
            100
        }

        fn refused(&self, reason: &str) -> u64 {
            self.0.metrics.http_connections_refused.with_label_values(&[reason]).get()
        }
    }

    fn order_of(kept: &Kept) -> Order {
        kept.progress.poll_order(&Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_slowness_has_its_limit_and_is_counted_once() {
        let world = World::new();
        let silent = world.0.enter();
        assert_eq!(world.seconds_until_closed(&silent).await, 6);
        let slow = world.0.enter();
        slow.progress.saw_bytes();
        assert_eq!(world.seconds_until_closed(&slow).await, 11);
        let stuck = world.0.enter();
        let request = stuck.progress.begin_request();
        stuck.progress.saw_write(None);
        drop(request);
        assert_eq!(world.seconds_until_closed(&stuck).await, 21);
        assert_eq!(["first_byte", "headers", "answer"].map(|reason| world.refused(reason)), [1, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_waited_for_and_an_idle_connection_is_not_closed_early() {
        let world = World::new();
        let kept = world.0.enter();
        let request = kept.progress.begin_request();
        assert_eq!(world.seconds_until_closed(&kept).await, 100);
        drop(request);
        // Since the end of the pause in which it became idle.
        assert!((41..=43).contains(&world.seconds_until_closed(&kept).await));
        assert_eq!(world.refused("idle"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_before_its_connection_is_closed_is_served() {
        let world = World::new();
        let kept = world.0.enter();
        advance(Duration::from_secs(6)).await;
        world.0.look_around();
        let _request = kept.progress.begin_request();
        assert!(!kept.progress.is_overdue());
    }

    #[tokio::test(start_paused = true)]
    async fn when_nothing_is_left_to_do_all_are_closed() {
        let (world, lifecycle) = (World::new(), Lifecycle::new());
        let kept = world.0.enter();
        lifecycle.draining().cancel();
        lifecycle.closing().cancel();
        world.0.clone().run(lifecycle).await.expect("an orderly end");
        assert_eq!((order_of(&kept), order_of(&world.0.enter())), (Order::Close, Order::Close));
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_reaches_those_who_come_later_and_is_not_taken_back() {
        let world = World::new();
        let early = world.0.enter();
        assert_eq!(order_of(&early), Order::Serve);
        world.0.order_all(Order::Finish);
        let late = world.0.enter();
        assert_eq!((order_of(&early), order_of(&late)), (Order::Finish, Order::Finish));
        world.0.order_all(Order::Close);
        world.0.order_all(Order::Finish);
        assert_eq!(order_of(&early), Order::Close);
        drop(early);
        assert_eq!(world.0.state.lock().connections.len(), 1, "who is gone is forgotten");
    }
}
