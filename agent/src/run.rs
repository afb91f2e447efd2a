//! The process: starts the threads and tasks, and runs the loop that joins them.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Context;
use kube::Client;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch as latest},
    time::{self, Instant as TokioInstant},
};
use towpath_core::model::{Family, Mac, NodeName};
use towpath_crds::names;
use towpath_dataplane::{
    conntrack::Conntrack,
    net::{KernelNet, NetListener},
    nft::{KernelNft, NftEvents},
};
use towpath_local::{Endpoints, Paths};
use towpath_node::{Identity, Input, Node, Now, Settings};
use towpath_podlink::sysctl::Sysctls;
use tracing::{error, info};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        SubscriberBuilder,
        format::{Format, Json, JsonFields},
    },
};

use crate::{
    cli::{Cli, Command},
    cni_server, config, conntrack,
    effects::{EffectExecutor, EffectHandles},
    foreign_firewall::{self, Pace},
    health,
    input::Arrival,
    install,
    kernel::{self, KernelHandles},
    metrics::Metrics,
    packet_log, ruleset, teardown, watch,
};

/// Where the host's `/proc/sys/net` is mounted: a container that is not privileged has its own read-only.
const HOST_SYSCTLS: &str = "/host/proc/sys/net";

/// Runs the command of the command line.
///
/// Not async for its caller: a future is compiled where it is polled, so the program would compile this crate's again.
///
/// # Errors
/// If a part cannot be started. What fails later is reported and tried again.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { node, config, command } = cli;
    let node = node.context("name the Node of this agent: --node or NODE_NAME");
    match command {
        Command::Run => until_stopped(&config, async |settings| serve(node?, settings).await),
        Command::Teardown => until_stopped(&config, async |settings| teardown::run(node?, settings.vni).await),
        Command::Ruleset { output } => ruleset::print(output),
    }
}

/// Works until the end or until SIGTERM or SIGINT.
#[tokio::main(flavor = "current_thread")]
async fn until_stopped(config: &Path, work: impl AsyncFnOnce(Settings) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let config = config::read(config)?;
    let settings = Settings::new(&config)?;
    // kube's client logs each failed request as an error, beside the caller, who knows whether it matters.
    let filter = EnvFilter::new(format!("{},kube_client::client::builder=off", config.log_level.as_filter()));
    log_format().with_env_filter(filter).init();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        ended = work(settings) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
    .inspect(|()| info!("ended; the kernel keeps the network and the policies"))
}

/// The format of the log: a JSON object per line, with the fields of an event at its top level.
pub(crate) fn log_format() -> SubscriberBuilder<JsonFields, Format<Json>> {
    tracing_subscriber::fmt().json().flatten_event(true)
}

/// Opens the handles to the kernel.
pub(crate) fn open_kernel(paths: &Paths) -> anyhow::Result<KernelHandles<KernelNet, KernelNft>> {
    let host = Path::new(HOST_SYSCTLS);
    let sysctls = if host.exists() { Sysctls::below(host) } else { Sysctls::default() };
    Ok(KernelHandles {
        net: KernelNet::open(sysctls).context("open route netlink")?,
        nft: KernelNft::open().context("open nf_tables")?,
        endpoints: Endpoints::new(paths),
    })
}

async fn serve(me: NodeName, settings: Settings) -> anyhow::Result<()> {
    let paths = Paths::default();
    let (to, mut arrivals) = mpsc::unbounded_channel::<Arrival>();
    // Listeners are opened before the first read-back, so that no change is missed between the two.
    let (net_listener, table_events) = (NetListener::open()?, NftEvents::open()?);
    let handles = open_kernel(&paths)?;
    info!(ownership = ?handles.nft.ownership(), "nf_tables opened");
    let pods = handles.pods().context("list the pods of this node")?;
    let jobs = kernel::spawn(handles, to.clone())?;
    tokio::spawn(kernel::listen_net(net_listener, to.clone()));
    kernel::listen_table(table_events, jobs.clone())?;
    let conntrack = conntrack::spawn([Conntrack::open()?, Conntrack::open()?], &to)?;
    packet_log::listen(to.clone())?;
    let jitter = jitter()?;
    let to_node = to.clone();
    let send = move |tables| to_node.send(Arrival::Input(Input::ForeignTables(tables))).is_ok();
    foreign_firewall::spawn(Pace::new(jitter), send).context("listen to changes of other programs' tables")?;

    let metrics = Arc::new(Metrics::default());
    let (readiness, is_ready) = latest::channel(Some("the agent has just started".to_owned()));
    let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, names::AGENT_PORT));
    if let Err(error) = health::spawn(addr, is_ready, Arc::clone(&metrics)) {
        error!(%addr, %error, "health and metrics are not served: check whether another process has the port");
    }
    let socket = cni_server::bind(&paths.socket()).context("listen for the CNI plugin")?;
    tokio::spawn(cni_server::serve(socket, to.clone()));
    let client =
        Client::try_default().await.context("find the API server: check that the ServiceAccount is mounted")?;
    watch::spawn(&client, &to);
    info!(node = %me, revision = settings.revision, pods = pods.len(), "started");

    let cni_files = install::spawn(paths, to)?;
    let handles = EffectHandles { kernel: jobs, conntrack, cni_files, metrics, readiness };
    let mut executor = EffectExecutor::new(client, me.clone(), handles);
    let identity = Identity { me, started_at: SystemTime::now(), macs: draw_macs()?, jitter };
    let mut node = Node::new(settings, identity, pods, Instant::now());
    let mut batch = Vec::new();
    loop {
        let wake = node.wake_at().map(TokioInstant::from_std);
        tokio::select! {
            _ = arrivals.recv_many(&mut batch, 1024) => {}
            () = sleep_until(wake) => {}
        }
        let now = Now { monotonic: Instant::now(), wall: SystemTime::now() };
        let inputs = batch.drain(..).map(|arrival| match arrival {
            Arrival::Input(input) => input,
            Arrival::Cni(request, sender) => executor.pending.register(request, sender),
        });
        for effect in node.step(&now, inputs) {
            executor.execute(effect)?;
        }
        executor.show(node.summary());
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
    getrandom::fill(&mut bytes).context("get random bytes")?;
    Ok(bytes)
}
