//! The barrier on a database that does what the test wants, with the clock in the test's hand.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use async_trait::async_trait;

use super::*;
use crate::directory::store::{Changes, Loaded, Progress, ResetReason};
use crate::directory::types::{Command, Outcome, Refusal, User, WriteError};
use crate::time::Timestamp;

const ROUND_TRIP: Duration = Duration::from_millis(50);

/// One user, whose name is the number of the last write.
#[derive(Default)]
struct Database {
    version: AtomicU64,
    validations: AtomicUsize,
    loads: AtomicUsize,
    is_silent: AtomicBool,
    is_refusing: AtomicBool,
    must_reset: AtomicBool,
    is_near: AtomicBool,
    /// How many feeds were opened; those before `dead_before` never answer again.
    feeds: AtomicUsize,
    dead_before: AtomicUsize,
}

impl Database {
    fn write(&self) -> u64 {
        self.version.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn moment(version: u64) -> Cursor {
        Cursor { epoch: 1, xmin: version, xmax: version, xip: Vec::new() }
    }

    fn user(version: u64) -> User {
        User {
            id: 1,
            global_id: 1,
            name: version.to_string().into(),
            zone_ids: Box::default(),
            created_at: Timestamp::from_micros(0),
            updated_at: None,
        }
    }
}

struct Store(Arc<Database>);

#[async_trait]
impl DirectoryStore for Store {
    async fn write(&self, _command: Command) -> Result<Outcome, WriteError> {
        Err(StoreError::unavailable_because("database", "read-only").into())
    }

    async fn write_all(&self, _commands: Vec<Command>) -> Result<Vec<Result<Outcome, Refusal>>, StoreError> {
        Ok(Vec::new())
    }

    async fn read_users_dict(&self) -> Result<std::collections::BTreeMap<i64, String>, StoreError> {
        Ok(std::collections::BTreeMap::new())
    }

    async fn begin_epoch(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn open_feed(&self) -> Result<Arc<dyn DirectoryFeed>, StoreError> {
        if self.0.is_refusing.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable_because("database", "connection refused"));
        }
        let number = self.0.feeds.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Feed(self.0.clone(), number)))
    }
}

struct Feed(Arc<Database>, usize);

#[async_trait]
impl DirectoryFeed for Feed {
    async fn load(&self) -> Result<Loaded, StoreError> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        let version = self.0.version.load(Ordering::SeqCst);
        let users = vec![Database::user(version)];
        Ok(Loaded { cursor: Database::moment(version), users, zones: Vec::new() })
    }

    async fn changes_since(&self, cursor: &Cursor) -> Result<Progress, StoreError> {
        self.0.validations.fetch_add(1, Ordering::SeqCst);
        if self.0.is_silent.load(Ordering::SeqCst) || self.1 < self.0.dead_before.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.0.is_refusing.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable_because("database", "connection lost"));
        }
        if self.0.must_reset.swap(false, Ordering::SeqCst) {
            return Ok(Progress::Reset(ResetReason::Epoch));
        }
        // The statement runs when it has arrived there, half a round trip later.
        let trip = if self.0.is_near.load(Ordering::SeqCst) { ROUND_TRIP / 50 } else { ROUND_TRIP };
        tokio::time::sleep(trip / 2).await;
        let version = self.0.version.load(Ordering::SeqCst);
        tokio::time::sleep(trip / 2).await;
        let moment = Database::moment(version);
        if version == cursor.xmax {
            return Ok(Progress::Unchanged(moment));
        }
        let users = vec![(1, Some(Arc::new(Database::user(version))))];
        Ok(Progress::Changed(Changes { cursor: moment, users, zones: Vec::new(), global_ids: vec![1] }))
    }

    async fn changed_users_since(&self, _cursor: &Cursor) -> Result<Option<Vec<i64>>, StoreError> {
        Ok(None)
    }
}

struct World {
    database: Arc<Database>,
    barrier: Barrier,
    lifecycle: Lifecycle,
}

impl World {
    async fn start(stale_if_error: Duration) -> Self {
        let (database, lifecycle) = (Arc::new(Database::default()), Lifecycle::new());
        let config = DirectoryConfig {
            read_deadline: Duration::from_secs(2),
            stale_if_error,
            audit_interval: Duration::from_secs(3600),
        };
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let barrier = Barrier::start(Arc::new(Store(database.clone())), &config, &lifecycle, metrics);
        barrier.read().await.expect("loaded");
        Self { database, barrier, lifecycle }
    }

    async fn read(&self) -> u64 {
        name_in(&self.barrier.read().await.expect("an answer"))
    }

    fn count_validations(&self) -> usize {
        self.database.validations.swap(0, Ordering::SeqCst)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.lifecycle.abort();
    }
}

fn name_in(view: &View) -> u64 {
    view.snapshot.find_user(1).expect("the user").name.parse().expect("a number")
}

#[tokio::test(start_paused = true)]
async fn a_read_contains_the_write_before_it_after_one_round_trip() {
    let world = World::start(Duration::ZERO).await;
    for _ in 0..5 {
        let written = world.database.write();
        let begin = now();
        assert_eq!(world.read().await, written);
        assert!(now() - begin <= ROUND_TRIP + Duration::from_millis(2), "{:?}", now() - begin);
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_far_database_share_its_round_trips_and_do_not_wait_for_two() {
    let world = World::start(Duration::ZERO).await;
    world.read().await;
    world.count_validations();
    let begin = now();
    // A hundred readers in three milliseconds: the first begins a validation, the others come too late for it.
    let readers = (0..100_u64).map(|number| {
        let barrier = world.barrier.clone();
        async move {
            tokio::time::sleep(Duration::from_micros(number * 30)).await;
            let came = now();
            barrier.read().await.expect("an answer");
            now() - came
        }
    });
    let waits = futures_util::future::join_all(readers).await;
    let longest = waits.iter().max().expect("a hundred");
    // One round trip and the pace of a part of it; two would be a hundred milliseconds.
    assert!(*longest <= ROUND_TRIP + ROUND_TRIP / 32 + Duration::from_millis(2), "{longest:?}");
    assert!(now() - begin <= Duration::from_millis(60));
    assert!(world.count_validations() <= 3);
}

#[tokio::test(start_paused = true)]
async fn readers_at_the_door_of_a_near_database_share_one_validation() {
    let world = World::start(Duration::ZERO).await;
    world.database.is_near.store(true, Ordering::SeqCst);
    // Until the long round trips of before are forgotten.
    for _ in 0..100 {
        world.read().await;
    }
    world.count_validations();
    // Each comes when the one before has, as requests are read one after the other: behind the driver's turn.
    let (all, mut answered) = tokio::sync::mpsc::unbounded_channel();
    come(world.barrier.clone(), 8, 0, all);
    while answered.recv().await.is_some() {}
    assert_eq!(world.count_validations(), 1);
}

#[tokio::test(start_paused = true)]
async fn readers_who_ask_again_after_some_turns_are_waited_for() {
    const WARM_UP: usize = 20;
    const LAPS: usize = 20;
    let world = World::start(Duration::ZERO).await;
    world.database.is_near.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        world.read().await;
    }
    for lap in 0..LAPS + WARM_UP {
        if lap == WARM_UP {
            // How many usually come is known by now.
            world.count_validations();
        }
        let (all, mut answered) = tokio::sync::mpsc::unbounded_channel();
        come(world.barrier.clone(), 64, 3, all);
        while answered.recv().await.is_some() {}
    }
    // Two halves each, and not the few who came first.
    assert_eq!(world.count_validations(), 2 * LAPS);
}

/// One reader after the other, with so many turns of the thread between them.
fn come(barrier: Barrier, readers: usize, turns: usize, answered: tokio::sync::mpsc::UnboundedSender<()>) {
    tokio::spawn(async move {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        if readers > 1 {
            come(barrier.clone(), readers - 1, turns, answered.clone());
        }
        barrier.read().await.expect("an answer");
        drop(answered);
    });
}

#[tokio::test(start_paused = true)]
async fn overlapping_validations_are_applied_in_their_order() {
    let world = World::start(Duration::ZERO).await;
    let readers = (0..200_u64).map(|number| {
        let (barrier, database) = (world.barrier.clone(), world.database.clone());
        async move {
            tokio::time::sleep(Duration::from_millis(number)).await;
            let written = database.write();
            let read = name_in(&barrier.read().await.expect("an answer"));
            assert!(read >= written, "{read} after {written}");
            (now(), read)
        }
    });
    let mut reads = futures_util::future::join_all(readers).await;
    reads.sort_unstable();
    assert!(reads.windows(2).all(|pair| pair[0].1 <= pair[1].1), "time does not go back");
}

#[tokio::test(start_paused = true)]
async fn readers_who_leave_disturb_nobody() {
    let world = World::start(Duration::ZERO).await;
    for patience_ms in 0..60 {
        let written = world.database.write();
        let leaving = tokio::time::timeout(Duration::from_millis(patience_ms), world.barrier.read());
        let (left, stayed) = tokio::join!(leaving, world.read());
        drop(left);
        assert_eq!(stayed, written);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_database_is_a_deadline_and_the_next_session_heals() {
    let world = World::start(Duration::ZERO).await;
    world.database.is_silent.store(true, Ordering::SeqCst);
    let begin = now();
    let error = world.barrier.read().await.map(|view| name_in(&view)).expect_err("no answer");
    assert!(matches!(error, StoreError::Deadline { .. }), "{error}");
    assert_eq!((now() - begin).as_millis() / 100, 20);
    world.database.is_silent.store(false, Ordering::SeqCst);
    let written = world.database.write();
    assert_eq!(world.read().await, written);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_silently_costs_time_and_no_refusal() {
    let world = World::start(Duration::ZERO).await;
    world.read().await;
    world.database.dead_before.store(1, Ordering::SeqCst);
    let (written, begin) = (world.database.write(), now());
    assert_eq!(world.read().await, written);
    assert!(now() - begin < Duration::from_millis(1_100), "{:?}", now() - begin);
}

#[tokio::test(start_paused = true)]
async fn in_a_long_outage_readers_are_refused_at_once_and_served_as_soon_as_it_ends() {
    let world = World::start(Duration::ZERO).await;
    world.database.is_refusing.store(true, Ordering::SeqCst);
    world.barrier.read().await.map(|view| name_in(&view)).expect_err("the first one waits in vain");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let begin = now();
    let error = world.barrier.read().await.map(|view| name_in(&view)).expect_err("still away");
    assert!(now() - begin < Duration::from_millis(50), "{:?}", now() - begin);
    assert!(error.to_string().contains("connection"), "{error}");
    world.database.is_refusing.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.read().await, 0);
}

#[tokio::test(start_paused = true)]
async fn stale_answers_are_marked_with_their_age_and_end_at_the_limit() {
    let world = World::start(Duration::from_secs(60)).await;
    world.database.is_refusing.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let view = world.barrier.read().await.expect("stale, but allowed");
    let age = view.stale.expect("marked");
    assert!(age >= Duration::from_secs(10) && age < Duration::from_secs(13), "{age:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.barrier.read().await.map(|view| name_in(&view)).expect_err("too old");
}

#[tokio::test(start_paused = true)]
async fn a_reset_loads_everything_before_anyone_is_answered() {
    let world = World::start(Duration::ZERO).await;
    let written = world.database.write();
    world.database.must_reset.store(true, Ordering::SeqCst);
    assert_eq!(world.read().await, written);
    assert_eq!(world.database.loads.load(Ordering::SeqCst), 2);
    assert_eq!(world.barrier.stats().rebuilds, 1);
    world.barrier.rebuild().await.expect("on demand");
    assert_eq!(world.database.loads.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_followers_cost_one_poll_which_is_slow_while_all_is_quiet() {
    let world = World::start(Duration::ZERO).await;
    world.count_validations();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.count_validations(), 0, "nobody follows, nobody asks");
    let guards: Vec<FreshGuard> = (0..1000).map(|_| world.barrier.keep_fresh()).collect();
    let mut snapshots = world.barrier.follow();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let quiet = world.count_validations();
    assert!((30..=60).contains(&quiet), "{quiet} polls in ten quiet seconds");
    snapshots.mark_unchanged();
    world.database.write();
    let begin = now();
    snapshots.changed().await.expect("news");
    assert!(now() - begin <= Duration::from_millis(300), "{:?}", now() - begin);
    drop(guards);
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.count_validations();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.count_validations(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_own_write_does_not_wait_for_the_poll() {
    let world = World::start(Duration::ZERO).await;
    let _guard = world.barrier.keep_fresh();
    let mut snapshots = world.barrier.follow();
    tokio::time::sleep(Duration::from_secs(10)).await;
    snapshots.mark_unchanged();
    let begin = now();
    world.database.write();
    world.barrier.nudge();
    snapshots.changed().await.expect("news");
    // A poll may be under way that began before the write; the next one follows it.
    assert!(now() - begin <= ROUND_TRIP * 2 + Duration::from_millis(2), "{:?}", now() - begin);
}

#[tokio::test(start_paused = true)]
async fn polls_of_a_busy_writer_do_not_overlap() {
    let world = World::start(Duration::ZERO).await;
    let _fresh = world.barrier.keep_fresh();
    world.count_validations();
    for _ in 0..1_000 {
        world.database.write();
        world.barrier.nudge();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A second is twenty round trips.
    let polls = world.count_validations();
    assert!((18..=21).contains(&polls), "{polls} validations in a second");
}
