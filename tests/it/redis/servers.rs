//! Servers of the tests' own: refusing writes, as a cluster, behind sentinels, a socket, a password, TLS.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};

use ::redis::cmd;
use unified_backend::telemetry::health::{State, name};

use super::{add_user, cache_with, passes_the_selftest, redis_health};
use crate::require_backend;
use crate::support::app::{TestApp, eventually};
use crate::support::backends::{Database, PATIENT};
use crate::support::free_port;

/// A server of the test's own, for what must not be done to a shared one. `None`: none is installed.
struct PrivateRedis {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl PrivateRedis {
    async fn start(options: &[&str]) -> Option<Self> {
        Self::start_with(options, None).await
    }

    /// `config`: the text of a configuration file, which a sentinel needs.
    async fn start_with(options: &[&str], config: Option<String>) -> Option<Self> {
        let port = free_port();
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("redis-server");
        if let Some(text) = config {
            let file = directory.path().join("redis.conf");
            std::fs::write(&file, text).expect("written");
            command.arg(file);
        }
        command.args(["--port", &port.to_string(), "--dir"]).arg(directory.path()).args(options);
        let Ok(process) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
            eprintln!("left out: needs a redis-server to start");
            return None;
        };
        let server = Self { process, port, _directory: directory };
        eventually("the private Redis answers", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Some(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn run(&self, command: &[&str]) {
        let client = ::redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
        let mut call = cmd(command[0]);
        call.arg(&command[1..]);
        call.exec_async(&mut connection).await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.process.kill().expect("it can be stopped");
        self.process.wait().expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_refuses_writes_is_told_and_used_again_when_it_takes_them() {
    let server = require_backend!(PrivateRedis::start(&["--save", ""]).await);
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("REDIS_URL", &server.url()), PATIENT]).await;
    let cases: [(&[&str], &[&str], &str); 2] = [
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "read-only replica"),
        (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"], "maxmemory"),
    ];
    for (number, (spoil, mend, told)) in (1..).zip(cases) {
        server.run(spoil).await;
        add_user(&app, number, "meanwhile").await;
        eventually(&format!("told: {told}"), async || {
            let (state, detail) = redis_health(&app);
            state == State::Degraded && detail.contains(told)
        })
        .await;
        server.run(mend).await;
        eventually("told as up", async || redis_health(&app).0 == State::Up).await;
        let cache = app.state.redis.clone().expect("configured");
        eventually("the hash caught up", async || {
            let dict = cache.get_users_dict().await.unwrap_or_default().unwrap_or_default();
            dict.contains_key(&number.to_string())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_the_service_does_looks_through_all_keys() {
    let server = require_backend!(PrivateRedis::start(&["--save", ""]).await);
    let database = Database::sqlite();
    let app = TestApp::start_ready(&database, &[("REDIS_URL", &server.url()), PATIENT]).await;
    add_user(&app, 1, "Ann").await;
    let cache = app.state.redis.clone().expect("configured");
    eventually("mirrored", async || cache.get_users_dict().await.is_ok_and(|dict| dict.is_some())).await;
    passes_the_selftest(&cache).await;
    for path in ["/cache/clear", "/cache/invalidate/users-dict"] {
        app.post(path, serde_json::Value::Null).await.expect(200);
    }
    assert_eq!(app.get("/cache/stats").await.expect(200)["enabled"], true);
    let client = ::redis::Client::open(server.url()).expect("a URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("it answers");
    let calls: String = cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("statistics");
    assert!(calls.contains("cmdstat_unlink:") && calls.contains("cmdstat_dbsize:"), "{calls}");
    for command in ["keys", "flushdb", "flushall"] {
        assert!(!calls.contains(&format!("cmdstat_{command}:")), "{calls}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_used_as_one() {
    let server = require_backend!(PrivateRedis::start(&["--save", "", "--cluster-enabled", "yes"]).await);
    server.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let database = Database::sqlite();
    let url = format!("{0},{0}", server.url());
    let app = TestApp::start_ready(&database, &[("REDIS_URL", &url), PATIENT]).await;
    add_user(&app, 1, "Ann").await;
    let cache = app.state.redis.clone().expect("configured");
    eventually("mirrored in the cluster", async || {
        cache.get_users_dict().await.is_ok_and(|dict| dict == Some(BTreeMap::from([("1".into(), "Ann".into())])))
    })
    .await;
    passes_the_selftest(&cache).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_that_sentinels_name_is_used() {
    let primary = require_backend!(PrivateRedis::start(&["--save", ""]).await);
    let config = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", primary.port);
    let sentinel = require_backend!(PrivateRedis::start_with(&["--sentinel"], Some(config)).await);
    let url = format!("redis-sentinel://127.0.0.1:{},127.0.0.1:1/mymaster/2", sentinel.port);
    let (cache, health) = cache_with(&[("REDIS_URL", &url)]);
    passes_the_selftest(&cache).await;
    assert_eq!(health.find(name::REDIS).expect("reported").state, State::Up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_and_a_password_are_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("redis.sock");
    let socket = socket.to_str().expect("a readable path");
    let server = require_backend!(
        PrivateRedis::start(&["--save", "", "--unixsocket", socket, "--requirepass", "p@ss word"]).await
    );
    for url in [
        format!("unix://{socket}?db=3&pass=p%40ss+word"),
        format!("redis://:p%40ss%20word@127.0.0.1:{}/3", server.port),
    ] {
        let (cache, _) = cache_with(&[("REDIS_URL", &url)]);
        passes_the_selftest(&cache).await;
    }
    let (cache, _) = cache_with(&[("REDIS_HOST", "127.0.0.1"), ("REDIS_PORT", &server.port.to_string())]);
    let error = cache.exists("anything").await.expect_err("a password is needed").to_string();
    assert!(error.contains("REDIS_PASSWORD"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_server_is_used_when_its_certificate_can_be_checked_and_only_then() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("a readable path").to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", &key])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-out", &certificate])
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("left out: needs openssl to make a certificate");
        return;
    }
    let port = free_port().to_string();
    let options = ["--save", "", "--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let options = [&options[..], &["--tls-auth-clients", "no"]].concat();
    let _server = require_backend!(PrivateRedis::start(&options).await);
    let url = format!("rediss://localhost:{port}/1");
    let (trusting, _) = cache_with(&[("REDIS_URL", &format!("{url}?ssl_ca_certs={certificate}"))]);
    passes_the_selftest(&trusting).await;
    let (doubting, health) = cache_with(&[("REDIS_URL", &url)]);
    assert!(doubting.connect().await.is_err(), "nobody vouches for the certificate");
    assert_eq!(health.find(name::REDIS).expect("reported").state, State::Degraded);
}
