//! P1 to P3: the reads that clients make all the time, on PostgreSQL, strict.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;

use anyhow::{Context, ensure};

use crate::Bench;
use crate::load::{Connection, Requests, get};
use crate::measure::{COLUMNS, Contestant, Match, Result, limit_of, of, rows};
use crate::process::Process;
use crate::report::Wanted::{AtLeast, AtMost};

const USERS: u64 = 1000;
const CONNECTIONS: usize = 64;

struct Question {
    figure: &'static str,
    title: &'static str,
    path: &'static str,
    headers: String,
    expected: u16,
    /// Where nginx has the same bytes.
    file: Option<&'static str>,
    has_peer: bool,
}

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let database = bench.database(USERS).await?;
    let redis = [bench.redis(4094)?, bench.redis(4095)?];
    let ours = bench.service(&[("DATABASE_URL", &database.url), ("REDIS_URL", &redis[0])]).await?;
    let peers = crate::database::Database::create(&bench.postgres).await?;
    let peer = Process::server(bench.directory.path(), &["peer", &peers.url, &redis[1]].map(OsStr::new)).await?;
    check(&ours, &peer).await?;
    let mut connection = Connection::open(ours.address).await?;
    let dict = connection.exchange(&get("/users-dict", "")).await?;
    let etag = dict.header("etag").context("the dict has no ETag")?.to_owned();

    let question = |figure, title, path, headers: &str| Question {
        figure,
        title,
        path,
        headers: headers.to_owned(),
        expected: 200,
        file: None,
        has_peer: false,
    };
    let questions = [
        Question {
            file: Some("dict"),
            has_peer: true,
            ..question("reads.dict", "P1 dict, 1,000 users", "/users-dict", "")
        },
        Question {
            file: Some("dict"),
            ..question("reads.dict_gzip", "P1 dict, gzip", "/users-dict", "accept-encoding: gzip\r\n")
        },
        Question {
            expected: 304,
            file: Some("dict"),
            ..question("reads.dict_304", "P1 dict, 304", "/users-dict", &format!("if-none-match: {etag}\r\n"))
        },
        Question { file: Some("user"), has_peer: true, ..question("reads.user", "P2 user by id", "/users/500", "") },
        Question { has_peer: true, ..question("reads.users", "P3 100 users", "/users?limit=100", "") },
    ];
    let files = bench.directory.path().join("files");
    tokio::fs::create_dir_all(&files).await?;
    for question in questions.iter().filter(|question| question.expected == 200) {
        let Some(file) = question.file else { continue };
        let mut connection = Connection::open(ours.address).await?;
        let request = get(question.path, &question.headers);
        let answer = connection.exchange(&request).await?.expect(200)?;
        let name = if question.headers.is_empty() { file.to_owned() } else { format!("{file}.gz") };
        tokio::fs::write(files.join(name), answer.body).await?;
    }
    let nginx = Process::nginx(&files).await?;
    let mut table = Vec::new();
    for question in &questions {
        let results = measure(bench, question, &ours, &peer, nginx.as_ref()).await?;
        table.extend(rows(question.title, &results));
        judge(bench, question, &results)?;
    }
    bench.report.table(&format!("reads, {CONNECTIONS} connections"), COLUMNS, &table);
    Ok(())
}

async fn measure(
    bench: &mut Bench,
    question: &Question,
    ours: &Process,
    peer: &Process,
    nginx: Option<&Process>,
) -> anyhow::Result<Vec<Result>> {
    let request = get(question.path, &question.headers);
    let same = || Requests::Same(request.clone().into());
    let (limit, _) = limit_of(bench.directory.path(), question.figure, ours, &request).await?;
    let mut contestants = vec![Contestant { name: "ours", process: ours, requests: same() }];
    if question.has_peer {
        contestants.push(Contestant { name: "peer", process: peer, requests: same() });
    }
    contestants.push(Contestant { name: "limit", process: &limit, requests: same() });
    if let (Some(nginx), Some(file)) = (nginx, question.file) {
        let requests = Requests::Same(ask_nginx(nginx, file, question).await?.into());
        contestants.push(Contestant { name: "nginx", process: nginx, requests });
    }
    let game = Match {
        figure: question.figure,
        connections: CONNECTIONS,
        rounds: bench.rounds(),
        duration: bench.round_duration(),
        expected: question.expected,
    };
    game.play(&mut bench.report, &contestants).await
}

/// nginx has ETags of its own.
async fn ask_nginx(nginx: &Process, file: &str, question: &Question) -> anyhow::Result<Vec<u8>> {
    let path = format!("/{file}");
    let mut connection = Connection::open(nginx.address).await?;
    let request = get(&path, &question.headers);
    let answer = connection.exchange(&request).await?.expect(200)?;
    let request = match answer.header("etag") {
        Some(etag) if question.expected == 304 => get(&path, &format!("if-none-match: {etag}\r\n")),
        _ => request,
    };
    connection.exchange(&request).await?.expect(question.expected)?;
    Ok(request)
}

/// What is timed is right: the answers are what the tables hold, and both say the same.
async fn check(ours: &Process, peer: &Process) -> anyhow::Result<()> {
    let expected: BTreeMap<String, String> = (1..=USERS).map(|n| (n.to_string(), format!("Person {n:06}"))).collect();
    let mut connection = Connection::open(ours.address).await?;
    let dict = connection.exchange(&get("/users-dict", "")).await?.expect(200)?.body.to_vec();
    ensure!(serde_json::from_slice::<BTreeMap<String, String>>(&dict)? == expected, "the dict is wrong");
    let gzip = connection.exchange(&get("/users-dict", "accept-encoding: gzip\r\n")).await?.expect(200)?;
    let mut inflated = Vec::new();
    flate2::read::GzDecoder::new(gzip.body).read_to_end(&mut inflated)?;
    ensure!(inflated == dict, "the dict is another one in gzip");
    let mut other = Connection::open(peer.address).await?;
    let theirs = other.exchange(&get("/users-dict", "")).await?.expect(200)?.json()?;
    ensure!(theirs == serde_json::from_slice::<serde_json::Value>(&dict)?, "the peer's dict is another one");
    for path in ["/users/500", "/users?limit=100"] {
        let names = |value: serde_json::Value| match value {
            serde_json::Value::Array(users) => users.iter().map(|user| user["name"].clone()).collect::<Vec<_>>(),
            user => vec![user["name"].clone()],
        };
        let ours = names(connection.exchange(&get(path, "")).await?.expect(200)?.json()?);
        let theirs = names(other.exchange(&get(path, "")).await?.expect(200)?.json()?);
        ensure!(ours == theirs && !ours.is_empty(), "{path}: the peer answers something else");
    }
    Ok(())
}

fn judge(bench: &mut Bench, question: &Question, results: &[Result]) -> anyhow::Result<()> {
    let (ours, limit) = (of(results, "ours")?, of(results, "limit")?);
    let (part, what) = question.title.split_at(2);
    let what = what.trim();
    let report = &mut bench.report;
    report.goal(part, &format!("{what} ÷ limit"), ours.per_second / limit.per_second, AtLeast(0.85), "×");
    if part == "P1" {
        report.goal(part, &format!("{what}, CPU ÷ limit"), ours.cpu_micros / limit.cpu_micros, AtMost(1.3), "×");
    }
    if let Ok(nginx) = of(results, "nginx") {
        let wanted = if part == "P1" { 1.0 } else { 1.2 };
        report.goal(part, &format!("{what} ÷ nginx"), ours.per_second / nginx.per_second, AtLeast(wanted), "×");
    }
    Ok(())
}
