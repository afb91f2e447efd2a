//! Which nodes the overlay connects, and why some are left out.
//!
//! Every node decides the same from the same Nodes: what two nodes claim belongs to the older one, by creation and then
//! by name, so that a newcomer with a mistake takes nothing away from the others. One's own claims come before all,
//! because its own pods are there.
//!
//! A change costs what it touches: decided anew are the nodes that have changed, and those that claim anything that they
//! or such nodes claim or claimed. Nobody else's lot hangs on them. From nothing that is all nodes, by the same rule.

mod claim;

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

use self::claim::{AssignedValues, ExclusiveValue, ValueHolders};
use crate::node::{NodeProblem, NodeRecord, PublishedVtep};

/// The other nodes, as the overlay should know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeersByFamily {
    /// The families of the pod network, even without peers.
    pub families: BTreeMap<Family, FamilyPeers>,
    /// Parts of Nodes that cannot be used, whether the node is connected or not.
    pub problems: OrdMap<NodeName, Vec<NodeProblem>>,
}

/// The other nodes in one family of the overlay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyPeers {
    /// Those that can be connected.
    pub peers: OrdMap<NodeName, NodePeer>,
    /// Those that cannot, with the reason. This node itself is here if its own podCIDR is the trouble.
    pub skipped: OrdMap<NodeName, SkipReason>,
    /// Those that have no podCIDR yet, or have not published where they are: they are new. This node, too, until it has one.
    pub waiting: OrdSet<NodeName>,
}

/// Why a node is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// Its object cannot be used.
    #[error("{0}")]
    Node(NodeProblem),
    /// It has another VNI.
    #[error("it uses VNI {theirs} where this node uses {ours}: set backend.vxlan.vni to the number of the other nodes")]
    OtherVni {
        /// The node's.
        theirs: Vni,
        /// Ours.
        ours: Vni,
    },
    /// Its podCIDR is not in the pod network.
    #[error(
        "its podCIDR {cidr} lies outside of the pod network: add the range to podCIDRs, or delete the Node so that it gets another"
    )]
    OutsideNetwork {
        /// Its podCIDR.
        cidr: IpNet,
    },
    /// Its podCIDR has addresses in common with an older node's.
    #[error(
        "its podCIDR {cidr} overlaps with {other_cidr} of node {other}, which has it longer: delete the Node so that it gets another"
    )]
    Overlap {
        /// Its podCIDR.
        cidr: IpNet,
        /// The other node's.
        other_cidr: IpNet,
        /// The other node.
        other: NodeName,
    },
    /// An older node publishes the same address.
    #[error(
        "it publishes {address} as node {other} does, which has it longer: correct the address, or delete the Node that is gone"
    )]
    SamePublicIp {
        /// The address.
        address: IpAddr,
        /// The other node.
        other: NodeName,
    },
    /// An older node publishes the same MAC: frames for one would go to the other.
    #[error(
        "it publishes the VTEP MAC {mac} as node {other} does, which has it longer: delete the device flannel.<VNI> there, so that it gets another"
    )]
    SameMac {
        /// The MAC.
        mac: Mac,
        /// The other node.
        other: NodeName,
    },
}

/// Sorts the nodes, and keeps them sorted.
#[derive(Debug)]
pub struct PeerResolver {
    me: NodeName,
    networks: Vec<IpNet>,
    vni: Vni,
    nodes: OrdMap<NodeName, Arc<NodeRecord>>,
    claims: ValueHolders,
    /// How many nodes send from an address.
    senders: BTreeMap<IpAddr, usize>,
    underlay: OrdSet<IpAddr>,
    view: PeersByFamily,
}

impl PeerResolver {
    /// One that knows no nodes yet. `networks` are the ranges of all pods, at most one per family, `vni` is ours.
    #[must_use]
    pub fn new(me: NodeName, networks: &[IpNet], vni: Vni) -> Self {
        let families = networks.iter().map(|net| (Family::of_net(*net), FamilyPeers::default())).collect();
        Self {
            me,
            networks: networks.to_vec(),
            vni,
            nodes: OrdMap::new(),
            claims: ValueHolders::default(),
            senders: BTreeMap::new(),
            underlay: OrdSet::new(),
            view: PeersByFamily { families, problems: OrdMap::new() },
        }
    }

    /// Sorts these nodes.
    pub fn update(&mut self, nodes: &OrdMap<NodeName, Arc<NodeRecord>>) {
        let before = std::mem::replace(&mut self.nodes, nodes.clone());
        let mut touched = BTreeSet::new();
        let mut left = Vec::new();
        for (name, before, after) in changes(&before, nodes) {
            touched.insert(name.clone());
            if let Some(node) = before {
                let claims = self.claims_of(node);
                claims.iter().for_each(|claim| self.claims.withdraw(claim, name));
                left.extend(claims);
                addresses(node).into_iter().for_each(|address| self.stops_sending(address));
            }
            if let Some(node) = after {
                self.claims_of(node).into_iter().for_each(|claim| self.claims.enter(claim, name));
                addresses(node).into_iter().for_each(|address| self.sends(address));
            }
            match after.map(|node| node.problems.clone()).filter(|problems| !problems.is_empty()) {
                Some(problems) => _ = self.view.problems.insert(name.clone(), problems),
                None => _ = self.view.problems.remove(name),
            }
        }
        let concerned = self.concerned(touched, left);
        self.decide(&concerned);
    }

    /// The nodes as they were sorted last.
    #[must_use]
    pub const fn view(&self) -> &PeersByFamily {
        &self.view
    }

    /// Every address that overlay packets of a node of this cluster can come from, this node's own included.
    #[must_use]
    pub const fn underlay(&self) -> &OrdSet<IpAddr> {
        &self.underlay
    }

    fn sends(&mut self, address: IpAddr) {
        let senders = self.senders.entry(address).or_default();
        *senders += 1;
        if *senders == 1 {
            self.underlay.insert(address);
        }
    }

    fn stops_sending(&mut self, address: IpAddr) {
        let Some(senders) = self.senders.get_mut(&address) else { return };
        *senders -= 1;
        if *senders == 0 {
            self.senders.remove(&address);
            self.underlay.remove(&address);
        }
    }

    /// All that the node would have for itself, whether it gets it or not.
    fn claims_of(&self, node: &NodeRecord) -> Vec<ExclusiveValue> {
        let mut claims = Vec::new();
        for family in self.view.families.keys() {
            claims.extend(
                node.pod_cidrs
                    .get(family)
                    .filter(|cidr| self.is_inside(cidr))
                    .map(|cidr| ExclusiveValue::PodCidr(*cidr)),
            );
            if let Some(Ok(PublishedVtep { public_ip, backend })) = node.published.get(family) {
                claims.push(ExclusiveValue::PublicIp(*public_ip));
                claims.push(ExclusiveValue::Mac(*family, backend.vtep_mac));
            }
        }
        claims
    }

    fn is_inside(&self, cidr: &IpNet) -> bool {
        self.networks.iter().any(|net| net.contains(cidr))
    }

    /// These nodes, those that claim anything of what they claim or have left, and so on.
    fn concerned(&self, mut concerned: BTreeSet<NodeName>, left: Vec<ExclusiveValue>) -> BTreeSet<NodeName> {
        let claims_of = |name: &NodeName| self.nodes.get(name).map(|node| self.claims_of(node)).unwrap_or_default();
        let mut open = left;
        open.extend(concerned.iter().flat_map(claims_of));
        while let Some(claim) = open.pop() {
            for name in self.claims.in_touch(&claim, &self.networks) {
                if concerned.insert(name.clone()) {
                    open.extend(claims_of(name));
                }
            }
        }
        concerned
    }

    /// Decides about nodes that have no claim in common with any other.
    fn decide(&mut self, concerned: &BTreeSet<NodeName>) {
        let mut by_age: Vec<(&NodeName, &NodeRecord)> =
            concerned.iter().filter_map(|name| Some((name, &**self.nodes.get(name)?))).collect();
        by_age.sort_by_key(|(name, node)| (**name != self.me, node.created.is_none(), &node.created, *name));
        for (family, view) in &mut self.view.families {
            for name in concerned {
                view.forget(name);
            }
            let rule = PeerRule { me: &self.me, networks: &self.networks, vni: self.vni, family: *family };
            let mut taken = AssignedValues::default();
            for (name, node) in &by_age {
                match rule.lot(&mut taken, name, node) {
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
    fn forget(&mut self, name: &NodeName) {
        self.peers.remove(name);
        self.skipped.remove(name);
        self.waiting.remove(name);
    }
}

/// What becomes of a node that is not left out.
enum Role {
    /// It is this one.
    Own,
    /// It is not ready.
    Waiting,
    Peer(NodePeer),
}

/// The rule by which a node becomes a peer of a family.
struct PeerRule<'a> {
    me: &'a NodeName,
    networks: &'a [IpNet],
    vni: Vni,
    family: Family,
}

impl PeerRule<'_> {
    /// What becomes of a node, where older ones have taken what is taken.
    fn lot<'a>(
        &self,
        taken: &mut AssignedValues<'a>,
        name: &'a NodeName,
        node: &NodeRecord,
    ) -> Result<Role, SkipReason> {
        let is_me = name == self.me;
        let Some(&cidr) = node.pod_cidrs.get(&self.family) else { return Ok(Role::Waiting) };
        if !self.networks.iter().any(|net| net.contains(&cidr)) {
            return Err(SkipReason::OutsideNetwork { cidr });
        }
        taken.take_pod_cidr(cidr, name)?;
        let PublishedVtep { public_ip, backend } = match node.published.get(&self.family) {
            Some(Ok(announcement)) => *announcement,
            Some(Err(_)) | None if is_me => return Ok(Role::Own),
            Some(Err(problem)) => return Err(SkipReason::Node(problem.clone())),
            None => return Ok(Role::Waiting),
        };
        taken.take_public_ip(public_ip, name)?;
        match backend.vni {
            Some(theirs) if theirs != self.vni && !is_me => {
                return Err(SkipReason::OtherVni { theirs, ours: self.vni });
            }
            Some(_) | None => {}
        }
        taken.take_mac(backend.vtep_mac, name)?;
        if is_me {
            return Ok(Role::Own);
        }
        Ok(Role::Peer(NodePeer { node: name.clone(), pod_cidr: cidr, public_ip, vtep_mac: backend.vtep_mac }))
    }
}

/// Where overlay packets of the node can come from.
fn addresses(node: &NodeRecord) -> BTreeSet<IpAddr> {
    let public = node.published.values().filter_map(|published| published.as_ref().ok()).map(|p| p.public_ip);
    public.chain(node.internal_ips.iter().copied()).collect()
}
