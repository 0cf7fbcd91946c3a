//! What is measured: one file per figure, each with the goals it is about.

mod alerts;
mod distance;
mod fanout;
mod growth;
mod large;
mod listener;
mod memory;
mod reads;
mod soak;
mod strictness;
mod writes;

use crate::Bench;

pub const NAMES: &[&str] =
    &["reads", "writes", "large", "distance", "alerts", "fanout", "memory", "strictness", "soak"];

/// Measured only when they are named: minutes each, and no goals. `growth` is all of them.
pub const ON_REQUEST: &[&str] = growth::NAMES;

pub async fn run(bench: &mut Bench, name: &str) -> anyhow::Result<()> {
    match name {
        "reads" => reads::run(bench).await,
        "writes" => writes::run(bench).await,
        "large" => large::run(bench).await,
        "distance" => distance::run(bench).await,
        "alerts" => alerts::run(bench).await,
        "fanout" => fanout::run(bench).await,
        "memory" => memory::run(bench).await,
        "strictness" => strictness::run(bench).await,
        "soak" => soak::run(bench).await,
        name => growth::run(bench, name).await,
    }
}
