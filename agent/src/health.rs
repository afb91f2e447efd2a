//! `/healthz`, `/readyz` and `/metrics`, plain HTTP on the node.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};

use crate::metrics::Metrics;

/// Why the node is not ready, in words; `None` when it is.
pub type Readiness = watch::Receiver<Option<String>>;

#[derive(Clone)]
struct Served {
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

/// Serves until the process ends.
///
/// # Errors
/// If the port is taken, or the listener fails.
pub async fn serve(addr: SocketAddr, readiness: Readiness, metrics: Arc<Metrics>) -> io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Served { readiness, metrics });
    axum::serve(TcpListener::bind(addr).await?, app).await
}

async fn readyz(State(served): State<Served>) -> (StatusCode, String) {
    match served.readiness.borrow().as_ref() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn scrape(State(served): State<Served>) -> Result<String, StatusCode> {
    served.metrics.encode().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
