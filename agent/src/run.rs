//! The process: starts the parts, joins them, and ends.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch as latest},
    time::{self, Instant as TokioInstant},
};
use towpath_core::model::{Family, Mac};
use towpath_crds::names;
use towpath_dataplane::{
    conntrack::Conntrack,
    net::{KernelNet, NetListener},
    nft::{KernelNft, NftEvents},
};
use towpath_local::{Endpoints, Paths};
use towpath_podlink::sysctl::Sysctls;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{Cli, Command},
    cni_server, connections,
    effects::{Edges, Hands},
    health,
    input::Input,
    kernel::{self, Reach},
    metrics::Metrics,
    node::{Identity, Node, Now},
    packet_log,
    settings::Settings,
    teardown, watch,
};

/// Where the host's `/proc/sys/net` is mounted: a container that is not privileged has its own read-only.
const HOST_SYSCTLS: &str = "/host/proc/sys/net";

/// Does what the command line says, until SIGTERM or SIGINT.
///
/// Not async to its caller: a future is compiled where it is polled, and in the program it would take with it what this
/// crate has compiled already.
///
/// # Errors
/// If a part cannot be started. What fails later is tried again and reported, not an end.
#[tokio::main(flavor = "current_thread")]
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let settings = Settings::read(&cli.config)?;
    // kube's client tells of each failed request as an error, beside whoever handles it and knows whether it matters.
    let filter = EnvFilter::new(format!("{},kube_client::client::builder=off", settings.log_filter));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let work = async {
        match cli.command {
            Command::Run => serve(cli, settings).await,
            Command::Teardown => teardown::run(cli.node, settings.vni).await,
        }
    };
    tokio::select! {
        ended = work => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
    .inspect(|()| info!("ended; the network stays as it is"))
}

/// Opens the kernel as this process reaches it.
pub(crate) fn reach(paths: &Paths) -> anyhow::Result<Reach<KernelNet, KernelNft>> {
    let host = std::path::Path::new(HOST_SYSCTLS);
    let sysctls = if host.exists() { Sysctls::below(host) } else { Sysctls::default() };
    Ok(Reach {
        net: KernelNet::open(sysctls).context("open route netlink")?,
        nft: KernelNft::open().context("open nf_tables")?,
        endpoints: Endpoints::new(paths),
    })
}

async fn serve(cli: Cli, settings: Settings) -> anyhow::Result<()> {
    let paths = Paths::default();
    let (to, mut inputs) = mpsc::unbounded_channel::<Input>();
    // Listening begins before the first read-back, so that no change falls between the two.
    let (net_listener, table_events) = (NetListener::open()?, NftEvents::open()?);
    let reach = reach(&paths)?;
    info!(ownership = ?reach.nft.ownership(), "opened the kernel");
    let pods = reach.endpoints.list().context("list the pods of this node")?.endpoints;
    let jobs = kernel::spawn(reach, to.clone())?;
    tokio::spawn(kernel::listen_net(net_listener, to.clone()));
    kernel::listen_table(table_events, jobs.clone())?;
    let connections = connections::spawn([Conntrack::open()?, Conntrack::open()?], &to)?;
    packet_log::listen(to.clone())?;

    let metrics = Arc::new(Metrics::default());
    let (readiness, is_ready) = latest::channel(Some("the agent has just started".to_owned()));
    let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, names::AGENT_PORT));
    let serving = health::serve(addr, is_ready, Arc::clone(&metrics));
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            error!(%addr, %error, "health and metrics are not served: is the port another process's?");
        }
    });
    let socket = cni_server::bind(&paths.socket()).context("listen for the CNI plugin")?;
    tokio::spawn(cni_server::serve(socket, to.clone()));
    let client = Client::try_default().await.context("find the API server: is the ServiceAccount mounted?")?;
    watch::spawn(&client, &to);
    info!(node = %cli.node, revision = settings.revision, pods = pods.len(), "started");

    let mut hands =
        Hands::new(client, cli.node.clone(), Edges { paths, jobs, connections, metrics, readiness, inputs: to });
    let identity = Identity { me: cli.node, started_at: Time(Timestamp::now()), macs: draw_macs()?, jitter: jitter()? };
    let mut node = Node::new(settings, identity, pods, Instant::now());
    let mut batch = Vec::new();
    loop {
        let wake = node.wake_at().map(TokioInstant::from_std);
        tokio::select! {
            _ = inputs.recv_many(&mut batch, 1024) => {}
            () = sleep_until(wake) => {}
        }
        let now = Now { instant: Instant::now(), time: Time(Timestamp::now()) };
        for effect in node.step(&now, batch.drain(..)) {
            hands.carry_out(effect)?;
        }
        hands.show(&node);
    }
}

async fn sleep_until(wake: Option<TokioInstant>) {
    match wake {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn draw_macs() -> anyhow::Result<BTreeMap<Family, Mac>> {
    Family::ALL.into_iter().map(|family| Ok((family, Mac::locally_administered(draw()?)))).collect()
}

fn jitter() -> anyhow::Result<u32> {
    Ok(u32::from(u16::from_ne_bytes(draw()?)) % 1000)
}

/// Random bytes from the kernel.
fn draw<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = |bytes: &mut [u8]| -> io::Result<()> { File::open("/dev/urandom")?.read_exact(bytes) };
    read(&mut bytes).inspect_err(|error| warn!(%error, "no random bytes")).context("read /dev/urandom")?;
    Ok(bytes)
}
