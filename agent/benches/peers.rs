//! The time that `Node::step` needs to plan the change for an added peer, a deleted peer and a local pod, by number of
//! peers, and to process its result. `cargo bench -p towpath-agent` prints median, minimum and maximum; it has no pass
//! or fail. The kernel's time is not included.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node as KubeNode;
use serde_json::{Value, json};
use towpath_agent::{kernel::KernelHandles, local_pod};
use towpath_core::{
    model::{Family, Mac, NodeName},
    names::IfName,
    overlay::{IfIndex, Kernel, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget},
};
use towpath_dataplane::{net::FakeNet, nft::fake::FakeNft};
use towpath_index::{Event, ObjectChange};
use towpath_local::{EndpointFile, Endpoints, Paths};
use towpath_node::{
    CniRequest, Effect, Identity, Input, KernelChange, KernelJob, KernelResult, Node, Now, Settings, Ticket,
};

const LEVELS: [usize; 4] = [10, 100, 1_000, 5_000];
const RUNS: usize = 31;

fn main() -> Result<()> {
    for level in LEVELS {
        let mut harness = Harness::new()?;
        println!("{level} peers: {:.1} ms from an empty state", millis(harness.run(cluster(level)?)));
        let mut added = Sample::default();
        let mut deleted_peer = Sample::default();
        let mut pod = Sample::default();
        for n in 0..RUNS {
            added.push(harness.change(Input::Watch(applied(peer(level))?))?);
            deleted_peer.push(harness.change(Input::Watch(deleted(peer(level))?))?);
            pod.push(harness.add_pod(n)?);
        }
        added.report("one peer added");
        deleted_peer.report("one peer deleted");
        pod.report("one local pod added");
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Times of one kind of change: to plan it, and to process its result.
#[derive(Default)]
struct Sample {
    planned: Vec<Duration>,
    processed: Vec<Duration>,
}

impl Sample {
    fn push(&mut self, (planned, processed): (Duration, Duration)) {
        self.planned.push(planned);
        self.processed.push(processed);
    }

    fn report(self, what: &str) {
        let spread = |mut times: Vec<Duration>| {
            times.sort_unstable();
            let at = |n: usize| times.get(n).copied().map_or(0.0, millis);
            format!("{:.3} ms ({:.3} to {:.3})", at(times.len() / 2), at(0), at(times.len().saturating_sub(1)))
        };
        println!("  {what}: planned in {}, result processed in {}", spread(self.planned), spread(self.processed));
    }
}

/// A node and a fake kernel.
struct Harness {
    node: Node,
    kernel: KernelHandles<FakeNet, FakeNft>,
    now: Now,
    _dir: tempfile::TempDir,
}

impl Harness {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let identity = Identity {
            me: NodeName("me".to_owned()),
            started_at: now.wall,
            macs: BTreeMap::from([(Family::V4, Mac([2, 0, 0, 0, 0, 1]))]),
            jitter: 500,
        };
        let endpoints = Endpoints::new(&Paths::new(dir.path(), dir.path()));
        let kernel = KernelHandles { net: FakeNet::new(kernel()?), nft: FakeNft::default(), endpoints };
        let node = Node::new(settings()?, identity, Vec::new(), now.monotonic);
        Ok(Self { node, kernel, now, _dir: dir })
    }

    /// Feeds inputs and executes the effects until no input follows. Returns the time in `Node::step`.
    fn run(&mut self, mut inputs: Vec<Input>) -> Duration {
        let mut time = Duration::ZERO;
        while !inputs.is_empty() {
            let start = Instant::now();
            let effects = self.node.step(&self.now, inputs.drain(..));
            time += start.elapsed();
            inputs = effects.into_iter().filter_map(|effect| self.execute(effect)).collect();
        }
        time
    }

    fn execute(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Kernel(KernelJob::Read(part)) => Some(Input::Kernel(self.kernel.read(part))),
            Effect::Kernel(KernelJob::Apply(change)) => {
                Some(Input::Kernel(KernelResult::Applied(self.kernel.apply(&change))))
            }
            Effect::InstallCni(network) => Some(Input::CniInstalled(network, Ok(()))),
            _ => None,
        }
    }

    /// Feeds one input that causes one kernel change. Returns the time to plan the change and to process its result.
    fn change(&mut self, input: Input) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        let effects = self.node.step(&self.now, [input]);
        let planned = start.elapsed();
        let change = kernel_change(effects)?;
        let result = Input::Kernel(KernelResult::Applied(self.kernel.apply(&change)));
        let start = Instant::now();
        let effects = self.node.step(&self.now, [result]);
        let processed = start.elapsed();
        let left: Vec<Input> = effects.into_iter().filter_map(|effect| self.execute(effect)).collect();
        ensure!(left.is_empty(), "more inputs follow: {left:?}");
        Ok((planned, processed))
    }

    fn add_pod(&mut self, n: usize) -> Result<(Duration, Duration)> {
        let name = format!("pod-{n}");
        let pod = json!({ "metadata": { "namespace": "default", "name": name }, "spec": { "containers": [] } });
        self.run(vec![Input::Watch(Event::Pod(Box::new(ObjectChange::Applied(serde_json::from_value(pod)?))))]);
        let endpoint = EndpointFile {
            container_id: name.clone(),
            ifname: IfName::new("eth0")?,
            netns: PathBuf::from("/run/netns/x"),
            network: "k8s-pod-network".to_owned(),
            namespace: "default".to_owned(),
            host_interface: IfName::of_pod("default", &name),
            pod: name,
            pod_uid: None,
            mtu: 1450,
            addresses: vec![format!("10.0.0.{}", n + 2).parse()?],
        };
        self.change(Input::Cni(Ticket(n as u64), CniRequest::Add(local_pod(&endpoint)?)))
    }
}

fn kernel_change(effects: Vec<Effect>) -> Result<KernelChange> {
    for effect in effects {
        if let Effect::Kernel(KernelJob::Apply(change)) = effect {
            return Ok(change);
        }
    }
    bail!("no kernel change")
}

fn settings() -> Result<Settings> {
    let config = json!({
        "podCIDRs": ["10.0.0.0/8"],
        "backend": { "vni": 1, "port": 8472, "directRouting": "Disabled" },
        "masquerade": { "mode": "Enabled" },
        "policy": { "mode": "Enforce" },
        "logLevel": "Info",
    });
    Ok(Settings::new(&serde_json::from_value(config)?)?)
}

/// A kernel with an uplink and a default route through it.
fn kernel() -> Result<Kernel> {
    let uplink = IfIndex(2);
    let mut kernel = Kernel::default();
    let link = Link {
        name: IfName::new("eth0")?,
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        mtu: 1500,
        state: LinkState::Up,
        kind: LinkKind::Other("veth".to_owned()),
    };
    kernel.links.insert(uplink, link);
    kernel.addresses.insert(uplink, vec!["192.0.2.1/24".parse()?]);
    let target = RouteTarget::Via { gateway: "192.0.2.254".parse()?, link: uplink };
    kernel.routes.insert(
        RouteKey { destination: "0.0.0.0/0".parse()?, metric: 0 },
        Route { target, owner: RouteOwner::Other(3) },
    );
    Ok(kernel)
}

fn node(name: &str, range: &str, annotations: &Value) -> Value {
    json!({ "metadata": { "name": name, "uid": name, "annotations": annotations }, "spec": { "podCIDRs": [range] } })
}

/// The Node object of peer n, with the podCIDR 10.x.y.0/24 where x.y is n + 1.
fn peer(n: usize) -> Value {
    let (high, low) = ((n + 1) >> 8, (n + 1) & 0xff);
    let annotations = json!({
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#),
        "flannel.alpha.coreos.com/public-ip": format!("172.16.{high}.{low}"),
    });
    node(&format!("peer-{n}"), &format!("10.{high}.{low}.0/24"), &annotations)
}

fn read(node: Value) -> Result<KubeNode> {
    serde_json::from_value(node).context("a Node")
}

fn applied(node: Value) -> Result<Event> {
    Ok(Event::Node(Box::new(ObjectChange::Applied(read(node)?))))
}

fn deleted(node: Value) -> Result<Event> {
    Ok(Event::Node(Box::new(ObjectChange::Deleted(read(node)?))))
}

/// The list events of this node, its peers and one namespace, without pods and policies.
fn cluster(peers: usize) -> Result<Vec<Input>> {
    let me = node("me", "10.0.0.0/24", &json!({}));
    let nodes: Vec<KubeNode> = std::iter::once(me).chain((0..peers).map(peer)).map(read).collect::<Result<_>>()?;
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "default" } }))?;
    let mut inputs = listed(Event::Node, nodes);
    inputs.extend(listed(Event::Namespace, vec![namespace]));
    inputs.extend(listed(Event::Pod, Vec::new()));
    inputs.extend(listed(Event::NetworkPolicy, Vec::new()));
    Ok(inputs)
}

fn listed<K>(event: fn(Box<ObjectChange<K>>) -> Event, objects: Vec<K>) -> Vec<Input> {
    let mut changes = vec![ObjectChange::ListStarted];
    changes.extend(objects.into_iter().map(ObjectChange::Listed));
    changes.push(ObjectChange::ListDone);
    changes.into_iter().map(|change| Input::Watch(event(Box::new(change)))).collect()
}
