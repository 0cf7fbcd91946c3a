//! An Apache Kafka of a test's own, for what nobody may do to a shared one: kill it. Its jars are those
//! that `scripts/services` fetched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::load::until;
use crate::support::free_port;

/// Stopped and deleted at the end of the test.
pub struct Broker {
    directory: tempfile::TempDir,
    jars: PathBuf,
    port: u16,
    process: Child,
}

impl Broker {
    /// `None`: Apache Kafka is not among the servers of this test run, or runs from elsewhere.
    pub async fn start() -> Option<Self> {
        crate::support::backends::find_kafka()?;
        let jars = find_jars()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (port, controller) = (free_port(), free_port());
        let data = directory.path().join("data");
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\nlog.dirs={}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\nauto.create.topics.enable=false\n\
             message.max.bytes=20000000\noffsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\n\
             num.network.threads=2\nnum.io.threads=2\nlog.cleaner.dedupe.buffer.size=8388608\n",
            data.display()
        );
        std::fs::write(directory.path().join("server.properties"), properties).expect("its configuration");
        let mut format = java(&jars, "kafka.tools.StorageTool");
        let cluster = ["format", "-t", "dW5pZmllZC1iYWNrZW5kMA", "-c"];
        format.args(cluster).arg(directory.path().join("server.properties"));
        assert!(format.status().expect("java runs").success(), "the broker's directory was not prepared");
        let process = serve(&jars, directory.path());
        let broker = Self { directory, jars, port, process };
        broker.until_it_answers().await;
        Some(broker)
    }

    /// As `KAFKA_BOOTSTRAP_SERVERS` takes it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// With SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// Starts it again on the same port with what it had.
    pub async fn resume(&mut self) {
        self.process = serve(&self.jars, self.directory.path());
        self.until_it_answers().await;
    }

    async fn until_it_answers(&self) {
        let address = self.address();
        until("the broker answers", async || {
            let mut config = rdkafka::ClientConfig::new();
            config.set("bootstrap.servers", &address).set("log_level", "0");
            let asking = tokio::task::spawn_blocking(move || {
                let consumer: BaseConsumer = config.create().expect("a consumer");
                consumer.fetch_metadata(None, std::time::Duration::from_secs(1)).is_ok()
            });
            asking.await.expect("no panic")
        })
        .await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Another error than "it ended already" cannot be.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn serve(jars: &Path, directory: &Path) -> Child {
    let mut command = java(jars, "kafka.Kafka");
    command.arg(directory.join("server.properties")).spawn().expect("java runs")
}

fn java(jars: &Path, class: &str) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "-cp"]).arg(jars.join("*")).arg(class);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn find_jars() -> Option<PathBuf> {
    let home = std::env::var_os("DEV_SERVICES_DIR").map(PathBuf::from);
    let home = home.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/services"));
    let entries = std::fs::read_dir(home).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_jars = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("kafka-") && name.ends_with("-jars")
    };
    let found = entries.filter(is_jars).max();
    if found.is_none() {
        eprintln!("left out: needs Kafka's jars; `./dev test` fetches them");
    }
    found
}
