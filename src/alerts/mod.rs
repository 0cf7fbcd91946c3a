//! Alerts: what they are, the one ordered log that holds them, and the one way in.
//! Knows no engine, no Kafka and no socket.

pub mod decode;
pub mod doorbell;
pub mod forecast;
pub mod ingest;
pub mod log;
pub mod routes;
pub mod types;

pub use doorbell::Doorbell;
pub use ingest::Ingest;
pub use log::{AlertLog, AppendError};
