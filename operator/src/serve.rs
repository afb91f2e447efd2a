//! Health, readiness and metrics over HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use k8s_openapi::jiff::Timestamp;
use prometheus_client::registry::Registry;

use crate::metrics;

/// Seconds without an iteration after which the reconcile loop counts as stuck. It iterates at least every minute.
const LOOP_TIMEOUT_SECONDS: i64 = 180;

/// Liveness and readiness of the reconcile loop: written by the loop, read by the probes.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<HealthState>);

#[derive(Debug, Default)]
struct HealthState {
    last_iteration: AtomicI64,
    synced: AtomicBool,
}

impl Health {
    /// Records that the loop is alive.
    pub fn record_iteration(&self, now: Timestamp) {
        self.0.last_iteration.store(now.as_second(), Ordering::Relaxed);
    }

    /// Records that every watch has completed its first list.
    pub fn record_synced(&self) {
        self.0.synced.store(true, Ordering::Relaxed);
    }

    fn is_alive(&self, now: Timestamp) -> bool {
        now.as_second() - self.0.last_iteration.load(Ordering::Relaxed) < LOOP_TIMEOUT_SECONDS
    }

    fn is_synced(&self) -> bool {
        self.0.synced.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct HttpState {
    health: Health,
    registry: Arc<Registry>,
}

/// Serves until the process ends. A standby replica is ready too: it follows the watches and waits for the lease.
///
/// # Errors
/// If the address cannot be bound.
pub async fn run(address: SocketAddr, health: Health, registry: Registry) -> std::io::Result<()> {
    let shared = HttpState { health, registry: Arc::new(registry) };
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(shared);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).await
}

async fn healthz(State(shared): State<HttpState>) -> impl IntoResponse {
    match shared.health.is_alive(Timestamp::now()) {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the reconcile loop is stuck\n"),
    }
}

async fn readyz(State(shared): State<HttpState>) -> impl IntoResponse {
    match shared.health.is_synced() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not every watch has completed its first list\n"),
    }
}

async fn scrape(State(shared): State<HttpState>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics::render(&shared.registry) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::now;

    #[test]
    fn a_loop_without_iterations_is_not_healthy() {
        let health = Health::default();
        assert!(!health.is_alive(now()), "never iterated");
        health.record_iteration(now());
        assert!(health.is_alive(now()));
        assert!(!health.is_alive(Timestamp::from_second(now().as_second() + LOOP_TIMEOUT_SECONDS).unwrap()));
    }
}
