//! `openapi`: the description of the HTTP surface.

use super::{Exit, print};
use crate::http::openapi;

/// Print the OpenAPI document of the HTTP API
#[derive(clap::Args)]
#[command(after_help = "\
The same document as GET /openapi.json of a running service.

Examples:
  unified-backend openapi > openapi.json")]
pub struct Arguments {}

pub fn run(_: Arguments) -> anyhow::Result<Exit> {
    print(openapi::render().trim_end())?;
    Ok(Exit::Done)
}
