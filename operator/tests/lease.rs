//! Elections over a Lease in memory, with time that passes as soon as everybody waits.
#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::Method;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::LocalSet,
    time::{Instant, sleep},
};
use towpath_operator::{
    lease::{Election, Leadership},
    metrics::Metrics,
};

#[path = "support/client.rs"]
mod client;
use client::client;

/// The API server: one Lease, or away.
#[derive(Default)]
struct LeaseServer {
    lease: Option<Value>,
    away: bool,
}

impl LeaseServer {
    fn answer(&mut self, method: &Method, body: Value) -> (u16, Value) {
        let failure = |code: u16| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "reason": reason, "message": ""});
            (code, status)
        };
        if self.away {
            return failure(503);
        }
        let version =
            |lease: &Value| lease["metadata"]["resourceVersion"].as_str().unwrap_or("0").parse::<u64>().unwrap();
        match (method, &self.lease) {
            (&Method::GET, None) => failure(404),
            (&Method::GET, Some(lease)) => (200, lease.clone()),
            (&Method::PUT, Some(lease)) if version(lease) != version(&body) => failure(409),
            (&Method::POST, Some(_)) => failure(409),
            (_, have) => {
                let next = have.as_ref().map_or(1, |lease| version(lease) + 1);
                let mut lease = body;
                lease["metadata"]["resourceVersion"] = json!(next.to_string());
                self.lease = Some(lease.clone());
                (200, lease)
            }
        }
    }
}

/// A replica that takes part.
struct Replica {
    stop: watch::Sender<bool>,
    leads: watch::Receiver<Leadership>,
    task: tokio::task::JoinHandle<()>,
}

impl Replica {
    fn start(server: &Arc<Mutex<LeaseServer>>, name: &str) -> Self {
        let (leadership, leads) = watch::channel(Leadership::Standby);
        let (stop, stops) = watch::channel(false);
        let server = Arc::clone(server);
        let client = client("default", move |method, _, body| server.lock().unwrap().answer(method, body));
        let election = Election::new(client, name, Metrics::default());
        let task = tokio::task::spawn_local(async move { election.run(&leadership, stops).await });
        Self { stop, leads, task }
    }

    fn leads(&self) -> bool {
        *self.leads.borrow() == Leadership::Leading
    }
}

/// Seconds until the condition holds, in steps of a tenth, at most two minutes.
async fn seconds_until(holds: impl Fn() -> bool) -> f64 {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "not within two minutes");
        sleep(Duration::from_millis(100)).await;
    }
    start.elapsed().as_secs_f64()
}

fn scenario<F: Future<Output = ()>>(run: impl FnOnce(Arc<Mutex<LeaseServer>>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, run(Arc::default()));
}

#[test]
fn one_replica_leads_and_a_shutdown_hands_over_at_the_next_attempt() {
    scenario(|server| async move {
        let first = Replica::start(&server, "a");
        seconds_until(|| first.leads()).await;
        let second = Replica::start(&server, "b");
        sleep(Duration::from_secs(60)).await;
        assert!(first.leads() && !second.leads(), "the lease is renewed all the time");
        first.stop.send_replace(true);
        let waited = seconds_until(|| second.leads()).await;
        assert!(waited <= 2.5, "{waited} s");
    });
}

#[test]
fn a_leader_that_vanished_is_replaced_when_its_lease_has_expired_and_not_before() {
    scenario(|server| async move {
        let first = Replica::start(&server, "a");
        seconds_until(|| first.leads()).await;
        let second = Replica::start(&server, "b");
        sleep(Duration::from_secs(10)).await;
        first.task.abort();
        let waited = seconds_until(|| second.leads()).await;
        assert!((13.0..=20.0).contains(&waited), "{waited} s: fifteen since the last renewal that was seen");
    });
}

#[test]
fn a_leader_without_its_api_server_becomes_standby_before_the_lease_expires_and_leads_again_later() {
    scenario(|server| async move {
        let replica = Replica::start(&server, "a");
        seconds_until(|| replica.leads()).await;
        server.lock().unwrap().away = true;
        let waited = seconds_until(|| !replica.leads()).await;
        assert!((8.0..15.0).contains(&waited), "{waited} s");
        sleep(Duration::from_secs(60)).await;
        assert!(!replica.task.is_finished(), "it stays alive");
        server.lock().unwrap().away = false;
        let waited = seconds_until(|| replica.leads()).await;
        assert!(waited <= 2.5, "{waited} s: the lease is still its own");
    });
}

#[test]
fn two_replicas_that_start_at_once_never_lead_at_once() {
    scenario(|server| async move {
        let replicas = [Replica::start(&server, "a"), Replica::start(&server, "b")];
        for _ in 0..600 {
            let leading = replicas.iter().filter(|replica| replica.leads()).count();
            assert!(leading <= 1, "both lead");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(replicas.iter().filter(|replica| replica.leads()).count(), 1);
    });
}
