//! An agent without threads: the calling thread runs the node and the kernel jobs.

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use towpath_agent::kernel::KernelHandles;
use towpath_core::{
    model::{Family, Mac, NodeName},
    names::IfName,
    overlay::{IfIndex, Kernel, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget},
    ruleset::Transaction,
};
use towpath_dataplane::{
    net::FakeNet,
    nft::{KernelNft, Nft},
};
use towpath_local::{EndpointFile, Endpoints, Paths};
use towpath_node::{
    Effect, FlushedAddresses, Identity, Input, KernelJob, KernelResult, Node, Now, ReevaluateSummary, Settings,
};

use crate::cluster::{Cluster, LOCAL, address};

/// The cost of processing inputs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// From the first input to the commit; without a commit, until no effect is left.
    pub(crate) to_commit: Duration,
    /// The part of it in kernel jobs.
    pub(crate) kernel: Duration,
    /// The number of nf_tables transactions.
    pub(crate) writes: usize,
}

/// An agent with its table in a real kernel, and with fake links and routes.
pub(crate) struct Agent {
    node: Node,
    kernel: KernelHandles<FakeNet, KernelNft>,
    _dir: tempfile::TempDir,
}

impl Agent {
    /// Starts an agent on a node with the cluster's local pods.
    pub(crate) fn start(cluster: Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::new(&Paths::new(dir.path(), dir.path()));
        for n in 0..LOCAL {
            let file = endpoint(cluster, n);
            endpoints.write(&file.attachment().unwrap(), &file).unwrap();
        }
        let kernel = KernelHandles { net: FakeNet::new(uplink()), nft: KernelNft::open().unwrap(), endpoints };
        Self { node: new_node(&kernel), kernel, _dir: dir }
    }

    /// Restarts the agent: it has no objects and no cached state.
    pub(crate) fn restart(&mut self) {
        self.node = new_node(&self.kernel);
    }

    /// Deletes the table.
    pub(crate) fn delete_table(&mut self) {
        self.kernel.nft.apply(&Transaction::delete()).unwrap();
    }

    /// Feeds inputs and executes the effects until no input follows.
    pub(crate) fn feed(&mut self, inputs: Vec<Input>) -> Cost {
        let (start, mut cost) = (Instant::now(), Cost::default());
        let mut committed = None;
        let mut inputs = inputs;
        while !inputs.is_empty() {
            let effects = self.node.step(&now(), inputs.drain(..));
            for effect in effects {
                match effect {
                    Effect::Kernel(KernelJob::Read(part)) => inputs.push(Input::Kernel(self.kernel.read(part))),
                    Effect::Kernel(KernelJob::Apply(change)) => {
                        cost.writes += usize::from(!change.table.is_empty());
                        let applied = self.kernel.apply(&change);
                        applied.table.as_ref().unwrap();
                        cost.kernel += applied.took;
                        committed = Some(start.elapsed());
                        inputs.push(Input::Kernel(KernelResult::Applied(applied)));
                    }
                    Effect::InstallCni(network) => inputs.push(Input::CniInstalled(network, Ok(()))),
                    // There are no connections.
                    Effect::Reevaluate(_) => inputs.push(Input::Reevaluated(Ok(ReevaluateSummary::default()))),
                    Effect::Flush(flush) => {
                        let addresses = vec![flush.addresses];
                        inputs.push(Input::Flushed(FlushedAddresses { addresses, result: Ok(0) }));
                    }
                    // The node does not wait for these.
                    Effect::Reply(..)
                    | Effect::PatchNode(_)
                    | Effect::UpdateStatus(_)
                    | Effect::ReportPackets(_)
                    | Effect::Measure(_)
                    | Effect::Log(_) => {}
                }
            }
        }
        Cost { to_commit: committed.unwrap_or_else(|| start.elapsed()), ..cost }
    }
}

fn new_node(kernel: &KernelHandles<FakeNet, KernelNft>) -> Node {
    let config = json!({
        "podCIDRs": ["10.244.0.0/16"],
        "backend": {"vni": 1, "port": 8472, "directRouting": "Disabled"},
        "masquerade": {"mode": "Enabled"},
        "policy": {"mode": "Enforce"},
        "logLevel": "Info",
    });
    let settings = Settings::new(&serde_json::from_value(config).unwrap()).unwrap();
    let identity = Identity {
        me: NodeName("n1".to_owned()),
        started_at: now().wall,
        macs: [(Family::V4, Mac([2, 0, 0, 0, 0, 1]))].into(),
        jitter: 500,
    };
    Node::new(settings, identity, kernel.pods().unwrap(), Instant::now())
}

fn now() -> Now {
    Now { monotonic: Instant::now(), wall: SystemTime::now() }
}

fn endpoint(cluster: Cluster, n: u32) -> EndpointFile {
    let (namespace, pod) = cluster.pod_name(n);
    EndpointFile {
        container_id: format!("c-{n}"),
        ifname: IfName::new("eth0").unwrap(),
        netns: "/run/netns/x".into(),
        network: "k8s-pod-network".to_owned(),
        host_interface: IfName::of_pod(&namespace, &pod),
        namespace,
        pod_uid: Some(pod.clone()),
        pod,
        mtu: 1450,
        addresses: vec![address(n)],
    }
}

/// A kernel with an uplink and a default route.
fn uplink() -> Kernel {
    let mut kernel = Kernel::default();
    let link = Link {
        name: IfName::new("eth0").unwrap(),
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        mtu: 1500,
        state: LinkState::Up,
        kind: LinkKind::Other("veth".to_owned()),
    };
    kernel.links.insert(IfIndex(2), link);
    kernel.addresses.insert(IfIndex(2), vec!["192.0.2.1/24".parse().unwrap()]);
    let target = RouteTarget::Via { gateway: "192.0.2.254".parse().unwrap(), link: IfIndex(2) };
    let key = RouteKey { destination: "0.0.0.0/0".parse().unwrap(), metric: 0 };
    kernel.routes.insert(key, Route { target, owner: RouteOwner::Other(3) });
    kernel
}
