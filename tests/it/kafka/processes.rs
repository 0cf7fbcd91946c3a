//! Real processes that are killed, or stopped and woken, while alerts flow.

use rustix::process::Signal;

use super::*;
use crate::support::process::Served;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_costs_nothing_and_is_replaced() {
    end_in_the_middle(Signal::KILL).await;
}

/// Asleep for longer than the group waits, it wakes up believing that it still holds its partitions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_stores_nothing_that_is_another_ones() {
    end_in_the_middle(Signal::STOP).await;
}

async fn end_in_the_middle(signal: Signal) {
    let servers = require_backend!(find_kafka());
    let database = require_backend!(Database::postgres().await);
    let topics = Topics::create(&servers, 4).await;
    let (group, url) = (topics.topic.clone(), database.url());
    let settings = topics.settings(&[("KAFKA_GROUP_ID", &group)]);
    let stays = TestApp::start_ready(&database, &settings).await;
    let assigned = async || check(&stays).await["partitions_assigned"].as_i64().unwrap_or(0);

    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings.clone();
    settings.extend([("DATABASE_URL", url.as_str()), ("API_PORT", "0"), ("LOGGING_LEVEL", "ERROR")]);
    let served = Served::start(directory.path(), &settings, &["serve"]).await;
    let accepted = async || {
        let metrics = reqwest::get(format!("{}/metrics", served.url)).await.expect("an answer");
        let metrics = metrics.text().await.expect("text");
        metrics.lines().any(|line| line.starts_with(r#"alerts_accepted_total{source="kafka"}"#))
    };
    eventually("they share the partitions", async || assigned().await == 2).await;

    let sending = async {
        for hundred in 0..15 {
            topics.send_numbered(4, hundred * 100..(hundred + 1) * 100).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let ending = async {
        eventually("it stores alerts", accepted).await;
        served.signal(signal);
        let ended_at = Instant::now();
        eventually("the other one has all partitions", async || assigned().await == 4).await;
        assert!(ended_at.elapsed() < Duration::from_secs(15), "{:?}", ended_at.elapsed());
    };
    tokio::join!(sending, ending);
    if signal == Signal::STOP {
        served.signal(Signal::CONT);
        eventually("it takes part again", async || assigned().await == 2).await;
        topics.send_numbered(4, 1_500..1_600).await;
        until_stored_once(&stays, 4, 1_600).await;
    } else {
        until_stored_once(&stays, 4, 1_500).await;
    }
}
