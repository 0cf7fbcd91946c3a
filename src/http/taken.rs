//! How much a client has taken of what it is sent, as the connection sees it: below every buffer of ours,
//! where slow and stuck can be told apart.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::time::{Instant, timeout};

/// In every request that came through the listener. Cheap to clone.
#[derive(Clone, Default)]
pub struct Taken(Arc<AtomicU64>);

impl Taken {
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits for a write for as long as the client takes anything; `None`: it took nothing at all for so long.
    pub async fn unless_stuck<T>(&self, limit: Duration, writing: impl Future<Output = T>) -> Option<T> {
        let mut writing = pin!(writing);
        let mut seen = self.bytes();
        let mut moved_at = Instant::now();
        loop {
            if let Ok(written) = timeout(limit / 8, &mut writing).await {
                return Some(written);
            }
            let taken = self.bytes();
            if taken != seen {
                (seen, moved_at) = (taken, Instant::now());
            } else if moved_at.elapsed() >= limit {
                return None;
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Taken {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_is_waited_for_and_who_takes_nothing_is_not() {
        let (taken, limit) = (Taken::default(), Duration::from_secs(10));
        let slow = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                taken.add(1);
            }
        };
        assert_eq!(taken.unless_stuck(limit, slow).await, Some(()));
        let begun_at = Instant::now();
        assert_eq!(taken.unless_stuck(limit, std::future::pending::<()>()).await, None);
        assert!((10..12).contains(&begun_at.elapsed().as_secs()), "{:?}", begun_at.elapsed());
    }
}
