//! One file per behaviour; `support/` starts what they need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

mod alerts_http;
mod cli;
mod configuration;
mod directory_http;
mod history;
mod http_rim;
mod kafka;
mod kills;
mod lifecycle;
mod linearizability;
mod migrations;
mod outages;
mod push;
mod redis;
mod signals;
mod snapshots;
mod store_contract;
mod tidy;
