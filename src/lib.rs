//! `unified-backend`: the people directory and the alert log of a site with person recognition.
//!
//! The map of the house, in reading order. Features change when the product changes; the rim
//! changes when operations change. Features never import the rim (`tests/it/tidy.rs` checks it).

pub mod cli;
pub mod config;

pub mod app;
pub mod lifecycle;

// Features.
pub mod alerts;
pub mod directory;
pub mod push;

// Shared vocabulary of features and rim.
pub mod gathering;
pub mod store_error;
pub mod time;

// Rim.
pub mod http;
pub mod kafka;
pub mod redis;
pub mod storage;
pub mod telemetry;
