//! The peers of the overlay, and why other nodes are skipped.
//!
//! Conflict resolution: each podCIDR, public IP and VTEP MAC belongs to one node. If two nodes have the same value, the
//! oldest wins, by creation time and then by name, so that a new, misconfigured node does not affect the others. This
//! node takes precedence over all, because its own pods use its values.
//!
//! An update resolves only the nodes that have changed and the nodes that share a value with them, directly or through
//! other nodes. The result for all other nodes does not depend on the change.

mod exclusive_values;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use towpath_core::{
    delta::changes,
    model::{Family, Mac, NodeName, NodePeer, Vni},
};

use self::exclusive_values::{AssignedValues, ExclusiveValue, ValueIndex};
use crate::node::{NodeProblem, NodeRecord, PublishedVtep};

/// The peers of the overlay, and the nodes that are not peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeersByFamily {
    /// An entry for each family of the pod network, even without peers.
    pub families: BTreeMap<Family, FamilyPeers>,
    /// Invalid podCIDRs of Nodes, whether or not the node is a peer.
    pub problems: OrdMap<NodeName, Vec<NodeProblem>>,
}

/// The nodes in one family of the overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyPeers {
    /// The peers.
    pub peers: OrdMap<NodeName, NodePeer>,
    /// Nodes that cannot be peers, with the reason. Contains this node if its own podCIDR is invalid.
    pub skipped: OrdMap<NodeName, SkipReason>,
    /// New nodes that have no podCIDR or have not published a VTEP yet. Contains this node until it has a podCIDR.
    pub waiting: OrdSet<NodeName>,
}

/// Why a node is skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// The VTEP annotations of the Node are invalid.
    #[error("{0}")]
    Node(NodeProblem),
    /// The node publishes another VNI.
    #[error("it uses VNI {theirs} and this node uses VNI {ours}: set backend.vxlan.vni to the VNI of the other nodes")]
    OtherVni {
        /// The VNI that the node publishes.
        theirs: Vni,
        /// The VNI of this node.
        ours: Vni,
    },
    /// The podCIDR is not part of the pod network.
    #[error(
        "its podCIDR {cidr} is outside the pod network: add the range to podCIDRs, or delete the Node so that it gets \
another podCIDR"
    )]
    OutsideNetwork {
        /// The podCIDR of the node.
        cidr: IpNet,
    },
    /// The podCIDR overlaps with that of a node that takes precedence.
    #[error(
        "its podCIDR {cidr} overlaps with {other_cidr} of node {other}, which takes precedence: delete the Node so that \
it gets another podCIDR"
    )]
    Overlap {
        /// The podCIDR of the skipped node.
        cidr: IpNet,
        /// The podCIDR of the node that takes precedence.
        other_cidr: IpNet,
        /// The node that takes precedence.
        other: NodeName,
    },
    /// A node that takes precedence publishes the same public IP.
    #[error(
        "its public IP {address} is also that of node {other}, which takes precedence: correct the address, or delete the \
Node that no longer exists"
    )]
    SamePublicIp {
        /// The public IP of both nodes.
        address: IpAddr,
        /// The node that takes precedence.
        other: NodeName,
    },
    /// A node that takes precedence publishes the same VTEP MAC. An FDB entry can lead to one of them only.
    #[error(
        "its VTEP MAC {mac} is also that of node {other}, which takes precedence: delete the device flannel.<VNI> on the \
skipped node, so that it gets another MAC"
    )]
    SameMac {
        /// The VTEP MAC of both nodes.
        mac: Mac,
        /// The node that takes precedence.
        other: NodeName,
    },
}

/// Determines the peers from the Nodes of the cluster, incrementally.
#[derive(Debug)]
pub struct PeerResolver {
    me: NodeName,
    networks: Vec<IpNet>,
    vni: Vni,
    nodes: OrdMap<NodeName, Arc<NodeRecord>>,
    values: ValueIndex,
    /// How many nodes have each underlay address.
    underlay_users: BTreeMap<IpAddr, usize>,
    underlay: OrdSet<IpAddr>,
    view: PeersByFamily,
}

impl PeerResolver {
    /// A resolver without nodes. `networks` is the pod network, at most one CIDR per family; `vni` is this node's VNI.
    #[must_use]
    pub fn new(me: NodeName, networks: &[IpNet], vni: Vni) -> Self {
        let families = networks.iter().map(|net| (Family::of_net(*net), FamilyPeers::default())).collect();
        Self {
            me,
            networks: networks.to_vec(),
            vni,
            nodes: OrdMap::new(),
            values: ValueIndex::default(),
            underlay_users: BTreeMap::new(),
            underlay: OrdSet::new(),
            view: PeersByFamily { families, problems: OrdMap::new() },
        }
    }

    /// Updates the peers to these nodes.
    pub fn update(&mut self, nodes: &OrdMap<NodeName, Arc<NodeRecord>>) {
        let before = std::mem::replace(&mut self.nodes, nodes.clone());
        let mut changed = BTreeSet::new();
        let mut released = Vec::new();
        for (name, before, after) in changes(&before, nodes) {
            changed.insert(name.clone());
            if let Some(node) = before {
                let values = self.values_of(node);
                values.iter().for_each(|value| self.values.remove(value, name));
                released.extend(values);
                underlay_addresses(node).into_iter().for_each(|address| self.remove_underlay_address(address));
            }
            if let Some(node) = after {
                self.values_of(node).into_iter().for_each(|value| self.values.insert(value, name));
                underlay_addresses(node).into_iter().for_each(|address| self.add_underlay_address(address));
            }
            match after.map(|node| node.problems.clone()).filter(|problems| !problems.is_empty()) {
                Some(problems) => _ = self.view.problems.insert(name.clone(), problems),
                None => _ = self.view.problems.remove(name),
            }
        }
        let affected = self.affected(changed, released);
        self.resolve(&affected);
    }

    /// The result of the last update.
    #[must_use]
    pub const fn view(&self) -> &PeersByFamily {
        &self.view
    }

    /// The source addresses that overlay packets of the cluster's nodes can have, including those of this node.
    #[must_use]
    pub const fn underlay(&self) -> &OrdSet<IpAddr> {
        &self.underlay
    }

    fn add_underlay_address(&mut self, address: IpAddr) {
        let users = self.underlay_users.entry(address).or_default();
        *users += 1;
        if *users == 1 {
            self.underlay.insert(address);
        }
    }

    fn remove_underlay_address(&mut self, address: IpAddr) {
        let Some(users) = self.underlay_users.get_mut(&address) else { return };
        *users -= 1;
        if *users == 0 {
            self.underlay_users.remove(&address);
            self.underlay.remove(&address);
        }
    }

    /// The exclusive values of the node, whether it gets them or another node does.
    fn values_of(&self, node: &NodeRecord) -> Vec<ExclusiveValue> {
        let mut values = Vec::new();
        for family in self.view.families.keys() {
            values.extend(
                node.pod_cidrs
                    .get(family)
                    .filter(|cidr| self.is_inside(cidr))
                    .map(|cidr| ExclusiveValue::PodCidr(*cidr)),
            );
            if let Some(Ok(PublishedVtep { public_ip, backend })) = node.published.get(family) {
                values.push(ExclusiveValue::PublicIp(*public_ip));
                values.push(ExclusiveValue::Mac(*family, backend.vtep_mac));
            }
        }
        values
    }

    fn is_inside(&self, cidr: &IpNet) -> bool {
        self.networks.iter().any(|net| net.contains(cidr))
    }

    /// Extends `affected` by all nodes that share a value with them or have one of the values in `released`, transitively.
    fn affected(&self, mut affected: BTreeSet<NodeName>, released: Vec<ExclusiveValue>) -> BTreeSet<NodeName> {
        let values_of = |name: &NodeName| self.nodes.get(name).map(|node| self.values_of(node)).unwrap_or_default();
        let mut pending = released;
        pending.extend(affected.iter().flat_map(values_of));
        while let Some(value) = pending.pop() {
            for name in self.values.conflicting(&value, &self.networks) {
                if affected.insert(name.clone()) {
                    pending.extend(values_of(name));
                }
            }
        }
        affected
    }

    /// Resolves these nodes, which share no value with any other node.
    fn resolve(&mut self, affected: &BTreeSet<NodeName>) {
        let mut by_age: Vec<(&NodeName, &NodeRecord)> =
            affected.iter().filter_map(|name| Some((name, &**self.nodes.get(name)?))).collect();
        by_age.sort_by_key(|(name, node)| (**name != self.me, node.created.is_none(), &node.created, *name));
        for (family, view) in &mut self.view.families {
            for name in affected {
                view.remove(name);
            }
            let rule = PeerRule { me: &self.me, networks: &self.networks, vni: self.vni, family: *family };
            let mut assigned = AssignedValues::default();
            for (name, node) in &by_age {
                match rule.role(&mut assigned, name, node) {
                    Ok(Role::Own) => {}
                    Ok(Role::Waiting) => _ = view.waiting.insert((*name).clone()),
                    Ok(Role::Peer(peer)) => _ = view.peers.insert((*name).clone(), peer),
                    Err(reason) => _ = view.skipped.insert((*name).clone(), reason),
                }
            }
        }
    }
}

impl FamilyPeers {
    fn remove(&mut self, name: &NodeName) {
        self.peers.remove(name);
        self.skipped.remove(name);
        self.waiting.remove(name);
    }
}

/// The role of a node that is not skipped.
enum Role {
    /// This node.
    Own,
    /// A node that has not published everything yet.
    Waiting,
    Peer(NodePeer),
}

/// Determines the role of nodes in one family.
struct PeerRule<'a> {
    me: &'a NodeName,
    networks: &'a [IpNet],
    vni: Vni,
    family: Family,
}

impl PeerRule<'_> {
    /// The role of a node, after the nodes that take precedence have been assigned their values.
    fn role<'a>(
        &self,
        assigned: &mut AssignedValues<'a>,
        name: &'a NodeName,
        node: &NodeRecord,
    ) -> Result<Role, SkipReason> {
        let is_me = name == self.me;
        let Some(&cidr) = node.pod_cidrs.get(&self.family) else { return Ok(Role::Waiting) };
        if !self.networks.iter().any(|net| net.contains(&cidr)) {
            return Err(SkipReason::OutsideNetwork { cidr });
        }
        assigned.assign_pod_cidr(cidr, name)?;
        let PublishedVtep { public_ip, backend } = match node.published.get(&self.family) {
            Some(Ok(published)) => *published,
            Some(Err(_)) | None if is_me => return Ok(Role::Own),
            Some(Err(problem)) => return Err(SkipReason::Node(problem.clone())),
            None => return Ok(Role::Waiting),
        };
        assigned.assign_public_ip(public_ip, name)?;
        match backend.vni {
            Some(theirs) if theirs != self.vni && !is_me => {
                return Err(SkipReason::OtherVni { theirs, ours: self.vni });
            }
            Some(_) | None => {}
        }
        assigned.assign_mac(backend.vtep_mac, name)?;
        if is_me {
            return Ok(Role::Own);
        }
        Ok(Role::Peer(NodePeer { node: name.clone(), pod_cidr: cidr, public_ip, vtep_mac: backend.vtep_mac }))
    }
}

/// The source addresses that overlay packets of the node can have.
fn underlay_addresses(node: &NodeRecord) -> BTreeSet<IpAddr> {
    let public = node.published.values().filter_map(|published| published.as_ref().ok()).map(|p| p.public_ip);
    public.chain(node.internal_ips.iter().copied()).collect()
}
