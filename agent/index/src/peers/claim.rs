//! What a node has for itself alone: who claims it, and who has got it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use towpath_core::model::{Family, Mac, NodeName};

use super::SkipReason;

/// Something that one node only can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ExclusiveValue {
    /// All addresses of a network.
    PodCidr(IpNet),
    /// An address on the underlay.
    PublicIp(IpAddr),
    /// A VTEP's MAC in one family.
    Mac(Family, Mac),
}

/// Who claims what.
#[derive(Debug, Default)]
pub(super) struct ValueHolders(BTreeMap<ExclusiveValue, BTreeSet<NodeName>>);

impl ValueHolders {
    pub(super) fn enter(&mut self, claim: ExclusiveValue, node: &NodeName) {
        self.0.entry(claim).or_default().insert(node.clone());
    }

    pub(super) fn withdraw(&mut self, claim: &ExclusiveValue, node: &NodeName) {
        let Some(nodes) = self.0.get_mut(claim) else { return };
        nodes.remove(node);
        if nodes.is_empty() {
            self.0.remove(claim);
        }
    }

    /// The nodes that claim a part of it. Of networks these are its parts, and those that it is a part of: no larger than
    /// the pod networks, `within`.
    pub(super) fn in_touch(&self, claim: &ExclusiveValue, within: &[IpNet]) -> Vec<&NodeName> {
        let mut touched: Vec<&BTreeSet<NodeName>> = Vec::new();
        match claim {
            ExclusiveValue::PublicIp(_) | ExclusiveValue::Mac(..) => touched.extend(self.0.get(claim)),
            ExclusiveValue::PodCidr(cidr) => {
                let least = within.iter().filter(|net| net.contains(cidr)).map(IpNet::prefix_len).min();
                let around =
                    (least.unwrap_or(0)..cidr.prefix_len()).filter_map(|length| IpNet::new(cidr.addr(), length).ok());
                touched.extend(around.filter_map(|net| self.0.get(&ExclusiveValue::PodCidr(net.trunc()))));
                let last = IpNet::from(cidr.broadcast());
                let inside = self.0.range(ExclusiveValue::PodCidr(*cidr)..=ExclusiveValue::PodCidr(last));
                touched.extend(inside.map(|(_, nodes)| nodes));
            }
        }
        touched.into_iter().flatten().collect()
    }
}

/// What nodes have got of one family.
#[derive(Debug, Default)]
pub(super) struct AssignedValues<'a> {
    /// podCIDRs by their first address. They are disjoint.
    pod_cidrs: BTreeMap<IpAddr, (IpNet, &'a NodeName)>,
    public_ips: BTreeMap<IpAddr, &'a NodeName>,
    macs: BTreeMap<Mac, &'a NodeName>,
}

impl<'a> AssignedValues<'a> {
    pub(super) fn take_pod_cidr(&mut self, cidr: IpNet, name: &'a NodeName) -> Result<(), SkipReason> {
        let before =
            self.pod_cidrs.range(..=cidr.network()).next_back().filter(|(_, (other, _))| other.contains(&cidr));
        let within = || self.pod_cidrs.range(cidr.network()..=cidr.broadcast()).next();
        if let Some((_, &(other_cidr, other))) = before.or_else(within) {
            return Err(SkipReason::Overlap { cidr, other_cidr, other: other.clone() });
        }
        self.pod_cidrs.insert(cidr.network(), (cidr, name));
        Ok(())
    }

    pub(super) fn take_public_ip(&mut self, address: IpAddr, name: &'a NodeName) -> Result<(), SkipReason> {
        let owner = *self.public_ips.entry(address).or_insert(name);
        if owner == name { Ok(()) } else { Err(SkipReason::SamePublicIp { address, other: owner.clone() }) }
    }

    pub(super) fn take_mac(&mut self, mac: Mac, name: &'a NodeName) -> Result<(), SkipReason> {
        let owner = *self.macs.entry(mac).or_insert(name);
        if owner == name { Ok(()) } else { Err(SkipReason::SameMac { mac, other: owner.clone() }) }
    }
}
