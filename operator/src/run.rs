//! The process: starts the parts and stops them. One thread; no flags: its settings come from the environment that the
//! Deployment sets.

use std::{env, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use kube::{Client, Config};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use towpath_crds::names;

use crate::{
    apply::Executor,
    lease::{Election, Leadership},
    metrics::Metrics,
    plan::OperatorInfo,
    reconcile::Reconciler,
    serve::{self, Health},
    watch::start_watches,
};

/// Runs until SIGTERM or SIGINT.
///
/// The function is not async for its caller: a future is compiled where it is polled, so `main` would compile again what
/// this crate has compiled.
///
/// # Errors
/// If the API server's address is not known, or the port for health and metrics is in use.
#[tokio::main(flavor = "current_thread")]
pub async fn run() -> anyhow::Result<()> {
    // kube's client logs each failed request as an error; failures are logged where they are handled.
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,kube_client::client::builder=off".into());
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();

    let (client, lease_client) = clients().await?;
    let me = env::var("POD_NAME").or_else(|_| env::var("HOSTNAME")).unwrap_or_else(|_| names::OPERATOR.to_owned());
    let operator = OperatorInfo {
        image: env::var(names::ENV_IMAGE).unwrap_or_else(|_| names::default_image()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    tracing::info!(version = operator.version, image = operator.image, pod = me, "started");

    let metrics = Metrics::default();
    let health = Health::default();
    let address = SocketAddr::from(([0, 0, 0, 0], names::OPERATOR_PORT));
    let server = serve::run(address, health.clone(), metrics.registry());

    let (leadership_sender, leadership) = watch::channel(Leadership::Standby);
    let (stop_reconcile, reconcile_stop) = watch::channel(false);
    let (stop_election, election_stop) = watch::channel(false);
    let election = Election::new(lease_client, &me, metrics.clone());
    let reconciler = Reconciler {
        executor: Executor::new(client.clone(), &me, metrics.clone()),
        operator,
        metrics: metrics.clone(),
        health,
    };

    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop_reconcile.send_replace(true);
        // Never returns: the reconcile loop stops first, then the election releases the Lease.
        std::future::pending::<()>().await;
    };
    let reconcile = async {
        reconciler.run(start_watches(&client, &metrics), leadership, reconcile_stop).await;
        stop_election.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = server => served.with_context(|| format!("serve health and metrics on {address}")),
        () = election.run(&leadership_sender, election_stop) => Ok(()),
        () = shutdown => Ok(()),
        () = reconcile => Ok(()),
    }
}

/// A client for everything else, and one for the Lease. Neither retries by itself: watches and reconciles have their own
/// backoff, and a renewal that is retried for too long would outlast its Lease.
async fn clients() -> anyhow::Result<(Client, Client)> {
    let mut config = Config::infer().await.context("find the API server: run in a pod or set KUBECONFIG")?;
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    let mut quick = config.clone();
    quick.read_timeout = Some(Duration::from_secs(5));
    let client = Client::try_from(config).context("build the client")?;
    let lease_client = Client::try_from(quick).context("build the client for the Lease")?;
    Ok((client, lease_client))
}
