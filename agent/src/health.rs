//! `/healthz`, `/readyz` and `/metrics`, plain HTTP on the node.
//!
//! They have a thread and a runtime of their own: a daemon that plans for long is busy, not dead, and must not be restarted
//! for it.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    thread,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, runtime, sync::watch};
use tracing::error;

use crate::metrics::Metrics;

/// Why the node is not ready; `None` when it is.
pub type Readiness = watch::Receiver<Option<String>>;

#[derive(Clone)]
struct Served {
    readiness: Readiness,
    metrics: Arc<Metrics>,
}

/// Starts the thread, which serves until the process ends; returns the address.
///
/// # Errors
/// If the port is taken, or the thread cannot be started.
pub fn spawn(addr: SocketAddr, readiness: Readiness, metrics: Arc<Metrics>) -> io::Result<SocketAddr> {
    let listener = StdListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Served { readiness, metrics });
    let serve = async move { axum::serve(TcpListener::from_std(listener)?, app).await };
    let work = move || {
        if let Err(error) = runtime.block_on(serve) {
            error!(%addr, %error, "health and metrics are not served any more");
        }
    };
    thread::Builder::new().name("health".to_owned()).spawn(work)?;
    Ok(addr)
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpStream},
        time::Duration,
    };

    use super::*;

    /// Blocks the calling thread, as a long plan does.
    fn request(addr: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok(response)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn it_answers_while_the_daemons_only_thread_is_blocked() {
        let (ready, readiness) = watch::channel(Some("no uplink".to_owned()));
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let addr = spawn(addr, readiness, Arc::default()).unwrap();
        let healthz = request(addr, "/healthz").unwrap();
        assert!(healthz.starts_with("HTTP/1.1 200") && healthz.ends_with("ok\n"), "{healthz}");
        let readyz = request(addr, "/readyz").unwrap();
        assert!(readyz.starts_with("HTTP/1.1 503") && readyz.ends_with("no uplink\n"), "{readyz}");
        ready.send(None).unwrap();
        assert!(request(addr, "/readyz").unwrap().starts_with("HTTP/1.1 200"));
        assert!(request(addr, "/metrics").unwrap().contains("towpath_agent_ready"));
    }
}
