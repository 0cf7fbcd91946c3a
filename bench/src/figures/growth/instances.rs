//! More instances on one database and one machine: what they cost together, and what the database is
//! asked. How much more they answer on machines of their own is not measured here.

use futures_util::future::try_join_all;

use super::metric;
use crate::Bench;
use crate::load::{self, Load, Requests, get, send_json};
use crate::process::{Process, cpu_micros};
use crate::report::short;

const INSTANCES: [usize; 3] = [1, 2, 3];
const USERS: u64 = 10_000;
const READERS: usize = 60;
/// Each changes one name, again and again.
const WRITERS: usize = 6;

/// Of one load over all instances.
struct Shared {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    service_micros: f64,
    database_micros: f64,
    validations: f64,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let database = bench.database(USERS).await?;
    let server = database.server_pid().await?;
    let mut table = Vec::new();
    for count in INSTANCES {
        bench.report.doing(format!("growth: {count} instances"));
        let settings = [("DATABASE_URL", database.url.as_str())];
        let mut services = Vec::new();
        for _ in 0..count {
            services.push(bench.service(&settings).await?);
        }
        let read = Requests::Same(get("/users/500", "").into());
        let write = Requests::Numbered(std::sync::Arc::new(|number| {
            send_json("PUT", &format!("/users/{}", number % USERS + 1), &format!(r#"{{"name":"Name {number}"}}"#))
        }));
        for (what, connections, requests) in [("user by id", READERS, read), ("change a name", WRITERS, write)] {
            let shared = play(bench, &services, connections, &requests, server).await?;
            let values = [
                shared.per_second,
                shared.p50_ms,
                shared.p99_ms,
                shared.service_micros,
                shared.database_micros,
                shared.validations,
            ];
            bench.report.figure(&format!("growth.instances.{count}.{what}.rate"), shared.per_second, "1/s");
            bench.report.figure(&format!("growth.instances.{count}.{what}.validations"), shared.validations, "1/s");
            table.push([vec![what.to_owned(), count.to_string()], values.map(short).to_vec()].concat());
        }
    }
    table.sort_by_key(|row| row[0].clone());
    let columns = [
        "",
        "instances",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "services' CPU µs/request",
        "PostgreSQL's CPU µs/request",
        "validations/s",
    ];
    let title = format!("growth: instances on one machine, {READERS} readers or {WRITERS} writers in all");
    bench.report.table(&title, &columns, &table);
    Ok(())
}

async fn play(
    bench: &Bench,
    services: &[Process],
    connections: usize,
    requests: &Requests,
    server: u32,
) -> anyhow::Result<Shared> {
    let cpu = || services.iter().map(Process::cpu_micros).sum::<anyhow::Result<f64>>();
    let validations = || try_join_all(services.iter().map(|service| metric(service, "directory_validations_total")));
    let begun: f64 = validations().await?.iter().sum();
    let (services_before, server_before) = (cpu()?, cpu_micros(server)?);
    let duration = bench.round_duration() * 3;
    let loads = services.iter().map(|service| {
        let connections = connections / services.len();
        load::run(Load { address: service.address, connections, duration, requests: requests.clone(), expected: 200 })
    });
    let measured = try_join_all(loads).await?;
    let requests: f64 = measured.iter().map(load::Measured::requests).sum();
    let over = |value: fn(&load::Measured) -> f64| measured.iter().map(value).fold(0.0, f64::max);
    Ok(Shared {
        per_second: measured.iter().map(load::Measured::per_second).sum(),
        p50_ms: over(load::Measured::p50_ms),
        p99_ms: over(load::Measured::p99_ms),
        service_micros: (cpu()? - services_before) / requests,
        database_micros: (cpu_micros(server)? - server_before) / requests,
        validations: (validations().await?.iter().sum::<f64>() - begun) / over(|measured| measured.seconds),
    })
}
