//! "There may be something new in the log": a hint that saves a poll, never the truth. A lost or a
//! needless ring harms nobody.

use std::sync::Arc;

use tokio::sync::Notify;

/// Shared by those who append and those who follow. Cheap to clone.
#[derive(Clone, Default)]
pub struct Doorbell {
    follower: Arc<Notify>,
    others: Arc<Notify>,
}

impl Doorbell {
    /// Something was appended by this instance: wakes its follower and, through whoever carries rings
    /// between instances, those of the others.
    pub fn announce(&self) {
        self.follower.notify_one();
        self.others.notify_one();
    }

    /// Another instance announced something.
    pub fn ring(&self) {
        self.follower.notify_one();
    }

    /// For the one follower of this instance. Rings that came before the call count.
    pub async fn heard(&self) {
        self.follower.notified().await;
    }

    /// For the one carrier of this instance, if there is any.
    pub async fn announced(&self) {
        self.others.notified().await;
    }
}
