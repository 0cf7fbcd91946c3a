//! P7: from Kafka into the log, durable, against COPY of the same rows; from the producer to a socket;
//! replay of the log to one client.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, TryStreamExt};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tokio_postgres::Client;

use super::listener::{Listener, alert};
use crate::Bench;
use crate::database::Database;
use crate::load::{Connection, get, percentile};
use crate::process::Process;
use crate::report::Wanted::{AtLeast, AtMost};
use crate::report::{median, ratio, short};

const PARTITIONS: i32 = 3;
const LIVE_PER_SECOND: usize = 1000;
/// The broker's code for single messages is compiled while the first of them pass.
const WARM_UP_SECONDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const COPY_PIECE: usize = 256 * 1024;

pub async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let servers = bench.kafka()?;
    let topic = format!("bench-{}", std::process::id());
    let admin: AdminClient<DefaultClientContext> = client(&servers).create()?;
    let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
    for created in admin.create_topics([&new], &AdminOptions::new()).await? {
        created.map_err(|(topic, code)| anyhow::anyhow!("{topic} cannot be created: {code}"))?;
    }
    let outcome = on_topic(bench, &Kafka { servers, topic: topic.clone() }).await;
    admin.delete_topics(&[&topic], &AdminOptions::new()).await?;
    outcome
}

struct Kafka {
    servers: String,
    topic: String,
}

fn client(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers);
    config
}

async fn on_topic(bench: &mut Bench, kafka: &Kafka) -> anyhow::Result<()> {
    let count = bench.scaled(200_000, 20_000);
    bench.report.doing(format!("alerts: producing {count}"));
    kafka.produce(count).await?;
    let copies = bench.database(0).await?;
    let copier = copies.connect().await?;
    let key_alone = bench.database(0).await?;
    let key_copier = key_alone.connect().await?;
    key_copier
        .batch_execute("DROP INDEX alert_event, alert_by_zone, alert_by_user, alert_by_status, alert_by_camera")
        .await?;

    let mut rates: [Vec<f64>; 5] = Default::default();
    let mut rows = None;
    let mut last = None;
    for round in 1..=bench.scaled(5, 1) {
        bench.report.doing(format!("alerts: round {round}"));
        // The one of the round before ends here.
        drop(last.take());
        let database = bench.database(1000).await?;
        let (ours, ingest) = kafka.ingest(bench, &database.url, round, count).await?;
        rates[0].push(ingest.per_second);
        rates[1].push(ingest.from_start_per_second);
        verify(&database, count).await?;
        let rows = match &rows {
            Some(rows) => rows,
            None => rows.insert(copy_out(&database.connect().await?).await?),
        };
        rates[2].push(count as f64 / copy_in(&copier, rows).await?.as_secs_f64());
        rates[3].push(count as f64 / copy_in(&key_copier, rows).await?.as_secs_f64());
        let file = format!("sqlite:{}", bench.directory.path().join(format!("alerts-{round}.db")).display());
        rates[4].push(kafka.ingest(bench, &file, round, count).await?.1.per_second);
        last = Some((ours, database));
    }
    let [ours, from_start, copy, key_copy, sqlite] = rates.map(median);
    let table = [
        ("ours on PostgreSQL", ours),
        ("ours, with its own start", from_start),
        ("COPY, same indexes", copy),
        ("COPY, primary key alone", key_copy),
        ("ours on SQLite", sqlite),
    ];
    let report = &mut bench.report;
    for (name, rate) in table {
        report.figure(&format!("alerts.{name}"), rate, "1/s");
    }
    let rows: Vec<Vec<String>> =
        table.iter().map(|(name, rate)| vec![(*name).to_owned(), short(*rate), ratio(rate / copy)]).collect();
    let title = format!("alerts: {} of 200 bytes from Kafka into the log", short(count as f64));
    report.table(&title, &["who", "alerts/s", "× COPY with the same indexes"], &rows);
    report.goal("P7", "ingest ÷ COPY, same indexes", ours / copy, AtLeast(0.95), "×");
    report.goal("P7", "ingest ÷ COPY, primary key alone", ours / key_copy, AtLeast(0.35), "×");
    report.goal("P7", "ingest on PostgreSQL", ours, AtLeast(50_000.0), "/s");
    let (service, _database) = last.context("no round was run")?;
    live(bench, kafka, &service, count).await?;
    replay(bench, &service, count / 2).await
}

struct Ingest {
    /// From the first alert that was seen in the log.
    per_second: f64,
    /// From the start of the process.
    from_start_per_second: f64,
}

impl Kafka {
    async fn produce(&self, count: usize) -> anyhow::Result<()> {
        let producer: BaseProducer = client(&self.servers).set("linger.ms", "5").create()?;
        let topic = self.topic.clone();
        tokio::task::spawn_blocking(move || {
            for number in 0..count {
                while let Err(error) = send(&producer, &topic, number) {
                    ensure!(is_full(&error), error);
                    producer.poll(Duration::from_millis(10));
                }
            }
            Ok(producer.flush(PATIENCE)?)
        })
        .await?
    }

    /// Starts the service with the whole topic before it and waits until its log has everything.
    async fn ingest(&self, bench: &Bench, url: &str, round: usize, count: usize) -> anyhow::Result<(Process, Ingest)> {
        let group = format!("{}-{round}-{}", self.topic, url.split(':').next().unwrap_or_default());
        let settings = [
            ("DATABASE_URL", url),
            ("KAFKA_BOOTSTRAP_SERVERS", &self.servers),
            ("KAFKA_TOPIC", &self.topic),
            ("KAFKA_GROUP_ID", &group),
        ];
        let started_at = Instant::now();
        let service = bench.service(&settings).await?;
        let mut connection = Connection::open(service.address).await?;
        let mut first = None;
        loop {
            let seen = last_seq(&mut connection).await?;
            if seen >= count {
                let (first_at, first_seen) = first.unwrap_or((started_at, 0));
                let rate = |stored: usize, since: Instant| stored as f64 / since.elapsed().as_secs_f64();
                let per_second = rate(seen - first_seen, first_at);
                return Ok((service, Ingest { per_second, from_start_per_second: rate(seen, started_at) }));
            }
            if seen > 0 && first.is_none() {
                first = Some((Instant::now(), seen));
            }
            ensure!(started_at.elapsed() < PATIENCE, "{seen} of {count} alerts after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn send(producer: &BaseProducer, topic: &str, number: usize) -> Result<(), KafkaError> {
    let text = alert(number);
    let partition = (number % PARTITIONS as usize) as i32;
    let record = BaseRecord::<(), str>::to(topic).partition(partition).payload(&text);
    producer.send(record).map_err(|(error, _)| error)
}

fn is_full(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
}

async fn last_seq(connection: &mut Connection) -> anyhow::Result<usize> {
    let page = connection.exchange(&get("/alerts?limit=1", "")).await?.expect(200)?.json()?;
    Ok(page["alerts"][0]["seq"].as_u64().unwrap_or(0) as usize)
}

/// Each alert is there, and once.
async fn verify(database: &Database, count: usize) -> anyhow::Result<()> {
    let sql = "SELECT count(*), count(DISTINCT body), max(seq) FROM alert";
    let row = database.connect().await?.query_one(sql, &[]).await?;
    let counts: [i64; 3] = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?];
    ensure!(counts == [i64::try_from(count)?; 3], "the log has (rows, alerts, last seq) {counts:?}, not {count}");
    Ok(())
}

async fn copy_out(client: &Client) -> anyhow::Result<Bytes> {
    let rows = client.copy_out("COPY (SELECT * FROM alert ORDER BY seq) TO STDOUT").await?;
    let rows = rows.try_fold(BytesMut::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    Ok(rows.await?.freeze())
}

async fn copy_in(client: &Client, rows: &Bytes) -> anyhow::Result<Duration> {
    client.batch_execute("TRUNCATE alert").await?;
    let begun_at = Instant::now();
    let sink = client.copy_in::<_, Bytes>("COPY alert FROM STDIN").await?;
    let mut sink = std::pin::pin!(sink);
    for begin in (0..rows.len()).step_by(COPY_PIECE) {
        sink.feed(rows.slice(begin..rows.len().min(begin + COPY_PIECE))).await?;
    }
    sink.finish().await?;
    Ok(begun_at.elapsed())
}

/// Notes when the broker has a message.
struct Acknowledged(Mutex<Vec<Option<Instant>>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, _: &DeliveryResult<'_>, index: Box<usize>) {
        if let Ok(mut acknowledged) = self.0.lock() {
            acknowledged[*index] = Some(Instant::now());
        }
    }
}

/// From the call of the producer until a socket has read the alert.
async fn live(bench: &mut Bench, kafka: &Kafka, service: &Process, first: usize) -> anyhow::Result<()> {
    let warm_up = WARM_UP_SECONDS * LIVE_PER_SECOND;
    let count = warm_up + bench.scaled(5, 1) * LIVE_PER_SECOND;
    bench.report.doing("alerts: from the producer to a socket");
    let mut listener = Listener::connect(service.address, &format!("?after={first}")).await?;
    let (servers, topic) = (kafka.servers.clone(), kafka.topic.clone());
    let sending = tokio::task::spawn_blocking(move || send_steadily(&servers, &topic, first, count));
    let mut read: Vec<Option<Instant>> = vec![None; count];
    let mut missing = count;
    let reading = async {
        while missing > 0 {
            listener
                .read(|number| {
                    if let Some(slot) = number.checked_sub(first).and_then(|index| read.get_mut(index)) {
                        missing -= usize::from(slot.replace(Instant::now()).is_none());
                    }
                })
                .await?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, reading).await.context("alerts do not reach the socket")??;
    let (sent, acknowledged) = sending.await??;
    let delays = |until: &[Option<Instant>]| {
        let pairs = sent.iter().zip(until).skip(warm_up);
        let delay = |(sent, until): (&Instant, &Option<Instant>)| {
            Some(until.as_ref()?.saturating_duration_since(*sent).as_secs_f64() * 1e3)
        };
        let mut delays: Vec<f64> = pairs.filter_map(delay).collect();
        delays.sort_by(f64::total_cmp);
        delays
    };
    let (to_socket, to_broker) = (delays(&read), delays(&acknowledged));
    bench.report.figure("alerts.live.p50", percentile(&to_socket, 0.5), "ms");
    bench.report.goal("P7", "produce → socket, p99 at 1,000/s", percentile(&to_socket, 0.99), AtMost(25.0), "ms");
    let row = |name: &str, delays: &[f64]| {
        let values = [0.5, 0.99, 1.0].map(|part| short(percentile(delays, part)));
        [vec![name.to_owned()], values.to_vec()].concat()
    };
    let rows = [row("read at the socket", &to_socket), row("acknowledged by the broker", &to_broker)];
    let title = "alerts: from the producer's call, 1,000 alerts/s, one message each";
    bench.report.table(title, &["until it is", "p50 ms", "p99 ms", "max ms"], &rows);
    Ok(())
}

/// When each was sent, and when the broker had it.
fn send_steadily(
    servers: &str,
    topic: &str,
    first: usize,
    count: usize,
) -> anyhow::Result<(Vec<Instant>, Vec<Option<Instant>>)> {
    let context = Acknowledged(Mutex::new(vec![None; count]));
    let producer: ThreadedProducer<Acknowledged> =
        client(servers).set("linger.ms", "0").create_with_context(context)?;
    // Its first message waits for metadata.
    producer.client().fetch_metadata(Some(topic), PATIENCE)?;
    let begun_at = Instant::now();
    let mut sent = Vec::with_capacity(count);
    for index in 0..count {
        let due_at = begun_at + Duration::from_secs(1) * index as u32 / LIVE_PER_SECOND as u32;
        std::thread::sleep(due_at.saturating_duration_since(Instant::now()));
        sent.push(Instant::now());
        let text = alert(first + index);
        let record = BaseRecord::<(), str, _>::with_opaque_to(topic, Box::new(index));
        let record = record.partition((index % PARTITIONS as usize) as i32).payload(&text);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(PATIENCE)?;
    let acknowledged = producer.context().0.lock().map_err(|_| anyhow::anyhow!("a delivery report panicked"))?.clone();
    Ok((sent, acknowledged))
}

/// One client that comes from far behind.
async fn replay(bench: &mut Bench, service: &Process, count: usize) -> anyhow::Result<()> {
    bench.report.doing("alerts: replay");
    let mut rates = Vec::new();
    for _ in 0..bench.rounds() {
        let begun_at = Instant::now();
        let mut listener = Listener::connect(service.address, "?after=0").await?;
        let mut seen = 0;
        while seen < count {
            let reading = listener.read(|_| seen += 1);
            tokio::time::timeout(PATIENCE, reading).await.context("the replay stopped")??;
        }
        rates.push(count as f64 / begun_at.elapsed().as_secs_f64());
    }
    let rate = median(rates);
    bench.report.figure("alerts.replay", rate, "1/s");
    let title = format!("alerts: replay of {} to one client", short(count as f64));
    bench.report.table(&title, &["alerts/s"], &[vec![short(rate)]]);
    Ok(())
}
