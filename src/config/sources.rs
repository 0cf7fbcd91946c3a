//! Where values come from, and which one counts: command line, then environment, then `.env`, then a
//! TOML file, then the default.

use std::collections::BTreeMap;
use std::path::Path;

use super::settings::{KAFKA_PROPERTY, SETTINGS, Setting};

/// Values by where they came from, the strongest first.
#[derive(Default)]
pub struct Sources {
    layers: Vec<Vec<Given>>,
    /// What could not even be read.
    pub(super) faults: Vec<String>,
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub struct Given {
    /// Environment name or TOML key.
    pub name: String,
    pub value: String,
    /// For a person: `environment`, `.env`, `command line`, or the file.
    pub origin: String,
}

impl Sources {
    /// The process' environment, `.env` in the working directory, and a TOML file if one is named.
    /// `overrides`: (environment name, value) from the command line.
    pub fn from_process(config_file: Option<&Path>, overrides: Vec<(String, String)>) -> Self {
        let mut sources = Self::default();
        sources.layers.push(given(overrides, "command line"));
        let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let mut layer = Vec::new();
        for (name, value) in environment {
            match value.into_string() {
                Ok(value) => layer.push(Given { name, value, origin: "environment".to_owned() }),
                Err(_) if is_known(&name) => {
                    sources.faults.push(format!("{name} (environment): the value is not UTF-8"))
                }
                Err(_) => {}
            }
        }
        sources.layers.push(layer);
        sources.read_dotenv(Path::new(".env"));
        if let Some(file) = config_file {
            sources.read_toml(file);
        }
        sources
    }

    /// These values and nothing else of the process.
    pub fn from_settings(settings: &[(&str, &str)]) -> Self {
        let pairs = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { layers: vec![given(pairs, "settings")], faults: Vec::new() }
    }

    fn read_dotenv(&mut self, path: &Path) {
        if !path.exists() {
            return;
        }
        let mut layer = Vec::new();
        match dotenvy::from_path_iter(path) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok((name, value)) => layer.push(Given { name, value, origin: path.display().to_string() }),
                        Err(error) => self.faults.push(format!("{}: {}", path.display(), without_value(&error))),
                    }
                }
            }
            Err(error) => self.faults.push(format!("{}: {}", path.display(), without_value(&error))),
        }
        self.layers.push(layer);
    }

    fn read_toml(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.faults.push(format!("{}: {error}", path.display())),
        };
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            // Only the place: the message would quote the line, which may hold a password.
            Err(error) => {
                let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
                return self.faults.push(format!("{}, line {line}: {}", path.display(), error.message()));
            }
        };
        let mut layer = Vec::new();
        flatten("", &toml::Value::Table(table), &mut |key, value| {
            if !SETTINGS.iter().any(|setting| setting.key == key) && !key.starts_with("kafka.property.") {
                let hint = nearest(&key).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
                self.faults.push(format!("{}: unknown key {key}{hint}", path.display()));
            }
            layer.push(Given { name: key, value, origin: path.display().to_string() });
        });
        self.layers.push(layer);
    }

    /// The value that counts. An empty one is as good as none, as existing deployments have it.
    pub fn find(&self, setting: &Setting) -> Option<&Given> {
        self.layers.iter().find_map(|layer| {
            let named = |name: &&str| {
                layer.iter().rev().find(|given| given.name.eq_ignore_ascii_case(name) && !given.value.is_empty())
            };
            setting.names.iter().find_map(&named).or_else(|| named(&setting.key))
        })
    }

    /// Properties for the Kafka client by their own names.
    pub fn list_kafka_properties(&self) -> BTreeMap<String, Given> {
        let mut properties = BTreeMap::new();
        for given in self.layers.iter().rev().flatten() {
            let name = given
                .name
                .strip_prefix(KAFKA_PROPERTY)
                .map(|name| name.to_ascii_lowercase().replace('_', "."))
                .or_else(|| given.name.strip_prefix("kafka.property.").map(str::to_owned));
            if let Some(name) = name {
                properties.insert(name, given.clone());
            }
        }
        properties
    }

    /// Names that look like ours and are none: probably a slip.
    pub fn list_unknown(&self) -> Vec<String> {
        let ours = ["API_", "DIRECTORY_", "ALERTS_", "SHUTDOWN_", "LOGGING_"];
        // Others have variables with these prefixes too (KAFKA_HOME, REDIS_SERVICE_HOST).
        let shared = ["DATABASE_", "POSTGRES_", "REDIS_", "KAFKA_"];
        let mut unknown = Vec::new();
        for given in self.layers.iter().flatten().filter(|given| !is_known(&given.name)) {
            let begins_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| given.name.starts_with(prefix));
            let meant = if begins_with(&ours) {
                Some(nearest(&given.name))
            } else if begins_with(&shared) {
                find_slip(&given.name).map(Some)
            } else {
                None
            };
            if let Some(meant) = meant {
                let hint = meant.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
                unknown.push(format!("{} ({}) is not a setting of this service{hint}", given.name, given.origin));
            }
        }
        unknown
    }

    /// A password for nowhere.
    pub fn find_unused_redis_password(&self) -> Option<String> {
        let find = |key: &str| self.find(SETTINGS.iter().find(|setting| setting.key == key)?);
        let password = find("redis.password")?;
        let why = match (find("redis.url"), find("redis.host"), find("redis.enabled")) {
            (Some(_), ..) => "the URL alone says where Redis is and how to get in",
            (None, None, None) => "neither REDIS_URL nor REDIS_HOST is set",
            _ => return None,
        };
        Some(format!("{} ({}) is not used: {why}", password.name, password.origin))
    }
}

fn given(pairs: Vec<(String, String)>, origin: &str) -> Vec<Given> {
    pairs.into_iter().map(|(name, value)| Given { name, value, origin: origin.to_owned() }).collect()
}

fn is_known(name: &str) -> bool {
    name.starts_with(KAFKA_PROPERTY)
        || SETTINGS
            .iter()
            .any(|setting| setting.key == name || setting.names.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

fn nearest(name: &str) -> Option<&'static str> {
    let known = SETTINGS.iter().flat_map(|setting| setting.names.iter().chain(std::iter::once(&setting.key)));
    known
        .map(|known| (strsim::jaro_winkler(name, known), *known))
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// A known name that differs by a letter or two, or goes on where this one ends (`REDIS_PASS`).
fn find_slip(name: &str) -> Option<&'static str> {
    let known = SETTINGS.iter().flat_map(|setting| setting.names).copied();
    let distance = |known: &str| if known.starts_with(name) { 0 } else { strsim::osa_distance(name, known) };
    known.map(|known| (distance(known), known)).filter(|(distance, _)| *distance <= 2).min().map(|(_, known)| known)
}

fn without_value(error: &dotenvy::Error) -> String {
    match error {
        dotenvy::Error::LineParse(_, column) => {
            format!("a line cannot be read (near column {column}): write NAME=value")
        }
        other => other.to_string(),
    }
}

fn flatten(prefix: &str, value: &toml::Value, put: &mut impl FnMut(String, String)) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, put);
            }
        }
        toml::Value::Array(items) => {
            let text = |item: &toml::Value| item.as_str().map_or_else(|| item.to_string(), str::to_owned);
            put(prefix.to_owned(), items.iter().map(text).collect::<Vec<_>>().join(","));
        }
        toml::Value::String(text) => put(prefix.to_owned(), text.clone()),
        other => put(prefix.to_owned(), other.to_string()),
    }
}
