//! Start and stop of one service: the root of cancellation, and the rule that a dead task is a dead
//! process. Owns no sockets and knows no feature; ten services in one process each have their own.
//!
//! Stopping has four steps, each a token that tasks wait on:
//! 1. [`Lifecycle::settling`]: not ready any more, connections still accepted (a balancer notices);
//! 2. [`Lifecycle::draining`]: nothing new is accepted, streams say goodbye, consumers stop;
//! 3. [`Lifecycle::closing`]: all requests and work are done: what they depended on (storage, the
//!    barrier, ingest) flushes and closes;
//! 4. [`Lifecycle::aborting`]: the drain time is over or a second signal came: drop everything.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Cloned into everything that runs on its own.
#[derive(Clone)]
pub struct Lifecycle {
    inner: Arc<Inner>,
}

struct Inner {
    settling: CancellationToken,
    draining: CancellationToken,
    closing: CancellationToken,
    aborting: CancellationToken,
    /// Tasks that live as long as the service.
    services: TaskTracker,
    /// Requests, streams and units of work under way: what the drain waits for first.
    work: TaskTracker,
    failure: Mutex<Option<TaskFailure>>,
}

/// A task that was to live as long as the service ended before it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("background task `{task}` ended: {reason}")]
pub struct TaskFailure {
    pub task: &'static str,
    pub reason: String,
}

/// Why a stop was not an orderly one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StopFailure {
    #[error(transparent)]
    Task(#[from] TaskFailure),
    #[error("the drain time ({drain:?}) was over, {tasks} tasks were dropped")]
    Overran { drain: Duration, tasks: usize },
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                settling: CancellationToken::new(),
                draining: CancellationToken::new(),
                closing: CancellationToken::new(),
                aborting: CancellationToken::new(),
                services: TaskTracker::new(),
                work: TaskTracker::new(),
                failure: Mutex::new(None),
            }),
        }
    }

    pub fn settling(&self) -> &CancellationToken {
        &self.inner.settling
    }

    pub fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }

    pub fn closing(&self) -> &CancellationToken {
        &self.inner.closing
    }

    pub fn aborting(&self) -> &CancellationToken {
        &self.inner.aborting
    }

    /// Runs a task that must live as long as the service. It is to return `Ok` only after
    /// [`Self::draining`] fired; an earlier return, an error or a panic stops the service and is
    /// what [`Self::stopped`] reports.
    pub fn spawn_service<F>(&self, task: &'static str, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let lifecycle = self.clone();
        self.inner.services.spawn(async move {
            let outcome = tokio::spawn(future).await;
            let reason = match outcome {
                Ok(Ok(())) if lifecycle.inner.draining.is_cancelled() => return,
                Ok(Ok(())) => "it returned although the service was not stopping".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(join) if join.is_panic() => format!("it panicked: {}", panic_text(join.into_panic().as_ref())),
                Err(_) => "it was cancelled".to_owned(),
            };
            tracing::error!(task, reason, "background task {task} ended, stopping the service");
            lifecycle.inner.failure.lock().get_or_insert(TaskFailure { task, reason });
            lifecycle.inner.settling.cancel();
        });
    }

    /// Runs a unit of work that outlives its caller: it is finished even when the request that asked
    /// for it is gone, and the drain waits for it.
    pub fn spawn_work<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // Its lines belong to the request that asked for it.
        self.inner.work.spawn(future.in_current_span())
    }

    /// Asks for the orderly stop. Idempotent.
    pub fn stop(&self) {
        self.inner.settling.cancel();
    }

    /// Drops everything now. Idempotent.
    pub fn abort(&self) {
        self.inner.settling.cancel();
        self.inner.draining.cancel();
        self.inner.closing.cancel();
        self.inner.aborting.cancel();
    }

    /// Waits for [`Self::stop`], then walks through the steps; returns when all is drained or the
    /// drain time is over. The error names the task whose death was the reason, or tells what was dropped.
    pub async fn stopped(&self, settle: Duration, drain: Duration) -> Result<(), StopFailure> {
        self.inner.settling.cancelled().await;
        let failed = self.inner.failure.lock().is_some();
        if !failed {
            tokio::select! {
                () = tokio::time::sleep(settle) => {}
                () = self.inner.aborting.cancelled() => {}
            }
        }
        self.inner.draining.cancel();
        self.inner.work.close();
        self.inner.services.close();
        let all_done = async {
            self.inner.work.wait().await;
            self.inner.closing.cancel();
            self.inner.services.wait().await;
        };
        let drained = tokio::select! {
            () = all_done => Ok(()),
            () = self.inner.aborting.cancelled() => {
                tracing::warn!("stopped at once on the second signal");
                Ok(())
            }
            () = tokio::time::sleep(drain) => {
                let failure = StopFailure::Overran { drain, tasks: self.inner.work.len() + self.inner.services.len() };
                tracing::warn!("{failure}");
                Err(failure)
            }
        };
        self.inner.closing.cancel();
        self.inner.aborting.cancel();
        match self.inner.failure.lock().take() {
            Some(failure) => Err(failure.into()),
            None => drained,
        }
    }
}

/// The message of a panic, where it has one.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dead_task_stops_the_service_and_is_named() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn_service("follower", async { anyhow::bail!("out of ink") });
        let failure = lifecycle.stopped(Duration::from_secs(1), Duration::from_secs(10)).await.expect_err("failed");
        let StopFailure::Task(failure) = failure else { panic!("{failure}") };
        assert_eq!((failure.task, failure.reason.as_str()), ("follower", "out of ink"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_waits_for_work_but_not_longer_than_it_may() {
        let lifecycle = Lifecycle::new();
        let quick = lifecycle.spawn_work(tokio::time::sleep(Duration::from_secs(3)));
        let endless = lifecycle.spawn_work(std::future::pending::<()>());
        lifecycle.stop();
        let begin = tokio::time::Instant::now();
        let failure = lifecycle.stopped(Duration::from_secs(1), Duration::from_secs(10)).await.expect_err("overran");
        assert!(matches!(failure, StopFailure::Overran { tasks: 1, .. }), "{failure}");
        assert_eq!(begin.elapsed().as_secs(), 11);
        assert!(quick.is_finished() && !endless.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn an_abort_does_not_wait() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn_work(std::future::pending::<()>());
        lifecycle.abort();
        let begin = tokio::time::Instant::now();
        lifecycle.stopped(Duration::from_secs(1), Duration::from_secs(10)).await.expect("orderly");
        assert_eq!(begin.elapsed().as_secs(), 0);
    }
}
