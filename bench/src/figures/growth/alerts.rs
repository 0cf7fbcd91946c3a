//! More alerts a second, and a longer log: from the call of a poster until a socket has read, and pages
//! of the log under each filter.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio_postgres::Client;

use super::super::listener::{Listener, alert};
use super::cells;
use crate::Bench;
use crate::load::{Connection, Load, Requests, get, percentile, run as run_load, send_json};
use crate::process::{Process, cpu_micros};
use crate::report::short;

const LOG_ROWS: [usize; 3] = [0, 1_000_000, 10_000_000];
const RATES: [usize; 5] = [10, 100, 1_000, 10_000, 50_000];
const SECONDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let quick = bench.quick;
    let database = bench.database(1000).await?;
    let client = database.connect().await?;
    let server = database.server_pid().await?;
    let (mut rates, mut pages) = (Vec::new(), Vec::new());
    for rows in LOG_ROWS.into_iter().filter(|rows| !quick || *rows <= 1_000_000) {
        bench.report.doing(format!("growth: filling the log to {rows} alerts"));
        fill(&client, rows).await?;
        let service = bench.service(&[("DATABASE_URL", &database.url)]).await?;
        bench.report.doing(format!("growth: pages of a log of {rows} alerts"));
        if rows > 0 {
            pages.extend(read_pages(bench, &service, rows, server).await?);
        }
        if rows == 1_000_000 {
            continue;
        }
        for rate in RATES {
            bench.report.doing(format!("growth: {rate} alerts/s, log of {rows}"));
            let count = (bench.scaled(SECONDS, 1) * rate).max(20);
            let live = live(&service, rate, count, server).await?;
            let figure = format!("growth.alerts.{rows}.{rate}.p99");
            bench.report.figure(&figure, live.p99_ms, "ms");
            let values = [live.per_second, live.p50_ms, live.p99_ms, live.service_micros, live.database_micros];
            rates.push([vec![short(rows as f64), short(rate as f64)], values.map(short).to_vec()].concat());
        }
    }
    let columns = [
        "log",
        "alerts/s wanted",
        "alerts/s",
        "POST → socket p50 ms",
        "p99 ms",
        "service's CPU µs/alert",
        "PostgreSQL's CPU µs/alert",
    ];
    bench.report.table("growth: alerts a second", &columns, &rates);
    pages.sort_by_key(|row| row[0].clone());
    let columns = ["GET /alerts", "log", "rows", "p50 ms", "p99 ms", "CPU µs/request", "PostgreSQL's CPU µs/request"];
    bench.report.table("growth: a page of the log, one client", &columns, &pages);
    Ok(())
}

/// Brings the log to so many alerts: one a second up to now, of 16 cameras, 40 zones, 1,000 users; every
/// thousandth is no violation, the first ten of each filling come from a zone of their own. As an operator would: the
/// indexes are made after the rows.
async fn fill(client: &Client, rows: usize) -> anyhow::Result<()> {
    let row = client.query_one("SELECT last_seq FROM alert_log", &[]).await?;
    let present: i64 = row.try_get(0)?;
    let rows = i64::try_from(rows)?;
    if rows <= present {
        return Ok(());
    }
    let sql = "SELECT indexdef, quote_ident(indexname) FROM pg_indexes \
               WHERE tablename = 'alert' AND indexdef NOT LIKE '%(seq)%'";
    let indexes = client.query(sql, &[]).await?;
    for index in &indexes {
        client.batch_execute(&format!("DROP INDEX {}", index.try_get::<_, &str>(1)?)).await?;
    }
    let sql = format!(
        r#"INSERT INTO alert (seq, received_at, occurred_at, source, zone_id, user_id, status, camera_id, body)
        SELECT n, now() - make_interval(secs => 10000000 - n), now() - make_interval(secs => 10000000 - n), 'bench',
            CASE WHEN n <= {} THEN 'rare' ELSE (n % 40)::text END, (n * 7919 % 1000)::text,
            CASE n % 1000 WHEN 0 THEN 'ok' ELSE 'violation' END, (n % 16)::text,
            '{{"n":' || n || ',"user_id":"' || n * 7919 % 1000 || '","note":"' || repeat('x', 150) || '"}}'
        FROM generate_series({}::bigint, {rows}) AS n"#,
        present + 10,
        present + 1
    );
    client.batch_execute(&sql).await?;
    for index in &indexes {
        client.batch_execute(index.try_get(0)?).await?;
    }
    client.execute("UPDATE alert_log SET last_seq = $1", &[&rows]).await?;
    client.batch_execute("VACUUM ANALYZE alert").await?;
    Ok(client.batch_execute("CHECKPOINT").await?)
}

async fn read_pages(bench: &Bench, service: &Process, rows: usize, server: u32) -> anyhow::Result<Vec<Vec<String>>> {
    let middle = rows / 2;
    let queries = [
        ("newest 100".to_owned(), String::new()),
        ("after the middle".to_owned(), format!("after={middle}")),
        ("before the middle".to_owned(), format!("before={middle}")),
        ("zone_id, 1 of 40".to_owned(), "zone_id=5".to_owned()),
        ("zone_id, 10 or 20 alerts in all".to_owned(), "zone_id=rare".to_owned()),
        ("zone_id, none".to_owned(), "zone_id=nowhere".to_owned()),
        ("two zones".to_owned(), "zone_id=5&zone_id=17".to_owned()),
        ("user_id, 1 of 1,000".to_owned(), "user_id=500".to_owned()),
        ("camera_id, 1 of 16".to_owned(), "camera_id=3".to_owned()),
        ("status, nearly all".to_owned(), "status=violation".to_owned()),
        ("status, 1 of 1,000".to_owned(), "status=ok".to_owned()),
        ("zone and status, 1 of 1,000".to_owned(), "zone_id=0&status=ok".to_owned()),
        ("zone and user that never meet".to_owned(), "zone_id=5&user_id=500".to_owned()),
    ];
    let mut table = Vec::new();
    for (what, query) in queries {
        let request = get(&format!("/alerts?{query}"), "");
        let page = Connection::open(service.address).await?.exchange(&request).await?.expect(200)?.json()?;
        let found = page["alerts"].as_array().context("no page")?.len();
        let (own, databases) = (service.cpu_micros()?, cpu_micros(server)?);
        let load = Load {
            address: service.address,
            connections: 1,
            duration: bench.round_duration(),
            requests: Requests::Same(request.into()),
            expected: 200,
        };
        let measured = run_load(load).await?;
        let per = |cpu: f64| cpu / measured.requests();
        let (own, databases) = (per(service.cpu_micros()? - own), per(cpu_micros(server)? - databases));
        let first = vec![what, short(rows as f64), short(found as f64)];
        table.push([first, cells(&measured, own), vec![short(databases)]].concat());
    }
    Ok(table)
}

struct Live {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    service_micros: f64,
    database_micros: f64,
}

/// One poster, one socket. What is due is posted together, at most a hundred times a second.
async fn live(service: &Process, rate: usize, count: usize, server: u32) -> anyhow::Result<Live> {
    let mut poster = Connection::open(service.address).await?;
    let page = poster.exchange(&get("/alerts?limit=1", "")).await?.expect(200)?.json()?;
    let last = page["alerts"][0]["seq"].as_u64().unwrap_or(0);
    let mut listener = Listener::connect(service.address, &format!("?after={last}")).await?;
    let (own, databases) = (service.cpu_micros()?, cpu_micros(server)?);
    let begun_at = Instant::now();
    let posting = async {
        let batch = (rate / 100).max(1);
        let mut ticks = tokio::time::interval(Duration::from_secs(1) * batch as u32 / rate as u32);
        let mut posted = Vec::with_capacity(count);
        for begin in (0..count).step_by(batch) {
            let alerts: Vec<String> = (begin..count.min(begin + batch)).map(alert).collect();
            let body = format!("[{}]", alerts.join(","));
            // The moment it was due, not the one at which the poster got round to it.
            let due_at = ticks.tick().await.into_std();
            posted.resize(begin + alerts.len(), due_at);
            poster.exchange(&send_json("POST", "/alerts", &body)).await?.expect(200)?;
        }
        anyhow::Ok(posted)
    };
    let reading = async {
        let mut read = Vec::with_capacity(count);
        while read.len() < count {
            listener.read(|_| read.push(Instant::now())).await?;
        }
        anyhow::Ok(read)
    };
    let limit = Duration::from_secs((count / rate) as u64) * 2 + PATIENCE;
    let both = tokio::time::timeout(limit, async { tokio::try_join!(posting, reading) });
    let (posted, read) = both.await.context("alerts do not reach the socket")??;
    ensure!(read.len() == count, "the socket got {} alerts of {count}", read.len());
    let seconds = read.last().map_or(f64::NAN, |last| last.duration_since(begun_at).as_secs_f64());
    let mut delays: Vec<f64> =
        posted.iter().zip(&read).map(|(from, to)| to.saturating_duration_since(*from).as_secs_f64() * 1e3).collect();
    delays.sort_by(f64::total_cmp);
    Ok(Live {
        per_second: count as f64 / seconds,
        p50_ms: percentile(&delays, 0.5),
        p99_ms: percentile(&delays, 0.99),
        service_micros: (service.cpu_micros()? - own) / count as f64,
        database_micros: (cpu_micros(server)? - databases) / count as f64,
    })
}
