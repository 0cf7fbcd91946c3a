//! Where simulated alerts go. A batch is offered until it is taken: its event ids make repeats harmless.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Alert, Count};
use crate::cli::complain;
use crate::kafka::producer::AlertProducer;
use crate::store_error::describe;

const RETRY_PAUSE: Duration = Duration::from_millis(500);

pub enum Target {
    Http { client: reqwest::Client, url: String },
    Kafka(Box<AlertProducer>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { url, .. } => f.write_str(url),
            Self::Kafka(producer) => write!(f, "Kafka topic {}", producer.topic()),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    accepted: u64,
    duplicates: u64,
    rejected: Vec<Value>,
}

impl Target {
    /// Fails where repeating does not help.
    pub async fn publish(&mut self, alerts: &[Alert], count: &mut Count) -> anyhow::Result<()> {
        let mut is_failing = false;
        loop {
            let why = match self {
                Self::Http { client, url } => match client.post(url.as_str()).json(alerts).send().await {
                    Ok(response) if response.status().is_success() => {
                        let answer: Answer = response.json().await?;
                        count.published += answer.accepted;
                        count.duplicates += answer.duplicates;
                        count.rejected += answer.rejected.len() as u64;
                        return Ok(());
                    }
                    Ok(response) if response.status().is_server_error() => {
                        format!("{url} answers {}", response.status())
                    }
                    Ok(response) => {
                        let status = response.status();
                        anyhow::bail!("{url} answers {status}: {}", response.text().await.unwrap_or_default());
                    }
                    Err(error) => describe(&error),
                },
                Self::Kafka(producer) => {
                    let mut messages = Vec::with_capacity(alerts.len());
                    for alert in alerts {
                        // One camera's alerts keep their order.
                        messages.push((alert.camera_id.to_string(), serde_json::to_vec(alert)?));
                    }
                    match producer.publish(&messages).await {
                        Ok(()) => {
                            count.published += alerts.len() as u64;
                            return Ok(());
                        }
                        Err(error) => error.to_string(),
                    }
                }
            };
            count.failures += 1;
            if !std::mem::replace(&mut is_failing, true) {
                complain(&format!("not published, trying again: {why}"));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}
