//! From what is known of the cluster and what the kernel has, to what the node should have. Pure: no effect, no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use towpath_core::{
    model::{Endpoint, Family, Mac, NodeName, Peer},
    names::IfName,
    overlay::{
        self, InterfaceSpec, Kernel, MtuError, Overlay, OverlayInput, OwnSide, PeerConflict, Uplink, UplinkError,
        UplinkQuery, choose_uplink, device_mtu,
    },
    policy::compile::Compiler,
    ruleset::Ruleset,
    table::{Policy, Table, TableInput},
};
use towpath_crds::network_config::PolicyMode;
use towpath_index::{
    AddressOverrides, Index, NodeProblem, NodeRecord, PeerView, SkipReason, Skipped, flannel::Published,
};

use crate::settings::Settings;

/// Why this node has no overlay, or only a part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// The API server does not have our Node.
    #[error("there is no Node of the name {0}: is the kubelet's --hostname-override the agent's NODE_NAME?")]
    NoNode(NodeName),
    /// Nobody has given the node its share.
    #[error(
        "the Node has no {0} podCIDR: run the controller manager with --allocate-node-cidrs, or set spec.podCIDRs of the Node"
    )]
    NoPodCidr(Family),
    /// Its share is none of ours.
    #[error("the Node's podCIDR {0} cannot be used: {1}")]
    PodCidr(IpNet, SkipReason),
    /// What the user told the node means nothing.
    #[error(transparent)]
    Annotation(NodeProblem),
    /// No link carries the overlay.
    #[error(transparent)]
    Uplink(UplinkError),
    /// Its packets do not fit.
    #[error(transparent)]
    Mtu(MtuError),
}

/// The overlay that this node should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// What should be in the kernel.
    pub overlay: Overlay,
    /// The link that carries it.
    pub uplink: Uplink,
    /// The MTU of devices and pods in bytes.
    pub mtu: u32,
    /// This node's side, by family.
    pub own: BTreeMap<Family, OwnSide>,
    /// What the peers are to be told.
    pub published: BTreeMap<Family, Published>,
    /// Peers that are left out because they contradict others.
    pub conflicts: Vec<PeerConflict>,
}

/// What the node should have, and what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The overlay; `None`: there cannot be one, and what there is stays as it is.
    pub path: Option<Arc<Path>>,
    /// Why there is none, or why a family of it is missing.
    pub problem: Option<PathProblem>,
    /// Peers by family, as the cluster has them.
    pub peers: Arc<PeerView>,
    /// Our table.
    pub table: Ruleset,
}

/// Everything that a plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// What the operator wants.
    pub settings: &'a Settings,
    /// This node.
    pub me: &'a NodeName,
    /// The cluster.
    pub index: &'a Index,
    /// The kernel, as far as it is not ours: links, addresses, default routes, and the MACs of devices that are there.
    pub have: &'a Kernel,
    /// The VTEPs' MACs to use where neither the kernel nor our own annotation has one.
    pub macs: &'a BTreeMap<Family, Mac>,
}

/// What of the last plan is kept for the next one, so that a plan costs what has changed. The plan is a function of what is
/// known all the same.
#[derive(Debug)]
pub struct Planner {
    compiler: Compiler,
    table: Table,
    overlay: Option<OverlaySide>,
}

/// How much may have changed since the last plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Anything.
    All,
    /// Pods, namespaces, policies and the pods' interfaces: no Node and nothing in the kernel.
    Policy,
}

/// All of a plan but the table.
#[derive(Debug, Clone)]
struct OverlaySide {
    peers: Arc<PeerView>,
    path: Option<Arc<Path>>,
    problem: Option<PathProblem>,
    node_addresses: OrdSet<IpAddr>,
    /// Those that the path was made for.
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
}

impl Planner {
    /// One that has planned nothing yet.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self { compiler: Compiler::new(settings.deny_log), table: Table::default(), overlay: None }
    }

    /// Decides. `None` until the index has synced.
    #[must_use]
    pub fn plan(&mut self, known: Known<'_>, scope: Scope) -> Option<Plan> {
        let Known { settings, index, .. } = known;
        let snapshot = index.snapshot()?;
        let still_good = |side: &&OverlaySide| scope == Scope::Policy && side.endpoints.ptr_eq(index.endpoints());
        let side = match self.overlay.as_ref().filter(still_good) {
            Some(side) => side.clone(),
            None => known.overlay_side()?,
        };
        self.overlay = Some(side.clone());
        let OverlaySide { peers, path, problem, node_addresses, .. } = side;
        let own_node = index.own_node();
        let own_cidrs: Vec<IpNet> = own_node.into_iter().flat_map(|node| node.pod_cidrs.values().copied()).collect();
        let policy = match settings.policy {
            PolicyMode::Enforce => {
                self.compiler.update(snapshot, index.endpoints());
                Policy::Enforce(self.compiler.part())
            }
            PolicyMode::Off => Policy::Off,
        };
        self.table.update(TableInput {
            endpoints: index.endpoints(),
            cluster_pod_cidrs: &settings.pod_cidrs,
            node_pod_cidrs: &own_cidrs,
            node_addresses: &node_addresses,
            vxlan_port: settings.port,
            masquerade: settings.masquerade.clone(),
            to_nodes: settings.to_nodes(),
            policy,
        });
        Some(Plan { path, problem, peers, table: self.table.ruleset().clone() })
    }
}

impl Known<'_> {
    fn overlay_side(&self) -> Option<OverlaySide> {
        let peers = self.index.peers(&self.settings.pod_cidrs, self.settings.vni)?;
        let mut node_addresses = self.index.underlay_addresses()?;
        let (path, problem) = match self.path(&peers) {
            Ok((path, problem)) => (Some(Arc::new(path)), problem),
            Err(problem) => (None, Some(problem)),
        };
        node_addresses.extend(path.iter().flat_map(|path| path.uplink.addresses.values().copied()));
        let endpoints = self.index.endpoints().clone();
        Some(OverlaySide { peers: Arc::new(peers), path, problem, node_addresses, endpoints })
    }

    /// The overlay, and what is missing of it.
    fn path(&self, peers: &PeerView) -> Result<(Path, Option<PathProblem>), PathProblem> {
        let node = self.index.own_node().ok_or_else(|| PathProblem::NoNode(self.me.clone()))?;
        let (cidrs, mut problems) = self.own_cidrs(node, &peers.skipped);
        if cidrs.is_empty() {
            return Err(problems.pop().unwrap_or(PathProblem::NoPodCidr(Family::V4)));
        }
        let overrides = |family: &Family| Ok((*family, node.overrides(*family)?));
        let overrides: BTreeMap<Family, AddressOverrides> =
            cidrs.keys().map(overrides).collect::<Result<_, _>>().map_err(PathProblem::Annotation)?;
        let uplink = self.uplink(node, &overrides)?;
        let families: Vec<Family> = cidrs.keys().copied().collect();
        let mtu = device_mtu(uplink.mtu, self.settings.mtu, &families).map_err(PathProblem::Mtu)?;
        let own: BTreeMap<Family, OwnSide> = cidrs
            .into_iter()
            // An uplink has an address of each family that was asked for, and a MAC is drawn for each family at start.
            .filter_map(|(family, pod_cidr)| {
                let (local, mac) = (*uplink.addresses.get(&family)?, self.mac(node, family)?);
                Some((family, OwnSide { pod_cidr, local, mac }))
            })
            .collect();
        let published = own
            .iter()
            .map(|(family, own)| {
                let public_ip = overrides.get(family).and_then(|o| o.publish).unwrap_or(own.local);
                (*family, Published { public_ip, vtep_mac: own.mac })
            })
            .collect();
        let all_peers: Vec<Peer> = peers.peers.values().flatten().cloned().collect();
        let endpoints: Vec<Endpoint> =
            self.index.endpoints().values().map(|endpoint| Endpoint::clone(endpoint)).collect();
        let (overlay, conflicts) = overlay::want(&OverlayInput {
            node: self.me,
            vni: self.settings.vni,
            port: self.settings.port,
            mtu,
            uplink: &uplink,
            direct_routing: self.settings.direct_routing,
            families: &own,
            peers: &all_peers,
            endpoints: &endpoints,
        });
        Ok((Path { overlay, uplink, mtu, own, published, conflicts }, problems.pop()))
    }

    /// The link that carries the overlay: where the user's annotation says so, else as configured.
    fn uplink(&self, node: &NodeRecord, overrides: &BTreeMap<Family, AddressOverrides>) -> Result<Uplink, PathProblem> {
        let local: Vec<IpAddr> = overrides.values().filter_map(|o| o.local).collect();
        let configured = || self.settings.interface.clone();
        let spec = local.first().map_or_else(configured, |address| InterfaceSpec::Address(*address));
        let families: Vec<Family> = overrides.keys().copied().collect();
        let prefer: Vec<IpAddr> = local.iter().chain(&node.internal_ips).copied().collect();
        let query = UplinkQuery { spec: &spec, families: &families, prefer: &prefer };
        choose_uplink(self.have, query).map_err(PathProblem::Uplink)
    }

    /// The live device's MAC, else the one that the peers know, else the one drawn at start.
    fn mac(&self, node: &NodeRecord, family: Family) -> Option<Mac> {
        let announced = || Some(node.published.get(&family)?.as_ref().ok()?.backend.vtep_mac);
        let live = self.have.overlay_mac(family, self.settings.vni);
        live.or_else(announced).or_else(|| self.macs.get(&family).copied())
    }

    /// The node's usable podCIDRs, and why others are not.
    fn own_cidrs(&self, node: &NodeRecord, skipped: &[Skipped]) -> (BTreeMap<Family, IpNet>, Vec<PathProblem>) {
        let families: BTreeSet<Family> = self.settings.pod_cidrs.iter().map(|net| Family::of_net(*net)).collect();
        let (mut cidrs, mut problems) = (BTreeMap::new(), Vec::new());
        for family in families {
            let reason = skipped.iter().find(|s| s.node == *self.me && s.family == family).map(|s| s.reason.clone());
            match (node.pod_cidrs.get(&family), reason) {
                (Some(cidr), None) => {
                    cidrs.insert(family, *cidr);
                }
                (Some(cidr), Some(reason)) => problems.push(PathProblem::PodCidr(*cidr, reason)),
                (None, _) => problems.push(PathProblem::NoPodCidr(family)),
            }
        }
        (cidrs, problems)
    }
}
