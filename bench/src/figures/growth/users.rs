//! More users: the time to be ready, memory, and what reads and writes cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context, ensure};

use super::{cells, measure};
use crate::Bench;
use crate::load::{Connection, Requests, get, send_json};
use crate::process::Process;
use crate::report::short;

const USERS: [u64; 4] = [1_000, 10_000, 163_000, 1_000_000];
const READERS: usize = 16;
const MEGABYTE: f64 = 1e6;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let quick = bench.quick;
    let (mut starts, mut costs) = (Vec::new(), Vec::new());
    for users in USERS.into_iter().filter(|users| !quick || *users <= 10_000) {
        let database = bench.database(users).await?;
        bench.report.doing(format!("growth: {users} users"));
        let settings = [("DATABASE_URL", database.url.as_str())];
        let (ours, ready) = Process::ready_service(bench.directory.path(), &settings).await?;
        let memory = ours.resident_bytes()? / MEGABYTE;
        let gzip = get("/users-dict", "accept-encoding: gzip\r\n");
        let mut connection = Connection::open(ours.address).await?;
        let plain = connection.exchange(&get("/users-dict", "")).await?.expect(200)?;
        ensure!(plain.json()?.as_object().map(|all| all.len() as u64) == Some(users), "the dict lacks users");
        let plain_megabytes = plain.body.len() as f64 / MEGABYTE;
        let etag = plain.header("etag").context("the dict has no ETag")?.to_owned();
        let gzip_megabytes = connection.exchange(&gzip).await?.expect(200)?.body.len() as f64 / MEGABYTE;
        let read_memory = ours.resident_bytes()? / MEGABYTE;
        bench.report.figure(&format!("growth.users.{users}.ready"), ready.as_secs_f64(), "s");
        bench.report.figure(&format!("growth.users.{users}.rss"), read_memory, "MB");
        let values = [ready.as_secs_f64(), memory, read_memory, plain_megabytes, gzip_megabytes];
        starts.push([vec![short(users as f64)], values.map(short).to_vec()].concat());

        let same = |request: Vec<u8>| Requests::Same(request.into());
        let id = get(&format!("/users/{}", users / 2), "");
        for (what, connections, requests, expected) in [
            ("dict", READERS, same(get("/users-dict", "")), 200),
            ("dict, gzip", READERS, same(gzip.clone()), 200),
            ("dict, 304", READERS, same(get("/users-dict", &format!("if-none-match: {etag}\r\n"))), 304),
            ("user by id", READERS, same(id), 200),
            ("100 users", READERS, same(get("/users?limit=100", "")), 200),
            ("create a user, one client", 1, new_users(2_000_000), 200),
            ("create a user, 16 clients", READERS, new_users(3_000_000), 200),
        ] {
            let (measured, cpu) = measure(bench, &ours, connections, &requests, expected).await?;
            let name = format!("growth.users.{users}.{what}");
            bench.report.figure(&format!("{name}.rate"), measured.per_second(), "1/s");
            bench.report.figure(&format!("{name}.p99"), measured.p99_ms(), "ms");
            bench.report.figure(&format!("{name}.cpu"), cpu, "us/request");
            let first = vec![what.to_owned(), short(users as f64), short(measured.per_second())];
            costs.push([first, cells(&measured, cpu)].concat());
        }
    }
    costs.sort_by_key(|row| row[0].clone());
    let columns = ["users", "ready after s", "RSS MB", "RSS MB, dict read", "dict MB", "gzip MB"];
    bench.report.table("growth: users, start and memory", &columns, &starts);
    let columns = ["", "users", "requests/s", "p50 ms", "p99 ms", "CPU µs/request"];
    bench.report.table(&format!("growth: users, {READERS} readers"), &columns, &costs);
    Ok(())
}

fn new_users(first: i64) -> Requests {
    let next = AtomicI64::new(first);
    Requests::Numbered(Arc::new(move |_| {
        let global_id = next.fetch_add(1, Ordering::Relaxed);
        send_json("POST", "/users", &format!(r#"{{"global_id":{global_id},"name":"Somebody New"}}"#))
    }))
}
