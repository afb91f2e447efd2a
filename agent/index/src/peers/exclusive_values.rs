//! Values that only one node of the overlay can have: podCIDR, public IP and VTEP MAC.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use towpath_core::model::{Family, Mac, NodeName};

use super::SkipReason;

/// A value that only one node can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ExclusiveValue {
    /// A podCIDR. Two podCIDRs conflict if they overlap.
    PodCidr(IpNet),
    /// The underlay address of a VTEP.
    PublicIp(IpAddr),
    /// The MAC address of a VTEP. Each family has its own VXLAN device.
    Mac(Family, Mac),
}

/// The nodes by the exclusive values that they have in their Node objects.
#[derive(Debug, Default)]
pub(super) struct ValueIndex(BTreeMap<ExclusiveValue, BTreeSet<NodeName>>);

impl ValueIndex {
    pub(super) fn insert(&mut self, value: ExclusiveValue, node: &NodeName) {
        self.0.entry(value).or_default().insert(node.clone());
    }

    pub(super) fn remove(&mut self, value: &ExclusiveValue, node: &NodeName) {
        let Some(nodes) = self.0.get_mut(value) else { return };
        nodes.remove(node);
        if nodes.is_empty() {
            self.0.remove(value);
        }
    }

    /// The nodes with a value that conflicts with this one. For a podCIDR these are the nodes with a podCIDR inside it or
    /// around it; `networks`, the pod network, limits the search for the latter.
    pub(super) fn conflicting(&self, value: &ExclusiveValue, networks: &[IpNet]) -> Vec<&NodeName> {
        let mut found: Vec<&BTreeSet<NodeName>> = Vec::new();
        match value {
            ExclusiveValue::PublicIp(_) | ExclusiveValue::Mac(..) => found.extend(self.0.get(value)),
            ExclusiveValue::PodCidr(cidr) => {
                let shortest = networks.iter().filter(|net| net.contains(cidr)).map(IpNet::prefix_len).min();
                let around = (shortest.unwrap_or(0)..cidr.prefix_len())
                    .filter_map(|length| IpNet::new(cidr.addr(), length).ok());
                found.extend(around.filter_map(|net| self.0.get(&ExclusiveValue::PodCidr(net.trunc()))));
                let last = IpNet::from(cidr.broadcast());
                let inside = self.0.range(ExclusiveValue::PodCidr(*cidr)..=ExclusiveValue::PodCidr(last));
                found.extend(inside.map(|(_, nodes)| nodes));
            }
        }
        found.into_iter().flatten().collect()
    }
}

/// The values of one family that have been assigned to nodes.
#[derive(Debug, Default)]
pub(super) struct AssignedValues<'a> {
    /// podCIDRs, disjoint, by network address.
    pod_cidrs: BTreeMap<IpAddr, (IpNet, &'a NodeName)>,
    public_ips: BTreeMap<IpAddr, &'a NodeName>,
    macs: BTreeMap<Mac, &'a NodeName>,
}

impl<'a> AssignedValues<'a> {
    pub(super) fn assign_pod_cidr(&mut self, cidr: IpNet, name: &'a NodeName) -> Result<(), SkipReason> {
        let around =
            self.pod_cidrs.range(..=cidr.network()).next_back().filter(|(_, (other, _))| other.contains(&cidr));
        let inside = || self.pod_cidrs.range(cidr.network()..=cidr.broadcast()).next();
        if let Some((_, &(other_cidr, other))) = around.or_else(inside) {
            return Err(SkipReason::Overlap { cidr, other_cidr, other: other.clone() });
        }
        self.pod_cidrs.insert(cidr.network(), (cidr, name));
        Ok(())
    }

    pub(super) fn assign_public_ip(&mut self, address: IpAddr, name: &'a NodeName) -> Result<(), SkipReason> {
        let owner = *self.public_ips.entry(address).or_insert(name);
        if owner == name { Ok(()) } else { Err(SkipReason::SamePublicIp { address, other: owner.clone() }) }
    }

    pub(super) fn assign_mac(&mut self, mac: Mac, name: &'a NodeName) -> Result<(), SkipReason> {
        let owner = *self.macs.entry(mac).or_insert(name);
        if owner == name { Ok(()) } else { Err(SkipReason::SameMac { mac, other: owner.clone() }) }
    }
}
