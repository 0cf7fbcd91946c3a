//! `doctor`: everything the service depends on, looked over; each line with what to do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::healthcheck::client;
use super::serve::url_of;
use super::{Exit, Settings, print};
use crate::config::{ApiConfig, ConfigErrors};
use crate::telemetry::finding::{Finding, Verdict};
use crate::telemetry::metrics::Metrics;
use crate::{http, kafka, redis, storage};

/// Examine configuration, database, Redis, Kafka and port, and say what to do
#[derive(clap::Args)]
#[command(after_help = "\
Changes nothing. Exit code 1 when a line says FAIL; warnings do not count.

Examples:
  unified-backend doctor
  unified-backend doctor --config production.toml")]
pub struct Arguments {}

pub async fn run(settings: &Settings, _: Arguments) -> anyhow::Result<Exit> {
    let mut verdicts = Vec::new();
    match settings.load_with(Vec::new()) {
        Err(ConfigErrors(faults)) => {
            for fault in faults {
                let remedy = "correct it; `unified-backend config defaults` explains every setting";
                verdicts.push(show(&Finding::failure("config", fault, remedy))?);
            }
        }
        Ok(loaded) => {
            verdicts.push(show(&Finding::ok("config", "every setting is valid"))?);
            for warning in loaded.warnings {
                verdicts.push(show(&Finding::warning("config", warning, "correct or remove it"))?);
            }
            let config = loaded.config;
            for finding in storage::examine(&config.database).await {
                verdicts.push(show(&finding)?);
            }
            let findings = match &config.redis {
                Some(redis) => redis::doctor::examine(redis, Arc::new(Metrics::new()?)).await,
                None => vec![Finding::ok("redis", "not configured, not needed")],
            };
            for finding in findings {
                verdicts.push(show(&finding)?);
            }
            let findings = match &config.kafka {
                Some(kafka) => kafka::doctor::examine(kafka).await,
                None => vec![Finding::ok("kafka", "not configured; alerts come over POST /alerts")],
            };
            for finding in findings {
                verdicts.push(show(&finding)?);
            }
            verdicts.push(show(&examine_port(&config.api).await?)?);
        }
    }
    Ok(if verdicts.contains(&Verdict::Failure) { Exit::Failed } else { Exit::Done })
}

async fn examine_port(api: &ApiConfig) -> anyhow::Result<Finding> {
    let address = SocketAddr::new(api.host, api.port);
    let error = match http::bind(address) {
        Ok(_) => return Ok(Finding::ok("port", format!("{address} is free"))),
        Err(error) => error,
    };
    let asking = client(Duration::from_secs(2))?.get(format!("{}/health", url_of(address))).send().await;
    let answer: serde_json::Value = match asking {
        Ok(response) => response.json().await.unwrap_or_default(),
        Err(_) => serde_json::Value::Null,
    };
    Ok(match (answer["service"].as_str(), answer["status"].as_str()) {
        (Some("unified_backend"), Some(status)) => {
            Finding::ok("port", format!("this service runs at {address} already, and is {status}"))
        }
        _ => {
            let remedy = "stop what listens there, or choose another API_HOST or API_PORT";
            Finding::failure("port", format!("{address} cannot be listened on: {error}"), remedy)
        }
    })
}

fn show(finding: &Finding) -> anyhow::Result<Verdict> {
    let word = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warn",
        Verdict::Failure => "FAIL",
    };
    print(&format!("{word:<5} {:<9} {}", finding.subject, finding.detail))?;
    if let Some(remedy) = &finding.remedy {
        print(&format!("{:15} → {remedy}", ""))?;
    }
    Ok(finding.verdict)
}
