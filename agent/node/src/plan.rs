//! The planner: from what is known of the cluster and of the kernel to what this node should have.

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

/// Why this node has no overlay, or lacks a family of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverlayProblem {
    /// The API server does not list our Node.
    #[error("no Node is named {0}: set NODE_NAME of the agent to the kubelet's --hostname-override")]
    NoNode(NodeName),
    /// The Node has no podCIDR of a family that `spec.podCIDRs` has.
    #[error(
        "the Node has no {0} podCIDR: run the controller manager with --allocate-node-cidrs, or set spec.podCIDRs of the Node"
    )]
    NoPodCidr(Family),
    /// The Node's podCIDR conflicts with the pod network or with another node.
    #[error("this Node cannot be part of the overlay: {1}")]
    PodCidr(IpNet, SkipReason),
    /// An annotation by which the user overrides an address is malformed.
    #[error(transparent)]
    Annotation(NodeProblem),
    /// No link can carry the overlay.
    #[error(transparent)]
    Uplink(UplinkError),
    /// Encapsulated packets exceed the uplink's MTU.
    #[error(transparent)]
    Mtu(MtuError),
}

/// The overlay that this node should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayPlan {
    /// Devices, neighbours, FDB entries and routes.
    pub overlay: Overlay,
    /// The link that carries it.
    pub uplink: Uplink,
    /// The MTU of the devices and of pods, in bytes.
    pub mtu: u32,
    /// This node's podCIDR, underlay address and VTEP MAC, by family.
    pub own: BTreeMap<Family, LocalVtep>,
    /// What our Node announces to its peers, by family.
    pub published: BTreeMap<Family, VtepToPublish>,
}

/// What the node should have, and what prevents it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The overlay; `None`: none can be planned, and what the kernel has stays.
    pub overlay: Option<OverlayPlan>,
    /// Why there is none, or why it lacks a family.
    pub problem: Option<OverlayProblem>,
    /// The other nodes, as the cluster has them.
    pub peers: PeersByFamily,
    /// Our nftables table.
    pub table: Ruleset,
}

/// Everything that a plan depends on.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// The agent's configuration.
    pub settings: &'a Settings,
    /// This node.
    pub me: &'a NodeName,
    /// The cluster.
    pub index: &'a Index,
    /// The kernel: links, addresses and default routes for the choice of the uplink, and the MACs of live devices.
    pub have: &'a Kernel,
    /// VTEP MACs for families where neither the kernel nor our Node's annotation has one.
    pub macs: &'a BTreeMap<Family, Mac>,
}

/// Plans incrementally: it keeps parts of the last plan, so that a plan costs what has changed. The result depends on the
/// input only.
#[derive(Debug)]
pub struct Planner {
    peers: PeerResolver,
    overlay: OverlayPlanner,
    compiler: Compiler,
    table: Table,
}

/// What the overlay is built on: all of an [`OverlayPlan`] but the overlay.
struct Underlay {
    uplink: Uplink,
    mtu: u32,
    own: BTreeMap<Family, LocalVtep>,
    published: BTreeMap<Family, VtepToPublish>,
}

impl Planner {
    /// A planner that has planned nothing yet.
    #[must_use]
    pub fn new(settings: &Settings, me: &NodeName) -> Self {
        Self {
            peers: PeerResolver::new(me.clone(), &settings.pod_cidrs, settings.vni),
            overlay: OverlayPlanner::default(),
            compiler: Compiler::new(settings.deny_log),
            table: Table::default(),
        }
    }

    /// The policy compiler, as of the last plan.
    #[must_use]
    pub const fn compiler(&self) -> &Compiler {
        &self.compiler
    }

    /// Plans; `None` until the index has synced.
    #[must_use]
    pub fn plan(&mut self, input: PlanInput<'_>) -> Option<Plan> {
        let PlanInput { settings, index, .. } = input;
        let snapshot = index.snapshot()?;
        self.peers.update(index.nodes()?);
        let peers = self.peers.view().clone();
        let (overlay, problem) = match input.underlay(&peers) {
            Ok((underlay, problem)) => (Some(self.overlay(input, &peers, underlay)), problem),
            Err(problem) => (None, Some(problem)),
        };
        let node_addresses = self.node_addresses(overlay.as_ref());
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
        Some(Plan { overlay, problem, peers, table: self.table.ruleset().clone() })
    }

    fn overlay(&mut self, input: PlanInput<'_>, peers: &PeersByFamily, underlay: Underlay) -> OverlayPlan {
        let Underlay { uplink, mtu, own, published } = underlay;
        self.overlay.update(&OverlayInput {
            vni: input.settings.vni,
            port: input.settings.port,
            mtu,
            uplink: &uplink,
            direct_routing: input.settings.direct_routing,
            families: &own,
            peers: &peers.families.iter().map(|(family, view)| (*family, view.peers.clone())).collect(),
            endpoints: input.index.endpoints(),
        });
        OverlayPlan { overlay: self.overlay.overlay().clone(), uplink, mtu, own, published }
    }

    /// The addresses that overlay packets may come from: those that Nodes publish, and this node's own, which its Node
    /// may not have yet.
    fn node_addresses(&self, overlay: Option<&OverlayPlan>) -> OrdSet<IpAddr> {
        let mut addresses = self.peers.underlay().clone();
        for address in overlay.iter().flat_map(|overlay| overlay.uplink.addresses.values()) {
            addresses.insert(*address);
        }
        addresses
    }
}

impl PlanInput<'_> {
    /// The underlay, and the problem of a family that is missing.
    fn underlay(&self, peers: &PeersByFamily) -> Result<(Underlay, Option<OverlayProblem>), OverlayProblem> {
        let node = self.index.own_node().ok_or_else(|| OverlayProblem::NoNode(self.me.clone()))?;
        let (cidrs, mut problems) = self.own_cidrs(node, peers);
        if cidrs.is_empty() {
            return Err(problems.pop().unwrap_or(OverlayProblem::NoPodCidr(Family::V4)));
        }
        let overrides = |family: &Family| Ok((*family, node.overrides(*family)?));
        let overrides: BTreeMap<Family, AddressOverrides> =
            cidrs.keys().map(overrides).collect::<Result<_, _>>().map_err(OverlayProblem::Annotation)?;
        let uplink = self.uplink(node, &overrides)?;
        let families: Vec<Family> = cidrs.keys().copied().collect();
        let mtu = device_mtu(uplink.mtu, self.settings.mtu, &families).map_err(OverlayProblem::Mtu)?;
        let own: BTreeMap<Family, LocalVtep> = cidrs
            .into_iter()
            // The uplink has an address of each family that was asked for, and a MAC is drawn for each family at start.
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
        Ok((Underlay { uplink, mtu, own, published }, problems.pop()))
    }

    /// The link that carries the overlay: the one with the annotated address, else as configured.
    fn uplink(
        &self,
        node: &NodeRecord,
        overrides: &BTreeMap<Family, AddressOverrides>,
    ) -> Result<Uplink, OverlayProblem> {
        let local: Vec<IpAddr> = overrides.values().filter_map(|o| o.local).collect();
        let configured = || self.settings.interface.clone();
        let spec = local.first().map_or_else(configured, |address| InterfaceSpec::Address(*address));
        let families: Vec<Family> = overrides.keys().copied().collect();
        let prefer: Vec<IpAddr> = local.iter().chain(&node.internal_ips).copied().collect();
        let query = UplinkQuery { spec: &spec, families: &families, prefer: &prefer };
        choose_uplink(self.have, query).map_err(OverlayProblem::Uplink)
    }

    /// The VTEP MAC: the live device's, else the one that our Node announces, else the one drawn at start.
    fn mac(&self, node: &NodeRecord, family: Family) -> Option<Mac> {
        let announced = || Some(node.published.get(&family)?.as_ref().ok()?.backend.vtep_mac);
        let live = self.have.overlay_mac(family, self.settings.vni);
        live.or_else(announced).or_else(|| self.macs.get(&family).copied())
    }

    /// The node's usable podCIDRs, and the problems of the others.
    fn own_cidrs(&self, node: &NodeRecord, peers: &PeersByFamily) -> (BTreeMap<Family, IpNet>, Vec<OverlayProblem>) {
        let (mut cidrs, mut problems) = (BTreeMap::new(), Vec::new());
        for (family, view) in &peers.families {
            match (node.pod_cidrs.get(family), view.skipped.get(self.me)) {
                (Some(cidr), None) => {
                    cidrs.insert(*family, *cidr);
                }
                (Some(cidr), Some(reason)) => problems.push(OverlayProblem::PodCidr(*cidr, reason.clone())),
                (None, _) => problems.push(OverlayProblem::NoPodCidr(*family)),
            }
        }
        (cidrs, problems)
    }
}
