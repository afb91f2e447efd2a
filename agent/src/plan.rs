//! From what is known of the cluster and what the kernel has, to what the node should have. Pure: no effect, no clock.

use std::{collections::BTreeMap, net::IpAddr};

use imbl::OrdSet;
use ipnet::IpNet;
use towpath_core::{
    model::{Family, Mac, NodeName},
    overlay::{
        InterfaceSpec, Kernel, LocalVtep, MtuError, Overlay, OverlayInput, OverlayPlanner, Uplink, UplinkError,
        UplinkQuery, choose_uplink, device_mtu,
    },
    policy::compile::Compiler,
    ruleset::Ruleset,
    table::{PolicyEnforcement, Table, TableInput},
};
use towpath_crds::network_config::PolicyMode;
use towpath_index::{
    AddressOverrides, Index, NodeProblem, NodeRecord, PeerResolver, PeersByFamily, SkipReason, flannel::VtepToPublish,
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
    pub own: BTreeMap<Family, LocalVtep>,
    /// What the peers are to be told.
    pub published: BTreeMap<Family, VtepToPublish>,
}

/// What the node should have, and what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The overlay; `None`: there cannot be one, and what there is stays as it is.
    pub path: Option<Path>,
    /// Why there is none, or why a family of it is missing.
    pub problem: Option<PathProblem>,
    /// The other nodes, as the cluster has them.
    pub peers: PeersByFamily,
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
    peers: PeerResolver,
    overlay: OverlayPlanner,
    compiler: Compiler,
    table: Table,
}

/// All of a path but the overlay.
struct Ground {
    uplink: Uplink,
    mtu: u32,
    own: BTreeMap<Family, LocalVtep>,
    published: BTreeMap<Family, VtepToPublish>,
}

impl Planner {
    /// One that has planned nothing yet.
    #[must_use]
    pub fn new(settings: &Settings, me: &NodeName) -> Self {
        Self {
            peers: PeerResolver::new(me.clone(), &settings.pod_cidrs, settings.vni),
            overlay: OverlayPlanner::default(),
            compiler: Compiler::new(settings.deny_log),
            table: Table::default(),
        }
    }

    /// What has made the policies' part of the last plan.
    #[must_use]
    pub const fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Decides. `None` until the index has synced.
    #[must_use]
    pub fn plan(&mut self, known: Known<'_>) -> Option<Plan> {
        let Known { settings, index, .. } = known;
        let snapshot = index.snapshot()?;
        self.peers.update(index.nodes()?);
        let peers = self.peers.view().clone();
        let (path, problem) = match known.ground(&peers) {
            Ok((ground, problem)) => (Some(self.path(known, &peers, ground)), problem),
            Err(problem) => (None, Some(problem)),
        };
        let node_addresses = self.node_addresses(path.as_ref());
        let own_node = index.own_node();
        let own_cidrs: Vec<IpNet> = own_node.into_iter().flat_map(|node| node.pod_cidrs.values().copied()).collect();
        let policy = match settings.policy {
            PolicyMode::Enforce => {
                self.compiler.update(snapshot, index.endpoints());
                PolicyEnforcement::Enforce(self.compiler.compiled())
            }
            PolicyMode::Off => PolicyEnforcement::Off,
        };
        self.table.update(TableInput {
            endpoints: index.endpoints(),
            cluster_pod_cidrs: &settings.pod_cidrs,
            node_pod_cidrs: &own_cidrs,
            node_addresses: &node_addresses,
            vxlan_port: settings.port,
            masquerade: settings.masquerade.clone(),
            source_to_nodes: settings.source_to_nodes(),
            policy,
        });
        Some(Plan { path, problem, peers, table: self.table.ruleset().clone() })
    }

    fn path(&mut self, known: Known<'_>, peers: &PeersByFamily, ground: Ground) -> Path {
        let Ground { uplink, mtu, own, published } = ground;
        self.overlay.update(&OverlayInput {
            vni: known.settings.vni,
            port: known.settings.port,
            mtu,
            uplink: &uplink,
            direct_routing: known.settings.direct_routing,
            families: &own,
            peers: &peers.families.iter().map(|(family, view)| (*family, view.peers.clone())).collect(),
            endpoints: known.index.endpoints(),
        });
        Path { overlay: self.overlay.overlay().clone(), uplink, mtu, own, published }
    }

    /// Where overlay packets come from: what Nodes say, and this node's own addresses before its Node says them.
    fn node_addresses(&self, path: Option<&Path>) -> OrdSet<IpAddr> {
        let mut addresses = self.peers.underlay().clone();
        for address in path.iter().flat_map(|path| path.uplink.addresses.values()) {
            addresses.insert(*address);
        }
        addresses
    }
}

impl Known<'_> {
    /// What the overlay stands on, and what is missing of it.
    fn ground(&self, peers: &PeersByFamily) -> Result<(Ground, Option<PathProblem>), PathProblem> {
        let node = self.index.own_node().ok_or_else(|| PathProblem::NoNode(self.me.clone()))?;
        let (cidrs, mut problems) = self.own_cidrs(node, peers);
        if cidrs.is_empty() {
            return Err(problems.pop().unwrap_or(PathProblem::NoPodCidr(Family::V4)));
        }
        let overrides = |family: &Family| Ok((*family, node.overrides(*family)?));
        let overrides: BTreeMap<Family, AddressOverrides> =
            cidrs.keys().map(overrides).collect::<Result<_, _>>().map_err(PathProblem::Annotation)?;
        let uplink = self.uplink(node, &overrides)?;
        let families: Vec<Family> = cidrs.keys().copied().collect();
        let mtu = device_mtu(uplink.mtu, self.settings.mtu, &families).map_err(PathProblem::Mtu)?;
        let own: BTreeMap<Family, LocalVtep> = cidrs
            .into_iter()
            // An uplink has an address of each family that was asked for, and a MAC is drawn for each family at start.
            .filter_map(|(family, pod_cidr)| {
                let (local, mac) = (*uplink.addresses.get(&family)?, self.mac(node, family)?);
                Some((family, LocalVtep { pod_cidr, local, mac }))
            })
            .collect();
        let published = own
            .iter()
            .map(|(family, own)| {
                let public_ip = overrides.get(family).and_then(|o| o.publish).unwrap_or(own.local);
                (*family, VtepToPublish { public_ip, vtep_mac: own.mac })
            })
            .collect();
        Ok((Ground { uplink, mtu, own, published }, problems.pop()))
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
    fn own_cidrs(&self, node: &NodeRecord, peers: &PeersByFamily) -> (BTreeMap<Family, IpNet>, Vec<PathProblem>) {
        let (mut cidrs, mut problems) = (BTreeMap::new(), Vec::new());
        for (family, view) in &peers.families {
            match (node.pod_cidrs.get(family), view.skipped.get(self.me)) {
                (Some(cidr), None) => {
                    cidrs.insert(*family, *cidr);
                }
                (Some(cidr), Some(reason)) => problems.push(PathProblem::PodCidr(*cidr, reason.clone())),
                (None, _) => problems.push(PathProblem::NoPodCidr(*family)),
            }
        }
        (cidrs, problems)
    }
}
