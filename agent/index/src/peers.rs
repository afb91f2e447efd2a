//! Which nodes the overlay connects, and why some are left out.
//!
//! Every node decides the same from the same Nodes: what two nodes claim belongs to the older one, by creation and then
//! by name, so that a newcomer with a mistake takes nothing away from the others. One's own claims come before all,
//! because its own pods are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use towpath_core::model::{Family, NodeName, Peer, Vni};

use crate::node::{NodeProblem, NodeRecord};

/// The other nodes, as the overlay should know them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Those that can be connected. A family of the pod network is always here, even without peers.
    pub peers: BTreeMap<Family, BTreeSet<Peer>>,
    /// Those that cannot, with the reason. This node itself is here if its own podCIDR is the trouble.
    pub skipped: Vec<Skipped>,
    /// Parts of Nodes that cannot be used, whether the node is connected or not.
    pub problems: Vec<(NodeName, NodeProblem)>,
    /// Those that have no podCIDR yet, or have not published where they are: they are new.
    pub waiting: BTreeSet<(NodeName, Family)>,
}

/// A node that is left out of one family of the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The node.
    pub node: NodeName,
    /// The family.
    pub family: Family,
    /// Why.
    pub reason: SkipReason,
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
}

/// Sorts the nodes. `networks` is the pod network, `vni` ours.
pub(crate) fn view<'a>(
    me: &NodeName,
    nodes: &'a BTreeMap<NodeName, NodeRecord>,
    networks: &[IpNet],
    vni: Vni,
) -> PeerView {
    let mut by_age: Vec<(&NodeName, &NodeRecord)> = nodes.iter().collect();
    let age =
        |(name, node): &(&'a NodeName, &'a NodeRecord)| (*name != me, node.created.is_none(), &node.created, *name);
    by_age.sort_by(|a, b| age(a).cmp(&age(b)));
    let mut sorter = Sorter { me, vni, cidrs: BTreeMap::new(), addresses: BTreeMap::new(), view: PeerView::default() };
    for (name, node) in &by_age {
        sorter.view.problems.extend(node.problems.iter().map(|problem| ((*name).clone(), problem.clone())));
    }
    for family in Family::ALL {
        let networks: Vec<&IpNet> = networks.iter().filter(|net| Family::of_net(**net) == family).collect();
        if networks.is_empty() {
            continue;
        }
        sorter.view.peers.insert(family, BTreeSet::new());
        for (name, node) in &by_age {
            match sorter.peer(family, &networks, name, node) {
                Ok(Some(peer)) => {
                    sorter.view.peers.entry(family).or_default().insert(peer);
                }
                Ok(None) => {}
                Err(reason) => sorter.view.skipped.push(Skipped { node: (*name).clone(), family, reason }),
            }
        }
    }
    sorter.view
}

struct Sorter<'a> {
    me: &'a NodeName,
    vni: Vni,
    /// Claimed podCIDRs by their first address. They are disjoint.
    cidrs: BTreeMap<IpAddr, (IpNet, &'a NodeName)>,
    addresses: BTreeMap<IpAddr, &'a NodeName>,
    view: PeerView,
}

impl<'a> Sorter<'a> {
    /// The node as a peer. `None`: it is this node, or it is not ready.
    fn peer(
        &mut self,
        family: Family,
        networks: &[&IpNet],
        name: &'a NodeName,
        node: &NodeRecord,
    ) -> Result<Option<Peer>, SkipReason> {
        let Some(&cidr) = node.pod_cidrs.get(&family) else {
            self.view.waiting.insert((name.clone(), family));
            return Ok(None);
        };
        if !networks.iter().any(|net| net.contains(&cidr)) {
            return Err(SkipReason::OutsideNetwork { cidr });
        }
        self.claim_cidr(cidr, name)?;
        let announcement = match node.published.get(&family) {
            Some(Ok(announcement)) => announcement,
            Some(Err(_)) | None if name == self.me => return Ok(None),
            Some(Err(problem)) => return Err(SkipReason::Node(problem.clone())),
            None => {
                self.view.waiting.insert((name.clone(), family));
                return Ok(None);
            }
        };
        let public_ip = announcement.public_ip;
        self.claim_address(public_ip, name)?;
        if name == self.me {
            return Ok(None);
        }
        match announcement.backend.vni {
            Some(theirs) if theirs != self.vni => Err(SkipReason::OtherVni { theirs, ours: self.vni }),
            Some(_) | None => Ok(Some(Peer {
                node: name.clone(),
                pod_cidr: cidr,
                public_ip,
                vtep_mac: announcement.backend.vtep_mac,
            })),
        }
    }

    fn claim_cidr(&mut self, cidr: IpNet, name: &'a NodeName) -> Result<(), SkipReason> {
        let before = self.cidrs.range(..=cidr.network()).next_back().filter(|(_, (other, _))| other.contains(&cidr));
        let within = || self.cidrs.range(cidr.network()..=cidr.broadcast()).next();
        if let Some((_, &(other_cidr, other))) = before.or_else(within) {
            return Err(SkipReason::Overlap { cidr, other_cidr, other: other.clone() });
        }
        self.cidrs.insert(cidr.network(), (cidr, name));
        Ok(())
    }

    fn claim_address(&mut self, address: IpAddr, name: &'a NodeName) -> Result<(), SkipReason> {
        match self.addresses.get(&address) {
            Some(other) => Err(SkipReason::SamePublicIp { address, other: (*other).clone() }),
            None => {
                self.addresses.insert(address, name);
                Ok(())
            }
        }
    }
}
