//! The process: starts the parts, joins them, and ends. One thread, no flags: the Deployment's environment says what it
//! needs to know.

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

/// Works until SIGTERM or SIGINT.
///
/// Not async to its caller: a future is compiled where it is polled, and in the program it would take with it what this
/// crate has compiled already.
///
/// # Errors
/// If there is no way to the API server, or the port for health and metrics is taken.
#[tokio::main(flavor = "current_thread")]
pub async fn run() -> anyhow::Result<()> {
    // kube's client tells of each failed request as an error, beside whoever handles it and knows whether it matters.
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

    let (tell, leadership) = watch::channel(Leadership::Standby);
    let (stop_work, work_stops) = watch::channel(false);
    let (stop_election, election_stops) = watch::channel(false);
    let election = Election::new(lease_client, &me, metrics.clone());
    let reconciler = Reconciler {
        executor: Executor::new(client.clone(), &me, metrics.clone()),
        operator,
        metrics: metrics.clone(),
        health,
    };

    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let until_told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending");
        stop_work.send_replace(true);
        // Never returns: the work ends first, then the lease is released.
        std::future::pending::<()>().await;
    };
    let work = async {
        reconciler.run(start_watches(&client, &metrics), leadership, work_stops).await;
        stop_election.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = server => served.with_context(|| format!("serve health and metrics on {address}")),
        () = election.run(&tell, election_stops) => Ok(()),
        () = until_told => Ok(()),
        () = work => Ok(()),
    }
}

/// The client for everything, and one for the lease. Neither retries by itself: watches and plans back off on their
/// own, and a renewal that hangs in retries would outlive its lease.
async fn clients() -> anyhow::Result<(Client, Client)> {
    let mut config = Config::infer().await.context("find the API server: run in a pod, or set KUBECONFIG")?;
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    let mut quick = config.clone();
    quick.read_timeout = Some(Duration::from_secs(5));
    let client = Client::try_from(config).context("build the client")?;
    let lease_client = Client::try_from(quick).context("build the lease's client")?;
    Ok((client, lease_client))
}
