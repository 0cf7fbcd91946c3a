//! `healthcheck`: whether a running service is ready, for containers that have no HTTP client.

use std::net::SocketAddr;
use std::time::Duration;

use super::exit::Failure;
use super::serve::url_of;
use super::{Exit, Settings, print};
use crate::store_error::describe;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Ask a running service whether it is ready
#[derive(clap::Args)]
#[command(after_help = "\
Asks GET /health/ready; exit code 0: ready, 1: not ready, 69: nobody answers.

Examples:
  unified-backend healthcheck
  unified-backend healthcheck --url http://10.0.0.5:8000
  HEALTHCHECK CMD [\"unified-backend\", \"healthcheck\"]        (in a Dockerfile)")]
pub struct Arguments {
    /// Address of the service [default: that of the configuration]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub async fn run(settings: &Settings, arguments: Arguments) -> anyhow::Result<Exit> {
    let url = base_url(settings, arguments.url)?;
    let client = client(TIMEOUT)?;
    let response = match client.get(format!("{url}/health/ready")).send().await {
        Ok(response) => response,
        Err(error) => return Err(Failure::unavailable(format!("{url} does not answer: {}", describe(&error)))),
    };
    let status = response.status();
    if status.is_success() {
        print("ready")?;
        return Ok(Exit::Done);
    }
    let answer: serde_json::Value = response.json().await.unwrap_or_default();
    let detail = answer["detail"].as_str().unwrap_or("the answer is not that of this service");
    print(&format!("not ready ({}): {detail}", status.as_u16()))?;
    Ok(Exit::Failed)
}

/// Of the service that is meant, without a slash at its end.
pub fn base_url(settings: &Settings, given: Option<String>) -> anyhow::Result<String> {
    if let Some(url) = given {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    let api = settings.load()?.api;
    Ok(url_of(SocketAddr::new(api.host, api.port)))
}

/// A client that goes there directly: a proxy of the environment is for the world outside.
pub fn client(timeout: Duration) -> anyhow::Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().timeout(timeout).build()?)
}
