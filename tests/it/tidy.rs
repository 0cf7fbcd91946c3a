//! The rules of the house that no compiler checks; ARCHITECTURE.md gives them in prose. Each is a pure
//! function from files to violations, run once over this source tree, which must be clean, and once
//! over a text that breaks it, which must be caught.

use std::collections::BTreeSet;
use std::path::Path;

use unified_backend::telemetry::metrics::Metrics;

/// One file of the tree; `path` from the root, with slashes.
struct File {
    path: String,
    text: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_in(&self, folders: &[&str]) -> bool {
        folders.iter().any(|folder| self.path.starts_with(folder))
    }

    /// `name.rs` or the folder `name/`.
    fn is_module(&self, name: &str) -> bool {
        self.path.ends_with(&format!("/{name}.rs")) || self.path.contains(&format!("/{name}/"))
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.ends_with("/tests.rs")
    }

    /// What runs in production: no comments, no contents of literals, no test module.
    fn code(&self) -> String {
        if self.is_test() { String::new() } else { without_test_module(&without_prose(&self.text)) }
    }
}

// ---- The rules -----------------------------------------------------------------------------------

const FEATURES: &[&str] = &["src/directory/", "src/alerts/", "src/push/"];

/// Features are what the product is; a database or a broker must be replaceable without touching them.
fn features_know_no_rim(files: &[File]) -> Vec<String> {
    let rim = ["storage", "redis", "kafka"];
    names_in(files, |file| file.is_in(FEATURES), &rim)
        .map(|(path, name)| format!("{path}: a feature imports `{name}`; let app.rs hand it in behind a port"))
        .collect()
}

/// A session, a decoder or a store that takes axum's types can be used and tested over HTTP only.
fn only_routes_know_axum(files: &[File]) -> Vec<String> {
    let may =
        |file: &File| file.is_in(&["src/http/"]) || ["routes", "ws", "sse"].iter().any(|module| file.is_module(module));
    names_in(files, |file| !may(file), &["axum"])
        .map(|(path, _)| format!("{path}: only src/http, routes, ws and sse know axum; move what needs it there"))
        .collect()
}

/// Which driver speaks to a dependency is the business of one folder, which can be replaced or deleted whole.
fn drivers_stay_in_their_folder(files: &[File]) -> Vec<String> {
    let folders: [(&str, &[&str]); 3] = [
        ("src/storage/", &["tokio_postgres", "deadpool_postgres", "tokio_postgres_rustls", "rusqlite", "refinery"]),
        ("src/kafka/", &["rdkafka", "rdkafka_sys"]),
        ("src/redis/", &["redis"]),
    ];
    let mut violations = Vec::new();
    for (folder, drivers) in folders {
        for (path, name) in names_in(files, |file| !file.is_in(&[folder]), drivers) {
            // Our own module has the same name as the crate.
            let text = &files.iter().find(|file| file.path == path).expect("it came from there").text;
            let is_ours = name == "redis" && imports_from_crate(text, "redis");
            if !is_ours {
                violations.push(format!("{path}: `{name}` belongs under {folder} alone"));
            }
        }
    }
    violations
}

/// Two engines cost one branch in one place, or a branch everywhere.
fn only_the_root_names_backends(files: &[File]) -> Vec<String> {
    let root = ["src/app.rs", "src/cli/", "src/storage/", "src/kafka/", "src/redis/"];
    let modules = names_in(files, |file| !file.is_in(&root), &["storage", "kafka"]);
    // The configuration defines the choice, /health tells it.
    let may_choose = ["src/app.rs", "src/cli/", "src/storage/mod.rs", "src/config/", "src/http/service.rs"];
    let choices = names_in(files, |file| !file.is_in(&may_choose), &["DatabaseEngine"]);
    modules
        .chain(choices)
        .map(|(path, name)| format!("{path}: names `{name}`; backends are picked in app.rs and storage/mod.rs alone"))
        .collect()
}

/// Parity of the engines can be seen by comparing two listings.
fn engines_have_the_same_files(paths: &[&str]) -> Vec<String> {
    let names = |folder: &str| -> BTreeSet<String> {
        paths.iter().filter_map(|path| path.strip_prefix(folder)).map(str::to_owned).collect()
    };
    let mut violations = Vec::new();
    for root in ["src/storage/", "migrations/"] {
        for (one, other) in [("postgres/", "sqlite/"), ("sqlite/", "postgres/")] {
            for name in names(&format!("{root}{one}")).difference(&names(&format!("{root}{other}"))) {
                violations.push(format!("{root}{one}{name} has no counterpart in {root}{other}"));
            }
        }
    }
    violations
}

/// And every module that says so of itself in its first lines.
const PURE: &[&str] = &[
    "src/alerts/decode.rs",
    "src/alerts/forecast.rs",
    "src/directory/cursor.rs",
    "src/directory/dict.rs",
    "src/directory/geometry.rs",
    "src/directory/history.rs",
    "src/directory/replica.rs",
    "src/push/session.rs",
];

/// Logic without time and tasks is tested by properties, in microseconds and without luck. A moment that is
/// handed in is no clock.
fn pure_modules_are_pure(files: &[File]) -> Vec<String> {
    let says_so = |file: &File| {
        let mut first_lines = file.text.lines().take_while(|line| line.starts_with("//!"));
        first_lines.any(|line| ["Pure.", "Pure:", "Pure;", "Pure data"].iter().any(|claim| line.contains(claim)))
    };
    let is_pure = |file: &File| PURE.contains(&file.path.as_str()) || says_so(file);
    let asks_for_time = files.iter().filter(|file| is_pure(file) && file.code().contains(".elapsed("));
    names_in(files, is_pure, &["tokio", "tokio_util", "axum", "now"])
        .chain(asks_for_time.map(|file| (file.path.clone(), "elapsed")))
        .map(|(path, name)| format!("{path}: a pure module uses `{name}`; take it as an argument instead"))
        .collect()
}

const MAX_LINES: usize = 600;

/// A file is read in one sitting or not at all.
fn files_are_short(files: &[File]) -> Vec<String> {
    let lines = |file: &File| file.text.lines().count();
    files
        .iter()
        .filter(|file| lines(file) > MAX_LINES)
        .map(|file| format!("{}: {} lines, more than {MAX_LINES}; split it by what it does", file.path, lines(file)))
        .collect()
}

/// What is here is finished, and every test runs.
fn nothing_is_unfinished(files: &[File]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files {
        let code = without_prose(&file.text);
        for marker in ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "#[should_panic"] {
            if code.contains(marker) {
                violations.push(format!("{}: contains `{marker}…`", file.path));
            }
        }
    }
    violations
}

/// A document that names what is not there sends its reader astray.
fn named_paths_exist(document: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let folder = document.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let roots = ["src/", "tests/", "docs/", "migrations/", "scripts/", "bench/", ".ci/"];
    let is_path = |word: &&str| roots.iter().any(|root| word.starts_with(root)) && !word.contains(['*', '…', '<', ' ']);
    let code = document.text.split('`').skip(1).step_by(2).filter(is_path).map(str::to_owned);
    let links = document.text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let linked = links
        .filter(|target| !target.contains("://") && !target.starts_with('#'))
        .map(|target| resolve(&folder, target.split('#').next().unwrap_or_default()));
    code.chain(linked)
        .filter(|path| !exists(path))
        .map(|path| format!("{}: names {path}, which does not exist", document.path))
        .collect()
}

/// An operator who sees a figure must find what it means and what to do.
fn metrics_are_documented(names: &[&str], document: &str) -> Vec<String> {
    let rows: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.split('{').next().unwrap_or(name))
        .collect();
    let families = ["http_", "store_", "directory_", "mirror_", "redis_", "kafka_", "alerts_", "push_"];
    let undocumented = names
        .iter()
        .filter(|name| !rows.contains(**name))
        .map(|name| format!("docs/operations.md has no row for the metric {name}"));
    let unknown = rows
        .iter()
        .filter(|row| families.iter().any(|family| row.starts_with(family)) && !names.contains(row))
        .map(|row| format!("docs/operations.md explains {row}, which is no metric of this service"));
    undocumented.chain(unknown).collect()
}

/// A setting that nobody can find is not there. `table`: the source of the table of settings.
fn settings_are_documented(table: &str, documents: &str) -> Vec<String> {
    let settings = table.lines().filter_map(|line| line.trim_start().strip_prefix('"')?.split_once("\" [\""));
    settings
        .filter_map(|(key, rest)| Some((key, rest.split_once('"')?.0)))
        .filter(|(_, name)| !documents.contains(*name))
        .map(|(key, name)| format!("the setting {key} ({name}) stands neither in config.default.toml nor in docs/"))
        .collect()
}

// ---- The source tree -----------------------------------------------------------------------------

#[test]
fn features_import_neither_storage_nor_redis_nor_kafka() {
    expect_clean(features_know_no_rim(&rust_files()));
}

#[test]
fn axum_is_known_only_where_http_is_spoken() {
    expect_clean(only_routes_know_axum(&rust_files()));
}

#[test]
fn each_driver_stays_in_its_folder() {
    expect_clean(drivers_stay_in_their_folder(&rust_files()));
}

#[test]
fn backends_are_named_only_where_they_are_picked() {
    expect_clean(only_the_root_names_backends(&rust_files()));
}

#[test]
fn both_engines_have_the_same_files() {
    let files: Vec<String> = [list("src/storage"), list("migrations")].concat();
    let paths: Vec<&str> = files.iter().map(String::as_str).collect();
    assert!(paths.iter().any(|path| path.starts_with("src/storage/sqlite/")), "the listing works");
    expect_clean(engines_have_the_same_files(&paths));
}

#[test]
fn pure_modules_know_neither_tasks_nor_clocks() {
    let files = rust_files();
    for path in PURE {
        assert!(files.iter().any(|file| file.path == *path), "{path} is gone; change the list of pure modules");
    }
    expect_clean(pure_modules_are_pure(&files));
}

#[test]
fn no_file_is_too_long() {
    expect_clean(files_are_short(&rust_files()));
}

#[test]
fn nothing_is_left_unfinished() {
    expect_clean(nothing_is_unfinished(&rust_files()));
}

#[test]
fn documents_name_only_what_exists() {
    let documents = documents();
    assert!(documents.iter().any(|document| document.path == "ARCHITECTURE.md"), "ARCHITECTURE.md exists");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let exists = |path: &str| root.join(path).exists();
    expect_clean(documents.iter().flat_map(|document| named_paths_exist(document, exists)).collect());
}

#[test]
fn every_metric_is_explained_to_operators() {
    expect_clean(metrics_are_documented(Metrics::NAMES, &read("docs/operations.md")));
}

#[test]
fn every_setting_is_documented() {
    let documents: String = documents().into_iter().map(|document| document.text).collect();
    let table = read("src/config/settings.rs");
    assert!(table.contains("\"api.host\" [\"API_HOST\"]"), "the table of settings still has the form this test reads");
    expect_clean(settings_are_documented(&table, &(read("config.default.toml") + &documents)));
}

#[track_caller]
fn expect_clean(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Paths of all files under a folder, which may be missing.
fn list(folder: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) else { return Vec::new() };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.expect("the folder can be listed");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("it has a type").is_dir() {
            paths.extend(list(&path));
        } else {
            paths.push(path);
        }
    }
    paths.sort();
    paths
}

fn rust_files() -> Vec<File> {
    let paths = ["src", "tests", "bench"].into_iter().flat_map(list).filter(|path| path.ends_with(".rs"));
    let files: Vec<File> = paths.map(|path| File { text: read(&path), path }).collect();
    assert!(files.len() > 50, "the tree was found");
    files
}

fn documents() -> Vec<File> {
    let root = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(str::to_owned);
    let paths = root.into_iter().chain(list("docs")).filter(|path| path.ends_with(".md"));
    paths.map(|path| File { text: read(&path), path }).collect()
}

// ---- Reading Rust --------------------------------------------------------------------------------

/// (path, name) where production code of the chosen files uses one of the names as a part of a path.
fn names_in<'a>(
    files: &'a [File],
    is_chosen: impl Fn(&File) -> bool + 'a,
    names: &'a [&'a str],
) -> impl Iterator<Item = (String, &'a str)> + 'a {
    files.iter().filter(move |file| file.path.starts_with("src/") && is_chosen(file)).flat_map(move |file| {
        let used = path_segments(&file.code());
        names.iter().filter(move |name| used.contains(**name)).map(move |name| (file.path.clone(), *name))
    })
}

/// Every identifier that stands beside `::` or in a `use`.
fn path_segments(code: &str) -> BTreeSet<String> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    let mut segments = BTreeSet::new();
    for statement in code.split_inclusive([';', '{', '}']) {
        let is_use = statement.trim_start().trim_start_matches("pub ").starts_with("use ");
        let mut rest = statement;
        while let Some(begin) = rest.find(is_part) {
            let (before, from) = rest.split_at(begin);
            let end = from.find(|character| !is_part(character)).unwrap_or(from.len());
            if is_use || before.ends_with("::") || from[end..].starts_with("::") {
                segments.insert(from[..end].to_owned());
            }
            rest = &from[end..];
        }
    }
    // The members of `use crate::{…}` stand in statements of their own.
    for group in code.split("use ").skip(1).filter_map(|rest| rest.split_once(';')).map(|(group, _)| group) {
        segments
            .extend(group.split(|character| !is_part(character)).filter(|word| !word.is_empty()).map(str::to_owned));
    }
    segments
}

fn imports_from_crate(text: &str, module: &str) -> bool {
    let groups = text.split("use crate::").skip(1).filter_map(|rest| rest.split_once(';')).map(|(group, _)| group);
    text.contains(&format!("crate::{module}::"))
        || groups
            .flat_map(|group| group.split(|character: char| !(character.is_alphanumeric() || character == '_')))
            .any(|word| word == module)
}

fn without_test_module(code: &str) -> String {
    let Some((before, rest)) = code.split_once("#[cfg(test)]\nmod tests {") else { return code.to_owned() };
    let after = rest.split_once("\n}\n").map_or("", |(_, after)| after);
    format!("{before}{after}")
}

/// Blanks comments and the contents of literals.
fn without_prose(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest, &code) {
            length
        } else if character == '"' {
            closing(&rest[1..], '"').map_or(rest.len(), |end| end + 2)
        } else if character == '\'' && is_character_literal(rest) {
            closing(&rest[1..], '\'').map_or(rest.len(), |end| end + 2)
        } else {
            code.push(character);
            rest = &rest[character.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// Where a literal ends, escapes passed over.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            _ if character == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// The length of a raw string that begins here.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if before.ends_with(|character: char| character.is_alphanumeric() || character == '_') && !before.ends_with('b') {
        return None;
    }
    let marks = text.strip_prefix('r')?;
    let hashes = marks.len() - marks.trim_start_matches('#').len();
    let body = marks[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text.len() - body.len() + body.find(&end)? + end.len())
}

/// And not a lifetime.
fn is_character_literal(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    match characters.next() {
        Some('\\') => true,
        Some(_) => characters.next() == Some('\''),
        None => false,
    }
}

/// A relative link as a path from the root.
fn resolve(folder: &str, target: &str) -> String {
    let joined = format!("{folder}{target}");
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

// ---- Each rule catches what breaks it ------------------------------------------------------------

mod a_rule_catches {
    use super::*;

    #[track_caller]
    fn expect_caught(violations: Vec<String>, path: &str) {
        assert!(violations.len() == 1 && violations[0].contains(path), "{violations:?}");
    }

    #[track_caller]
    fn expect_only(rule: impl Fn(&[File]) -> Vec<String>, path: &str, breaks: &str, keeps: &str) {
        expect_caught(rule(&[File::new(path, breaks)]), path);
        expect_clean(rule(&[File::new(path, keeps)]));
    }

    #[test]
    fn a_feature_that_imports_the_rim() {
        let keeps = "// like crate::redis::X\nlet text = \"crate::storage::X\"; let lag = kafka.lag();";
        for breaks in
            ["use crate::redis::RedisCache;", "use crate::{alerts, storage};", "fn f() { crate::kafka::start() }"]
        {
            expect_only(features_know_no_rim, "src/push/hub.rs", breaks, keeps);
        }
    }

    #[test]
    fn axum_outside_of_http() {
        let test = "#[cfg(test)]\nmod tests {\n    use axum::Router;\n}\n";
        expect_only(only_routes_know_axum, "src/alerts/log.rs", "use axum::body::Bytes;", test);
        expect_clean(only_routes_know_axum(&[File::new("src/alerts/routes.rs", "use axum::Router;")]));
        expect_clean(only_routes_know_axum(&[File::new("src/directory/routes/users.rs", "use axum::Router;")]));
    }

    #[test]
    fn a_driver_outside_its_folder() {
        expect_only(drivers_stay_in_their_folder, "src/alerts/log.rs", "fn f(row: &tokio_postgres::Row) {}", "");
        expect_only(drivers_stay_in_their_folder, "src/cli/mod.rs", "use rdkafka::ClientConfig;", "");
        expect_only(
            drivers_stay_in_their_folder,
            "src/redis/mod.rs",
            "use rusqlite::Connection;",
            "use redis::Client;",
        );
        let ours = "use crate::{alerts, redis};\nfn f() { redis::routes::router() }";
        expect_only(drivers_stay_in_their_folder, "src/http/mod.rs", "use redis::Client;", ours);
        expect_clean(drivers_stay_in_their_folder(&[File::new("tests/it/kafka.rs", "use rdkafka::ClientConfig;")]));
    }

    #[test]
    fn a_backend_that_is_named_elsewhere() {
        let breaks = "if matches!(config.engine, DatabaseEngine::Postgres { .. }) {}";
        expect_only(only_the_root_names_backends, "src/directory/mod.rs", breaks, "let engine = config.engine;");
        expect_only(only_the_root_names_backends, "src/http/mod.rs", "use crate::storage::postgres;", "");
        expect_clean(only_the_root_names_backends(&[File::new("src/app.rs", breaks)]));
    }

    #[test]
    fn an_engine_that_lacks_a_file() {
        let pair = ["src/storage/postgres/feed.rs", "src/storage/sqlite/feed.rs"];
        expect_clean(engines_have_the_same_files(&pair));
        expect_caught(engines_have_the_same_files(&pair[..1]), "src/storage/postgres/feed.rs");
        expect_caught(engines_have_the_same_files(&pair[1..]), "src/storage/sqlite/feed.rs");
        expect_caught(engines_have_the_same_files(&["migrations/sqlite/V1__x.sql"]), "V1__x.sql");
    }

    #[test]
    fn a_pure_module_with_a_clock() {
        let path = "src/push/session.rs";
        for breaks in ["use tokio::time::sleep;", "let at = Instant::now();", "if begun_at.elapsed() > limit {}"] {
            expect_only(pure_modules_are_pure, path, breaks, "use std::time::Instant; fn f(now: Instant) {}");
            let claims = format!("//! Where to begin. Pure.\n{breaks}");
            expect_only(pure_modules_are_pure, "src/kafka/position.rs", &claims, breaks);
        }
    }

    #[test]
    fn a_file_that_is_too_long() {
        expect_only(files_are_short, "src/app.rs", &"\n".repeat(MAX_LINES + 1), &"\n".repeat(MAX_LINES));
    }

    #[test]
    fn what_is_unfinished() {
        for breaks in
            ["fn f() { todo!() }", "unimplemented!(\"x\")", "dbg!(1);", "#[ignore]\nfn f() {}", "#[should_panic]"]
        {
            expect_only(
                nothing_is_unfinished,
                "src/app.rs",
                breaks,
                &format!("// {}\nlet text = r#\"{breaks}\"#;", &breaks[..4]),
            );
        }
    }

    #[test]
    fn a_document_that_names_what_is_gone() {
        let exists = |path: &str| ["src/app.rs", "docs/api.md"].contains(&path);
        let document = |text: &str| named_paths_exist(&File::new("docs/adr/0001-x.md", text), exists);
        expect_clean(document("`src/app.rs`, [api](../api.md#users), [web](https://example.org/x), `GET /users`"));
        expect_caught(document("see `src/gone.rs`"), "src/gone.rs");
        expect_caught(document("see [gone](../gone.md)"), "docs/gone.md");
    }

    #[test]
    fn a_metric_that_nobody_explains() {
        let names = ["push_clients", "kafka_lag"];
        expect_clean(metrics_are_documented(&names, "| `push_clients{transport}` | x |\n| `kafka_lag` | x |"));
        expect_caught(metrics_are_documented(&names, "| `push_clients` | see kafka_lag |"), "kafka_lag");
        expect_caught(metrics_are_documented(&names[..1], "| `push_clients` | x |\n| `kafka_lag` | x |"), "kafka_lag");
    }

    #[test]
    fn a_setting_that_nobody_can_find() {
        let table = "settings! {\n    \"api.host\" [\"API_HOST\"] = \"x\", \"y\";\n    \"api.port\" [\"API_PORT\", \"P\"] = \"x\", \"y\";\n}";
        expect_clean(settings_are_documented(table, "API_HOST API_PORT"));
        expect_caught(settings_are_documented(table, "# (API_HOST)"), "api.port");
    }
}
