//! The HTTP rim: the listener with its limits, the middleware, the router that mounts the features.

pub mod error;
pub mod extract;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::app::AppState;
use crate::config::ApiConfig;
use crate::lifecycle::Lifecycle;
use crate::telemetry::metrics::Metrics;

/// All routes of the service, with the middleware around them.
pub fn router(state: AppState) -> axum::Router {
    let _ = state;
    todo!()
}

/// Binds the address with the options the service needs.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let _ = address;
    todo!()
}

/// Accepts until [`Lifecycle::draining`], then lets connections finish.
pub async fn serve(
    listener: TcpListener,
    router: axum::Router,
    config: ApiConfig,
    lifecycle: Lifecycle,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let _ = (listener, router, config, lifecycle, metrics);
    todo!()
}
