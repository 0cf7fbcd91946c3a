//! Reads against writes on three instances of one database: whoever writes and however it is read, no
//! read may be staler than the writes that were acknowledged before it began. The checker is in
//! `history.rs`; here are the workload, the faults, and bugs of old that it has to catch.

mod planted;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::workload::{Plan, Slot, Workload};
use crate::history::Violation;
use crate::require_backend;
use crate::support::app::TestApp;
use crate::support::backends::Database;
use crate::support::proxy::{Network, Proxy};

/// Checked reads of a run without faults; each looks at every key.
const READS: usize = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_on_every_instance_contains_the_writes_before_it() {
    let database = require_backend!(Database::postgres().await);
    let mut apps = Vec::new();
    for _ in 0..3 {
        apps.push(TestApp::start_ready(&database, &[]).await);
    }
    let plan = Plan { reads: READS, truncates: true, ..Plan::default() };
    let workload = Workload::new(plan, apps.iter().map(|app| app.state.directory.clone()).collect());
    workload.also_over_http(&apps);
    let report = workload.run(Some(&database)).await;
    assert_eq!(report.violations, [], "of {} reads", report.reads);
    println!("{} reads of {} keys against {} writes: none stale", report.reads, report.keys, report.writes);
    for app in apps {
        app.stop().await.expect("an orderly stop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_instance_on_sqlite_sees_its_own_writes_and_those_of_others() {
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[]).await;
    let plan = Plan { reads: 20_000, ..Plan::default() };
    let workload = Workload::new(plan, vec![app.state.directory.clone()]);
    workload.also_over_http(std::slice::from_ref(&app));
    let report = workload.run(Some(&database)).await;
    assert_eq!(report.violations, [], "of {} reads", report.reads);
    println!("{} reads of {} keys against {} writes: none stale", report.reads, report.keys, report.writes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_make_reads_fail_but_never_lie() {
    let database = require_backend!(Database::postgres().await);
    let (mut apps, mut proxies, mut urls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let (proxy, url) = Proxy::in_front_of(&database.url()).await;
        apps.push(start_impatient(&url).await);
        proxies.push(proxy);
        urls.push(url);
    }
    let plan = Plan { reads: 20_000, ..Plan::default() };
    let workload = Workload::new(plan, apps.iter().map(|app| app.state.directory.clone()).collect());
    workload.also_over_http(&apps);
    let (slots, urls_and_apps) = (workload.slots(), urls.into_iter().zip(apps).collect());
    let stop = CancellationToken::new();
    let working = async {
        let report = workload.run(Some(&database)).await;
        stop.cancel();
        report
    };
    let (report, kills) = tokio::join!(working, cause_faults(slots, proxies, urls_and_apps, &stop));
    assert_eq!(report.violations, [], "of {} reads", report.reads);
    assert!(report.failed_reads > 0 && kills > 0, "the faults were felt");
    println!(
        "{} reads against {} writes, {kills} kills: none stale; {} reads and {} writes failed",
        report.reads, report.writes, report.failed_reads, report.unknown_writes
    );
}

async fn start_impatient(url: &str) -> TestApp {
    let settings = [
        ("DATABASE_URL", url),
        ("DIRECTORY_READ_DEADLINE_SECONDS", "0.5"),
        ("DATABASE_OPERATION_TIMEOUT_SECONDS", "1"),
    ];
    TestApp::start_ready(&Database::sqlite(), &settings).await
}

/// One after the other, on each instance in turn; how many were killed and replaced.
async fn cause_faults(
    slots: Vec<Slot>,
    proxies: Vec<Proxy>,
    mut instances: Vec<(String, TestApp)>,
    stop: &CancellationToken,
) -> usize {
    let mut kills = 0;
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let index = turn % proxies.len();
        let proxy = &proxies[index];
        match turn % 7 {
            0 | 5 => proxy.cut(),
            1 => proxy.freeze_open_connections(),
            2 => fault(proxy, Network::AnswersLost).await,
            3 => fault(proxy, Network::Frozen).await,
            4 => fault(proxy, Network::Slow(Duration::from_millis(5))).await,
            _ => {
                // Dropping it drops everything it was at.
                let app = start_impatient(&instances[index].0).await;
                *slots[index].lock().expect("no panic") = app.state.directory.clone();
                instances[index].1 = app;
                kills += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    kills
}

async fn fault(proxy: &Proxy, network: Network) {
    proxy.set(network);
    tokio::time::sleep(Duration::from_millis(700)).await;
    proxy.set(Network::Works);
}

/// Runs the workload on three instances whose store has a bug, until the checker sees it.
async fn assert_caught(
    plant: impl Fn(Arc<dyn unified_backend::directory::DirectoryStore>, String) -> planted::Planted,
) {
    let database = require_backend!(Database::postgres().await);
    let _schema = TestApp::start_ready(&database, &[]).await;
    let mut seen: Vec<Violation> = Vec::new();
    for _attempt in 0..10 {
        let mut instances = Vec::new();
        for _ in 0..3 {
            instances.push(planted::Instance::start(&database.url(), &plant).await);
        }
        let plan = Plan { reads: 10_000, ..Plan::default() };
        let directories = instances.iter().map(|instance| instance.directory.clone()).collect();
        let report = Workload::new(plan, directories).run(Some(&database)).await;
        seen = report.violations;
        if !seen.is_empty() {
            break;
        }
        database.execute(r#"TRUNCATE "user" CASCADE"#).await;
    }
    assert!(!seen.is_empty(), "the checker did not notice the planted bug");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_over_a_sequence_is_caught() {
    assert_caught(planted::sequence_cursor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_waits_for_older_transactions_is_caught() {
    assert_caught(planted::gated_cursor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_a_validation_under_way_is_caught() {
    assert_caught(planted::joined_validation).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_the_writes_of_plain_sql_is_caught() {
    assert_caught(planted::own_writes_only).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answering_before_the_changes_are_applied_is_caught() {
    assert_caught(planted::answer_before_apply).await;
}
