//! The configuration as a process finds it: environment, `.env`, TOML, command line.

use std::path::Path;

use tempfile::TempDir;

use crate::support::process::{Ended, run};

fn place() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn write(directory: &TempDir, name: &str, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("a file can be written");
    path.to_str().expect("UTF-8").to_owned()
}

async fn check(directory: &Path, settings: &[(&str, &str)]) -> Ended {
    run(directory, settings, &["config", "check"]).await
}

/// The line of `config print` for a key.
async fn effective(directory: &Path, settings: &[(&str, &str)], arguments: &[&str], key: &str) -> String {
    let printed = run(directory, settings, &[&["config", "print"], arguments].concat()).await;
    assert_eq!(printed.code, 0, "{printed:?}");
    let line = printed.output.lines().find(|line| line.starts_with(&format!("{key} = ")));
    line.unwrap_or_else(|| panic!("no {key} in {}", printed.output)).to_owned()
}

#[tokio::test]
async fn nothing_set_is_a_valid_configuration() {
    let directory = place();
    assert_eq!(check(directory.path(), &[]).await.expect(0), "ok\n");
}

#[tokio::test]
async fn every_fault_is_told_at_once_with_its_value_and_where_it_came_from() {
    let directory = place();
    write(&directory, ".env", "SHUTDOWN_DRAIN_SECONDS=soon\n");
    let file =
        write(&directory, "x.toml", "[kafka]\nbootstrap_servers = [\"broker:port\"]\n[alerts]\ntimezon = \"UTC\"\n");
    let settings = [("API_PORT", "http"), ("DATABASE_POOL_SIZE", "0"), ("DATABASE_URL", "mysql://root:hunter2@db/x")];
    let refused = run(directory.path(), &settings, &["config", "check", "--config", &file]).await;
    let told = refused.expect(78);
    for fault in [
        "6 faults",
        "API_PORT=http (environment): expected a whole number from 0 to 65535",
        "DATABASE_POOL_SIZE=0 (environment): expected a whole number from 1 to 1000",
        "SHUTDOWN_DRAIN_SECONDS=soon (.env): expected a number of seconds",
        "DATABASE_URL=mysql://root:redacted@db/x (environment): expected postgres://",
        "kafka.bootstrap_servers=broker:port",
        "unknown key alerts.timezon; did you mean alerts.timezone?",
    ] {
        assert!(told.contains(fault), "{fault} is missing in {told}");
    }
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn the_command_line_wins_over_the_environment_over_dotenv_over_the_file_over_the_default() {
    let directory = place();
    let path = directory.path();
    let default = effective(path, &[], &[], "alerts.max_bytes").await;
    assert_eq!(default, "alerts.max_bytes = \"1048576\" # default");

    let file = write(&directory, "x.toml", "[alerts]\nmax_bytes = 2000\n[api]\nport = 70000\n");
    let with_file = ["--config", file.as_str()];
    let port = [("API_PORT", "1")];
    let from_file = effective(path, &port, &with_file, "alerts.max_bytes").await;
    assert!(from_file.starts_with("alerts.max_bytes = \"2000\" # alerts.max_bytes, "), "{from_file}");

    write(&directory, ".env", "# site 7\nexport ALERTS_MAX_BYTES=\"3000\"\n");
    let from_dotenv = effective(path, &port, &with_file, "alerts.max_bytes").await;
    assert_eq!(from_dotenv, "alerts.max_bytes = \"3000\" # ALERTS_MAX_BYTES, .env");

    let environment = [("API_PORT", "1"), ("ALERTS_MAX_BYTES", "4000")];
    let from_environment = effective(path, &environment, &with_file, "alerts.max_bytes").await;
    assert_eq!(from_environment, "alerts.max_bytes = \"4000\" # ALERTS_MAX_BYTES, environment");

    let refused = run(path, &environment, &["serve", "--port", "99999"]).await.expect(78);
    assert!(refused.contains("API_PORT=99999 (command line)"), "{refused}");
}

#[tokio::test]
async fn an_empty_value_is_as_good_as_none() {
    let directory = place();
    write(&directory, ".env", "API_PORT=9000\n");
    let line = effective(directory.path(), &[("API_PORT", ""), ("REDIS_HOST", "")], &[], "api.port").await;
    assert_eq!(line, "api.port = \"9000\" # API_PORT, .env");
}

#[tokio::test]
async fn broken_files_are_told_by_line_and_never_quoted() {
    let directory = place();
    write(&directory, ".env", "POSTGRES_PASSWORD=\"hunter2\n");
    let file = write(&directory, "x.toml", "[api]\nport = 1\n[redis]\npassword = hunter2\n");
    let refused = run(directory.path(), &[], &["config", "check", "--config", &file]).await.expect(78);
    assert!(refused.contains(".env: a line cannot be read"), "{refused}");
    assert!(refused.contains("x.toml, line 4: "), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
    let missing = run(directory.path(), &[], &["config", "check", "--config", "none.toml"]).await.expect(78);
    assert!(missing.contains("none.toml: No such file"), "{missing}");
}

#[tokio::test]
async fn secrets_are_never_printed() {
    let directory = place();
    write(&directory, ".env", "REDIS_PASSWORD=hunter2\nREDIS_HOST=cache\n");
    let file = write(&directory, "x.toml", "[kafka.property]\n\"sasl.password\" = \"hunter2\"\n");
    let settings =
        [("DATABASE_URL", "postgres://app:hunter2@db/people"), ("KAFKA_PROPERTY_SSL_KEY_PASSWORD", "hunter2")];
    let printed = run(directory.path(), &settings, &["config", "print", "--config", &file]).await.expect(0);
    assert!(!printed.contains("hunter2"), "{printed}");
    for line in [
        "database.url = \"postgres://app:redacted@db/people\" # DATABASE_URL, environment",
        "redis.password = \"[redacted]\" # REDIS_PASSWORD, .env",
        "kafka.property.sasl.password = \"[redacted]\"",
        "kafka.property.ssl.key.password = \"[redacted]\" # KAFKA_PROPERTY_SSL_KEY_PASSWORD, environment",
    ] {
        assert!(printed.contains(line), "{line} is missing in {printed}");
    }
}

#[tokio::test]
async fn no_command_tells_a_secret_that_does_not_work() {
    let directory = place();
    let cluster = "rediss://:hunter2@127.0.0.1:1,rediss://ann:hunter2@127.0.0.1:2";
    let printed = run(directory.path(), &[("REDIS_URL", cluster)], &["config", "print"]).await.expect(0);
    assert!(printed.contains("rediss://:redacted@127.0.0.1:1,rediss://ann:redacted@127.0.0.1:2"), "{printed}");
    // A value where another type is wanted, which the Kafka client quotes.
    let settings = [
        ("REDIS_URL", cluster),
        ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        ("KAFKA_PROPERTY_SOCKET_TIMEOUT_MS", "hunter2"),
        ("KAFKA_PROPERTY_SASL_PASWORD", "hunter2"),
    ];
    for arguments in [&["doctor"][..], &["simulate", "--kafka", "--duration", "1s"], &["cache", "stats"]] {
        for skipped in [2, 3] {
            let mut settings = settings.to_vec();
            settings.remove(skipped);
            let told = run(directory.path(), &settings, arguments).await;
            let told = format!("{}{}", told.output, told.errors);
            assert!(!told.contains("hunter2"), "{arguments:?}: {told}");
            let is_named = told.contains("KAFKA_PROPERTY_S") || arguments[0] == "cache";
            assert!(is_named, "{arguments:?}: {told}");
        }
    }
}

#[tokio::test]
async fn what_is_printed_as_the_defaults_is_what_is_committed_and_can_be_read_back() {
    let directory = place();
    let printed = run(directory.path(), &[], &["config", "defaults"]).await.expect(0);
    let committed = include_str!("../../config.default.toml");
    assert_eq!(printed, committed, "run `unified-backend config defaults > config.default.toml`");
    let file = write(&directory, "defaults.toml", &printed);
    assert_eq!(run(directory.path(), &[], &["config", "check", "--config", &file]).await.expect(0), "ok\n");
    // A file of nothing but defaults changes nothing.
    let values = async |arguments: &[&str]| {
        let printed = run(directory.path(), &[], &[&["config", "print"], arguments].concat()).await.expect(0);
        printed.lines().map(|line| line.split(" # ").next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&["--config", &file]).await, values(&[]).await);
}

#[tokio::test]
async fn what_is_printed_as_effective_is_a_file_that_can_be_read_back() {
    let directory = place();
    let settings = [("API_PORT", "9001"), ("KAFKA_PROPERTY_FETCH_MIN_BYTES", "5")];
    let printed = run(directory.path(), &settings, &["config", "print"]).await;
    let file = write(&directory, "effective.toml", &printed.output);
    let port = effective(directory.path(), &[], &["--config", &file], "api.port").await;
    assert!(port.starts_with("api.port = \"9001\""), "{port}");
}

#[tokio::test]
async fn off_loopback_the_service_does_not_start_without_a_word_on_access() {
    let directory = place();
    let refused = run(directory.path(), &[], &["serve", "--host", "0.0.0.0"]).await.expect(78);
    assert!(refused.contains("API_HOST=0.0.0.0 (command line)"), "{refused}");
    assert!(refused.contains("API_ALLOW_UNAUTHENTICATED=true"), "{refused}");
    let named = [("API_HOST", "localhost")];
    assert_eq!(check(directory.path(), &named).await.expect(0), "ok\n");
    let allowed = [("API_HOST", "::"), ("API_ALLOW_UNAUTHENTICATED", "yes")];
    let warned = check(directory.path(), &allowed).await.expect(0);
    assert!(warned.contains("warning: listening on :: without access control"), "{warned}");
}

#[tokio::test]
async fn a_likely_slip_is_warned_of() {
    let directory = place();
    let warned = check(directory.path(), &[("API_PROT", "1"), ("PATH", "/bin"), ("KAFKA_HOME", "/opt")]).await;
    assert_eq!(
        warned.errors,
        "warning: API_PROT (environment) is not a setting of this service; did you mean API_PORT?\n"
    );
    // Others have such names too: only what is close to one of ours is a slip.
    let others = [("KAFKA_OPTS", "1"), ("REDIS_SERVICE_HOST", "1"), ("POSTGRES_INITDB_ARGS", "1")];
    assert_eq!(check(directory.path(), &others).await.errors, "");
    for (slip, meant) in [
        ("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS"),
        ("DATABASE_HSOT", "DATABASE_HOST"),
        ("POSTGRES_PASS", "POSTGRES_PASSWORD"),
    ] {
        let warned = check(directory.path(), &[(slip, "1")]).await.errors;
        let told = format!("warning: {slip} (environment) is not a setting of this service; did you mean {meant}?\n");
        assert_eq!(warned, told);
    }
    let warned = check(directory.path(), &[("REDIS_PASSWORD", "hunter2")]).await.errors;
    assert_eq!(warned, "warning: REDIS_PASSWORD (environment) is not used: neither REDIS_URL nor REDIS_HOST is set\n");
    assert_eq!(check(directory.path(), &[("REDIS_PASSWORD", "x"), ("REDIS_HOST", "h")]).await.errors, "");
}
