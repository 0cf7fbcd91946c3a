use proptest::prelude::*;

use super::*;

#[test]
fn every_fault_is_told_at_once_with_value_source_and_remedy() {
    let ConfigErrors(faults) = Config::from_settings(&[
        ("API_PORT", "70000"),
        ("API_HOST", "0.0.0.0"),
        ("DATABASE_URL", "mysql://root:hunter2@db/x"),
        ("LOGGING_FORMAT", "xml"),
    ])
    .expect_err("four faults");
    assert_eq!(faults.len(), 4, "{faults:#?}");
    let all = faults.join("\n");
    assert!(all.contains("API_PORT=70000 (settings): expected a whole number from 0 to 65535"), "{all}");
    assert!(all.contains("API_ALLOW_UNAUTHENTICATED=true"), "{all}");
    assert!(!all.contains("hunter2"), "{all}");
}

#[test]
fn the_names_of_the_existing_deployment_work() {
    let config = Config::from_settings(&[
        ("POSTGRES_HOST", "db"),
        ("POSTGRES_DB", "people"),
        ("POSTGRES_PASSWORD", "p@ss/word"),
        ("REDIS_HOST", "cache"),
        ("REDIS_DB", "2"),
        ("KAFKA_BOOTSTRAP_SERVERS", r#"["one:9092", "two:9092"]"#),
        ("KAFKA_PROPERTY_AUTO_OFFSET_RESET", "latest"),
        ("LOGGING_LEVEL", "WARNING"),
    ])
    .expect("valid");
    let DatabaseEngine::Postgres { url } = &config.database.engine else { panic!("PostgreSQL") };
    assert_eq!(url.expose(), "postgres://postgres:p%40ss%2Fword@db:5432/people");
    assert_eq!(config.redis.expect("enabled by its host").url.expose(), "redis://cache:6379/2");
    let kafka = config.kafka.expect("enabled by its servers");
    assert_eq!(kafka.bootstrap_servers, "one:9092,two:9092");
    assert_eq!(kafka.properties, [("auto.offset.reset".to_owned(), Secret::new("latest"))]);
    assert_eq!(config.logging.level, "warn");
}

#[test]
fn database_urls_are_understood_as_sqlalchemy_writes_them() {
    let path = |url: &str| match Config::from_settings(&[("DATABASE_URL", url)]).expect(url).database.engine {
        DatabaseEngine::Sqlite { path } => path.display().to_string(),
        DatabaseEngine::Postgres { url } => url.expose().to_owned(),
    };
    assert_eq!(path("sqlite:people.db"), "people.db");
    assert_eq!(path("sqlite:///var/people.db"), "/var/people.db");
    assert_eq!(path("postgresql+asyncpg://u:p@h/d"), "postgres://u:p@h/d");
}

#[test]
fn secrets_are_not_printed() {
    let sources = Sources::from_settings(&[
        ("DATABASE_URL", "postgres://u:hunter2@h/d"),
        ("REDIS_HOST", "h"),
        ("REDIS_PASSWORD", "hunter2"),
        ("KAFKA_PROPERTY_SASL_PASSWORD", "hunter2"),
    ]);
    let loaded = load(&sources).expect("valid");
    let printed = format!("{}{:?}", render_effective(&loaded), loaded.config);
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("postgres://u:redacted@h/d"), "{printed}");
}

#[test]
fn of_a_url_only_what_is_no_secret_is_shown() {
    for (url, shown) in [
        ("postgres://ann:secretpw@db:5432/people", "postgres://ann:redacted@db:5432/people"),
        (
            "rediss://:secretpw@node1,rediss://:secretpw@node2:7000",
            "rediss://:redacted@node1,rediss://:redacted@node2:7000",
        ),
        ("redis-sentinel://:secretpw@one:1,two:2/mymaster/3", "redis-sentinel://:redacted@one:1,two:2/mymaster/3"),
        ("redis://secretpw@host:1/2", "redis://redacted@host:1/2"),
        ("redis://host/2?auth=secretpw#secretpw", "redis://host/2"),
        ("unix:///run/redis.sock?pass=secretpw", "unix:///run/redis.sock"),
        ("sqlite:data/a,b.db", "sqlite:data/a,b.db"),
        ("postgres:secretpw", "[redacted]"),
        ("secretpw", "[redacted]"),
        ("postgres://ann:12/secretpw@host/people", "[redacted]"),
        ("postgres://ann:12?secretpw@host/people", "[redacted]"),
        ("postgres://ann:12#secretpw@host/people", "[redacted]"),
        ("redis://:12,secretpw@host", "[redacted]"),
        ("redis://host/ann:secretpw", "[redacted]"),
    ] {
        assert_eq!(redact_url(url), shown);
        assert!(!redact_url(url).contains("secretpw"), "{url}");
    }
}

#[test]
fn a_misspelt_level_is_refused_and_does_not_silence_everything() {
    let level = |text| Config::from_settings(&[("LOGGING_LEVEL", text)]).map(|config| config.logging.level);
    for (given, taken) in [
        ("Warning", "warn"),
        ("off", "off"),
        ("INFO, unified_backend::kafka=debug", "info,unified_backend::kafka=debug"),
        ("critical,hyper=off", "error,hyper=off"),
    ] {
        assert_eq!(level(given).expect(given), taken);
    }
    for wrong in ["verbose", "inof", "info,unified_backend", "hyper=loud", "3"] {
        let refused = level(wrong).expect_err(wrong).to_string();
        assert!(refused.contains(&format!("LOGGING_LEVEL={wrong}")), "{refused}");
    }
}

#[test]
fn a_database_in_memory_is_refused_with_the_remedy() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite:file:x?mode=memory"] {
        let refused = Config::from_settings(&[("DATABASE_URL", url)]).expect_err(url).to_string();
        assert!(refused.contains("in memory is one per connection"), "{refused}");
    }
}

#[test]
fn the_logical_database_is_found_in_every_form_of_a_redis_url() {
    for (url, port, database) in [
        ("redis://h", 6379, 0),
        ("redis://h:7000/2", 7000, 2),
        ("unix:///run/redis.sock?db=4", 6379, 4),
        ("redis-sentinel://:p%2Fw@one:1000,two/mymaster/3?tls=true", 1000, 3),
        ("redis+sentinel://one/mymaster", 26_379, 0),
    ] {
        let redis = Config::from_settings(&[("REDIS_URL", url)]).expect(url).redis.expect("enabled");
        assert_eq!((redis.port, redis.database), (port, database), "{url}");
    }
}

#[test]
fn the_committed_defaults_are_the_defaults() {
    let committed = include_str!("../../../config.default.toml");
    assert_eq!(committed, render_defaults(), "run `unified-backend config defaults > config.default.toml`");
}

proptest! {
    #[test]
    fn no_text_for_any_setting_panics_and_a_refusal_names_the_setting(index in 0..SETTINGS.len(), text in "\\PC{0,20}|-?[0-9]{1,25}") {
        let name = SETTINGS[index].names[0];
        if let Err(ConfigErrors(faults)) = Config::from_settings(&[(name, &text)]) {
            prop_assert!(faults.iter().any(|fault| fault.contains(name)), "{:?}", faults);
        }
    }
}
