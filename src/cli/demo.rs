//! `serve --demo`: something to look at. Sample people and zones where there are none, and a simulated
//! site inside the process.

use std::time::Duration;

use bytes::Bytes;

use super::simulate::site::{Area, Person};
use super::simulate::site_of;
use super::{print, sample};
use crate::alerts::decode::{DecodeLimits, decode};
use crate::alerts::types::{AppendBatch, NewAlert, Source};
use crate::app::AppState;
use crate::directory::View;
use crate::store_error::{StoreError, describe};
use crate::time::Timestamp;

const SAMPLE_USERS: usize = 50;
/// A large directory needs no more of its people to look alive.
const WALKERS: usize = 200;
/// Two alerts a second: quick enough to see, slow enough to read.
const PACE: Duration = Duration::from_millis(500);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Runs until the service drains; the demo's trouble is never the service's.
pub fn start(state: &AppState, url: String) {
    let (demo, draining) = (state.clone(), state.lifecycle.draining().clone());
    state.lifecycle.spawn_work(async move {
        tokio::select! {
            () = draining.cancelled() => {}
            outcome = play(&demo, &url) => if let Err(error) = outcome {
                tracing::warn!(error = describe(error.as_ref()), "the demo ended, the service goes on");
            }
        }
    });
}

async fn play(state: &AppState, url: &str) -> anyhow::Result<()> {
    let mut view = until_read(state).await;
    if view.snapshot.count_users() == 0 && view.snapshot.count_zones() == 0 {
        state.directory.store().write_all(sample::commands(SAMPLE_USERS)).await?;
        view = until_read(state).await;
    }
    print(&what_to_try(&view, url))?;
    let areas = view.snapshot.list_zones(0, usize::MAX).iter().map(|zone| Area {
        zone_id: zone.zone_id.to_string(),
        zone_name: zone.zone_name.to_string(),
        corners: zone.corners,
    });
    let people = view.snapshot.list_users(0, WALKERS).map(|user| Person {
        global_id: Some(user.global_id),
        name: Some(user.name.to_string()),
        zone_ids: user.zone_ids.iter().map(|zone_id| zone_id.to_string()).collect(),
    });
    let mut site = site_of(areas.collect(), people.collect(), None, 1)?;
    let alerts = &state.config.alerts;
    let limits = DecodeLimits { max_bytes: alerts.max_bytes, timezone: alerts.timezone.clone() };
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let text = Bytes::from(serde_json::to_vec(&site.next_alert(Timestamp::now()))?);
        let alert = NewAlert { alert: decode(text, &limits)?, source: Source::Http };
        let batch = AppendBatch { alerts: vec![alert], ..AppendBatch::default() };
        if let Err(error) = state.ingest.accept(batch).await {
            // The board and the log tell of it already; a simulated alert is no loss.
            tracing::debug!(error = describe(&error), "a simulated alert was not stored");
        }
    }
}

/// The directory, as soon as the database is there.
async fn until_read(state: &AppState) -> View {
    loop {
        let reading: Result<View, StoreError> = state.directory.read().await;
        match reading {
            Ok(view) => return view,
            Err(error) => tracing::debug!(error = describe(&error), "the demo waits for the database"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn what_to_try(view: &View, url: &str) -> String {
    let (users, zones) = (view.snapshot.count_users(), view.snapshot.count_zones());
    format!(
        "
The demo has {users} people and {zones} zones; a simulated site publishes two alerts a second. Try:

  curl {url}/users-dict                          who has which global_id
  curl '{url}/messages/recent?limit=5'           the newest alerts
  curl -N '{url}/alerts/stream?status=violation' alerts as they happen, filtered
  curl '{url}/users?limit=3'                     people and where they may be
  {url}/docs                                     the whole API, in a browser

Ctrl-C stops it."
    )
}
