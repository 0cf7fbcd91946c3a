//! The threads that talk to the file, and the frame around every unit of work: a deadline, one name in
//! the metrics, and the rule that a connection is used again only after a clean end.
//!
//! One thread writes. It commits as a group what queued up while its last commit ran, so the cost of
//! making a commit durable is shared by all who wait for it. Some threads read. Work reaches them over
//! channels, so nothing blocks the runtime.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Weak, mpsc};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use rusqlite::Connection;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};

use super::connection::{Access, Opened, Session};
use super::error::{DEPENDENCY, translate};
use crate::gathering::{Gathering, PATIENCE};
use crate::lifecycle::panic_text;
use crate::store_error::StoreError;
use crate::telemetry::metrics::Metrics;

/// Units of work in one commit at most: bounds what one failing disk write takes with it.
const GROUP: usize = 512;
/// A group of these is not waited for any more: it is worth its commit.
const ENOUGH: usize = 48;
/// Reads are short, and what is asked for all day stands in memory: a few threads are enough.
const READERS: std::ops::RangeInclusive<usize> = 2..=4;

#[derive(Clone)]
pub struct Pool {
    writes: Queue,
    reads: Queue,
    path: Arc<Path>,
    limit: Duration,
    /// Why nothing can be done yet; `None` once the schema is there.
    obstacle: watch::Receiver<Option<String>>,
    /// Why the last group was not committed, or one of its units failed; `None` when all went well.
    write_failure: Arc<Mutex<Option<String>>>,
    private: Arc<Mutex<Vec<Private>>>,
    metrics: Arc<Metrics>,
}

/// A thread whose queue somebody else owns.
struct Private {
    sender: Weak<Mutex<Option<Sender>>>,
    thread: Thread,
}

/// How a unit of work may end besides its result.
pub enum WorkError {
    Driver(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for WorkError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Driver(error)
    }
}

impl From<StoreError> for WorkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A thread that was started; resolves when it ends, with the text of its panic if that was the reason.
pub struct Thread {
    pub name: &'static str,
    pub ended: oneshot::Receiver<Result<(), String>>,
}

/// Work on its way to threads; closed by [`Queue::close`] or with its last clone.
#[derive(Clone)]
pub struct Queue {
    sender: Arc<Mutex<Option<Sender>>>,
}

type Sender = mpsc::Sender<Box<dyn Unit>>;
type Arrivals = mpsc::Receiver<Box<dyn Unit>>;

impl Pool {
    /// Starts the threads. The writer holds `lock` until its last commit is done.
    pub fn start(
        path: &Arc<Path>,
        size: usize,
        limit: Duration,
        obstacle: watch::Receiver<Option<String>>,
        lock: File,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Vec<Thread>), StoreError> {
        let (writes, commands) = Queue::new();
        let write_failure = Arc::new(Mutex::new(None));
        let session = Session::new(path.clone(), Access::Write, busy_timeout(limit));
        let (failure, counters) = (write_failure.clone(), metrics.clone());
        let mut threads = vec![spawn("sqlite-writer", move || {
            write_groups(session, commands, &failure, &counters);
            drop(lock);
        })?];
        let (reads, questions) = Queue::new();
        let questions = Arc::new(Mutex::new(questions));
        let readers = size.clamp(*READERS.start(), *READERS.end());
        for _ in 0..readers {
            threads.push(spawn_reader("sqlite-reader", path, limit, questions.clone(), metrics.clone())?);
        }
        metrics.store_pool_connections.set(i64::try_from(threads.len()).unwrap_or(i64::MAX));
        metrics.store_pool_idle.set(i64::try_from(threads.len()).unwrap_or(i64::MAX));
        let (path, private) = (path.clone(), Arc::default());
        Ok((Self { writes, reads, path, limit, obstacle, write_failure, private, metrics }, threads))
    }

    /// A thread and connection of its own, for a session that must not queue behind other readers.
    pub fn open_private(&self, name: &'static str) -> Result<Queue, StoreError> {
        self.check_obstacle()?;
        let (queue, questions) = Queue::new();
        let questions = Arc::new(Mutex::new(questions));
        let thread = spawn_reader(name, &self.path, self.limit, questions, self.metrics.clone())?;
        let mut private = self.private.lock();
        private.retain_mut(|private| private.thread.ended.try_recv() == Err(TryRecvError::Empty));
        private.push(Private { sender: Arc::downgrade(&queue.sender), thread });
        Ok(queue)
    }

    /// Runs a unit of work that reads, on any of the readers.
    pub async fn read<T, W>(&self, operation: &'static str, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Fn(&Opened) -> Result<T, WorkError> + Send + 'static,
    {
        self.run(&self.reads, operation, work).await
    }

    /// Runs a unit of work that writes; answers after it is durable. All of it happens, or nothing.
    /// It is carried out even when nobody waits for its answer any more; and a second time, the first one undone, where
    /// another unit of its group failed. Then it may have waited twice for a lock of another process.
    pub async fn write<T, W>(&self, operation: &'static str, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Fn(&Opened) -> Result<T, WorkError> + Send + 'static,
    {
        self.run(&self.writes, operation, work).await
    }

    async fn run<T, W>(&self, queue: &Queue, operation: &'static str, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Fn(&Opened) -> Result<T, WorkError> + Send + 'static,
    {
        self.check_obstacle()?;
        let begun_at = Instant::now();
        let waiting = Waiting::counted_in(&self.metrics.store_pool_waiting);
        let result = queue.ask(operation, self.limit, work).await;
        drop(waiting);
        self.metrics.store_seconds.with_label_values(&[operation]).observe(begun_at.elapsed().as_secs_f64());
        if let Err(error) = &result {
            self.metrics.store_errors.with_label_values(&[operation, error.kind()]).inc();
        }
        result
    }

    /// Waits until the schema is there.
    pub async fn until_usable(&self) {
        if self.obstacle.clone().wait_for(Option::is_none).await.is_err() {
            tracing::debug!("the database's keeper ended before the schema was there");
        }
    }

    fn check_obstacle(&self) -> Result<(), StoreError> {
        match self.obstacle.borrow().as_ref() {
            Some(obstacle) => Err(StoreError::unavailable_because(DEPENDENCY, obstacle.clone())),
            None => Ok(()),
        }
    }

    /// Why the last write failed; `None` when it did not.
    pub fn find_write_failure(&self) -> Option<String> {
        self.write_failure.lock().clone()
    }

    /// The readers finish what is queued and end. Gives those that [`Pool::open_private`] started.
    pub fn close_reads(&self) -> Vec<Thread> {
        self.reads.close();
        let private = std::mem::take(&mut *self.private.lock());
        let close = |private: Private| {
            if let Some(sender) = private.sender.upgrade() {
                sender.lock().take();
            }
            private.thread
        };
        private.into_iter().map(close).collect()
    }

    /// The writer commits what is queued and ends.
    pub fn close_writes(&self) {
        self.writes.close();
    }

    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    pub fn limit(&self) -> Duration {
        self.limit
    }
}

/// Someone who waits for an answer, also if not until the end.
struct Waiting<'gauge>(&'gauge IntGauge);

impl<'gauge> Waiting<'gauge> {
    fn counted_in(gauge: &'gauge IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Shorter than the limit of the work that waits, so that it is told why.
fn busy_timeout(limit: Duration) -> Duration {
    limit * 3 / 4
}

impl Queue {
    fn new() -> (Self, Arrivals) {
        let (sender, arrivals) = mpsc::channel();
        (Self { sender: Arc::new(Mutex::new(Some(sender))) }, arrivals)
    }

    pub async fn ask<T, W>(&self, operation: &'static str, limit: Duration, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: Fn(&Opened) -> Result<T, WorkError> + Send + 'static,
    {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let (reply, answer) = oneshot::channel();
        let errand = Box::new(Errand { operation, limit_ms, work, result: None, reply });
        let is_sent = self.sender.lock().as_ref().is_some_and(|sender| sender.send(errand).is_ok());
        if !is_sent {
            return Err(StoreError::unavailable_because(DEPENDENCY, "it is closed, the service is stopping"));
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(StoreError::unavailable_because(DEPENDENCY, "its thread ended before it could answer")),
            Err(_) => Err(StoreError::Deadline { dependency: DEPENDENCY, operation, limit_ms }),
        }
    }

    fn close(&self) {
        self.sender.lock().take();
    }
}

/// A unit of work of whatever result.
trait Unit: Send {
    fn is_awaited(&self) -> bool;
    /// Whether it ended well. What it did may be undone and it carried out again.
    fn carry_out(&mut self, connection: &Opened) -> bool;
    /// Why it did not.
    fn find_failure(&self) -> Option<StoreError>;
    /// `fate`: what became of the whole group.
    fn answer(self: Box<Self>, fate: Result<(), &StoreError>);
}

struct Errand<T, W> {
    operation: &'static str,
    limit_ms: u64,
    work: W,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, W> Unit for Errand<T, W>
where
    T: Send,
    W: Fn(&Opened) -> Result<T, WorkError> + Send,
{
    fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }

    fn carry_out(&mut self, connection: &Opened) -> bool {
        let result = (self.work)(connection).map_err(|error| match error {
            WorkError::Driver(error) => translate(self.operation, self.limit_ms, error),
            WorkError::Store(error) => error,
        });
        self.result.insert(result).is_ok()
    }

    fn find_failure(&self) -> Option<StoreError> {
        self.result.as_ref().and_then(|result| result.as_ref().err().map(StoreError::repeat))
    }

    fn answer(self: Box<Self>, fate: Result<(), &StoreError>) {
        let result = match (fate, self.result) {
            (_, Some(Err(error))) => Err(error),
            (Err(error), _) => Err(error.repeat()),
            (Ok(()), Some(Ok(result))) => Ok(result),
            (Ok(()), None) => Err(StoreError::corrupt(DEPENDENCY, "work was answered before it was done")),
        };
        if self.reply.send(result).is_err() {
            tracing::debug!(operation = self.operation, "nobody waits for the answer any more");
        }
    }
}

fn write_groups(mut session: Session, arrivals: Arrivals, write_failure: &Mutex<Option<String>>, metrics: &Metrics) {
    let (mut group, mut next) = (Vec::with_capacity(GROUP), Vec::with_capacity(GROUP));
    let (mut gathering, mut expected, mut answered_at) = (Gathering::default(), 0, Instant::now());
    loop {
        if group.is_empty() {
            let Ok(first) = arrivals.recv() else { return };
            group.push(first);
        }
        group.extend(arrivals.try_iter().take(GROUP - group.len()));
        let (wanted, patient_until) = (ENOUGH.min(expected), answered_at + PATIENCE);
        if group.len() < wanted && Instant::now() < patient_until && gathering.may_wait() {
            while group.len() < wanted {
                let patience = patient_until.saturating_duration_since(Instant::now());
                let Ok(unit) = arrivals.recv_timeout(patience) else { break };
                group.push(unit);
            }
            gathering.waited(group.len() >= wanted);
        }
        metrics.store_pool_idle.dec();
        let fate = commit_group(&mut session, &mut group);
        if fate.is_err() {
            session.discard();
            metrics.store_pool_discarded.inc();
        }
        let of_units = || group.iter().find_map(|unit| unit.find_failure());
        *write_failure.lock() =
            fate.as_ref().err().map(StoreError::repeat).or_else(of_units).map(|error| error.to_string());
        next.extend(arrivals.try_iter().take(GROUP));
        // All who were seen around this commit.
        expected = group.len() + next.len();
        for unit in group.drain(..) {
            unit.answer(fate.as_ref().copied());
        }
        answered_at = Instant::now();
        std::mem::swap(&mut group, &mut next);
        metrics.store_pool_idle.inc();
    }
}

/// One transaction, in which the failure of one unit does not undo the others. A savepoint for each would do that, but costs
/// as much as a short unit, and a copy of every page that is written after it. So all are carried out without,
/// and again with savepoints where one of them failed.
fn commit_group(session: &mut Session, group: &mut [Box<dyn Unit>]) -> Result<(), StoreError> {
    let connection = session.connection()?;
    execute(connection, "BEGIN IMMEDIATE")?;
    let mut all_ended_well = true;
    for unit in group.iter_mut() {
        all_ended_well = carry_out(connection, unit)?;
        if !all_ended_well {
            break;
        }
    }
    if all_ended_well {
        return execute(connection, "COMMIT");
    }
    execute(connection, "ROLLBACK")?;
    if group.len() == 1 {
        return Ok(());
    }
    execute(connection, "BEGIN IMMEDIATE")?;
    for unit in group {
        execute(connection, "SAVEPOINT unit")?;
        if !carry_out(connection, unit)? {
            execute(connection, "ROLLBACK TO unit")?;
        }
        execute(connection, "RELEASE unit")?;
    }
    execute(connection, "COMMIT")
}

/// Whether the unit ended well. The error is that of the whole group: some failures, a full disk among
/// them, end the transaction.
fn carry_out(connection: &Opened, unit: &mut Box<dyn Unit>) -> Result<bool, StoreError> {
    let ended_well = unit.carry_out(connection);
    if connection.is_autocommit() {
        let unexplained = || StoreError::unavailable_because(DEPENDENCY, "the transaction was lost");
        return Err(unit.find_failure().unwrap_or_else(unexplained));
    }
    Ok(ended_well)
}

fn execute(connection: &Connection, sql: &'static str) -> Result<(), StoreError> {
    let executing = || connection.prepare_cached(sql)?.execute([]);
    executing().map(|_| ()).map_err(|error| translate(sql, 0, error))
}

fn spawn_reader(
    name: &'static str,
    path: &Arc<Path>,
    limit: Duration,
    questions: Arc<Mutex<Arrivals>>,
    metrics: Arc<Metrics>,
) -> Result<Thread, StoreError> {
    let mut session = Session::new(path.clone(), Access::Read, busy_timeout(limit));
    spawn(name, move || {
        loop {
            let next = questions.lock().recv();
            let Ok(mut unit) = next else { return };
            if !unit.is_awaited() {
                continue;
            }
            metrics.store_pool_idle.dec();
            session.allow(limit);
            let ended_well = match session.connection() {
                Ok(connection) => {
                    let ended_well = unit.carry_out(connection);
                    unit.answer(Ok(()));
                    ended_well
                }
                Err(error) => {
                    unit.answer(Err(&error));
                    false
                }
            };
            if !ended_well {
                session.discard();
                metrics.store_pool_discarded.inc();
            }
            metrics.store_pool_idle.inc();
        }
    })
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<Thread, StoreError> {
    let (end, ended) = oneshot::channel();
    let run = move || {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(body));
        let told = end.send(outcome.map_err(|payload| panic_text(payload.as_ref())));
        if let Err(Err(panic)) = told {
            tracing::error!(panic, "a database thread panicked");
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| StoreError::unavailable(DEPENDENCY, error))?;
    Ok(Thread { name, ended })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a test waits.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn start(directory: &tempfile::TempDir, limit: Duration) -> (Queue, Thread) {
        let path: Arc<Path> = directory.path().join("test.db").into();
        Connection::open(&path).and_then(|file| file.execute_batch("CREATE TABLE t (n)")).expect("a database");
        let (queue, questions) = Queue::new();
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let thread = spawn_reader("reader", &path, limit, Arc::new(Mutex::new(questions)), metrics);
        (queue, thread.expect("a thread"))
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_told_of_and_answers_nobody_with_silence() {
        let directory = tempfile::tempdir().expect("a directory");
        let (queue, thread) = start(&directory, PATIENCE);
        let panicking = queue.ask("probe", PATIENCE, |_| -> Result<(), WorkError> { panic!("out of ink") });
        let error = panicking.await.expect_err("no answer").to_string();
        assert!(error.contains("its thread ended"), "{error}");
        assert_eq!(thread.ended.await.expect("told"), Err("out of ink".to_owned()));
        let error = queue.ask("probe", PATIENCE, |_| Ok(())).await.expect_err("closed").to_string();
        assert!(error.contains("closed"), "{error}");
    }

    #[tokio::test]
    async fn a_statement_that_takes_too_long_is_interrupted_and_the_thread_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let (queue, _thread) = start(&directory, Duration::from_millis(50));
        let endless = |connection: &Opened| {
            let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
            Ok(connection.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        };
        let error = queue.ask("probe", PATIENCE, endless).await.expect_err("interrupted");
        assert!(matches!(error, StoreError::Deadline { operation: "probe", .. }), "{error}");
        let answer = queue
            .ask("probe", PATIENCE, |connection| Ok(connection.query_row("SELECT 7", [], |row| row.get::<_, i64>(0))?));
        assert_eq!(answer.await.expect("the next one is answered"), 7);
    }
}
