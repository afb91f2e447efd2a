//! Executes [`NetOp`]s on a [`Kernel`] value: models what the kernel rejects and what it removes along with an object.
//!
//! Tests check the order of operations against it, the fake in `towpath-dataplane` is built on it, and the agent uses it
//! to update its cached state after its own changes, without a dump.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    IfIndex, Kernel, Link, LinkKind, LinkState, NetOp, NextHop, Route, RouteKey, RouteOwner, RouteTarget, Sysctl,
    VxlanDevice, kernel::default_metric,
};
use crate::{model::Family, names::IfName};

/// Why the kernel would reject an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetOpError {
    /// No link has this name (ENODEV).
    #[error("there is no link {0}")]
    NoLink(IfName),
    /// The link is administratively down (ENETDOWN).
    #[error("link {0} is down")]
    LinkDown(IfName),
    /// The object already exists (EEXIST).
    #[error("it already exists")]
    Exists,
    /// The object does not exist (ENOENT, ESRCH).
    #[error("it does not exist")]
    NotFound,
    /// A more specific IPv6 route covers the gateway on another link (EINVAL, `ip6_route_check_nh_onlink`).
    #[error("another route reaches the gateway through a different link")]
    GatewayOnOtherLink,
    /// The link is not a VXLAN device, so it has no such FDB (EOPNOTSUPP).
    #[error("link {0} is not a VXLAN device")]
    NotVxlan(IfName),
}

impl Kernel {
    /// Applies one operation.
    ///
    /// # Errors
    /// If the kernel would reject the operation. The state is then unchanged.
    pub fn execute(&mut self, op: &NetOp) -> Result<(), NetOpError> {
        match op {
            NetOp::DeleteLink { link, .. } => self.delete_link(link),
            NetOp::CreateDevice(device) => self.create_device(device),
            NetOp::SetMtu { link, mtu } => self.modify_link(link, |link| link.mtu = *mtu),
            NetOp::SetUp { link } => self.modify_link(link, |link| link.state = LinkState::Up),
            NetOp::SetMac { link, mac } => {
                let index = self.index(link)?;
                self.neighbours.retain(|(on, _), _| *on != index);
                self.modify_link(link, |link| link.mac = Some(*mac))
            }
            NetOp::SetSysctl { sysctl, value } => self.set_sysctl(sysctl, *value),
            NetOp::AddAddress { link, address } => {
                let index = self.index(link)?;
                let addresses = self.addresses.entry(index).or_default();
                if !addresses.contains(address) {
                    addresses.push(*address);
                }
                Ok(())
            }
            NetOp::DeleteAddress { link, address } => {
                let index = self.index(link)?;
                let addresses = self.addresses.get_mut(&index).ok_or(NetOpError::NotFound)?;
                let position = addresses.iter().position(|have| have == address).ok_or(NetOpError::NotFound)?;
                addresses.remove(position);
                if addresses.is_empty() {
                    self.addresses.remove(&index);
                }
                Ok(())
            }
            NetOp::SetNeighbour { link, address, mac } => {
                let index = self.index_up(link)?;
                self.neighbours.insert((index, *address), *mac);
                Ok(())
            }
            NetOp::DeleteNeighbour { link, address } => {
                let index = self.index(link)?;
                self.neighbours.remove(&(index, *address)).map(|_| ()).ok_or(NetOpError::NotFound)
            }
            NetOp::SetFdb { link, mac, remote } => {
                let index = self.vxlan(link)?;
                self.fdb.insert((index, *mac), *remote);
                Ok(())
            }
            NetOp::DeleteFdb { link, mac, remote } => {
                let index = self.vxlan(link)?;
                if self.fdb.get(&(index, *mac)) != Some(remote) {
                    return Err(NetOpError::NotFound);
                }
                self.fdb.remove(&(index, *mac));
                Ok(())
            }
            NetOp::AddRoute { destination, hop } => {
                let key = route_key(*destination);
                if self.routes.contains_key(&key) { Err(NetOpError::Exists) } else { self.set_route(key, hop) }
            }
            NetOp::ReplaceRoute { destination, hop } => self.set_route(route_key(*destination), hop),
            NetOp::DeleteRoute { route } => match self.routes.get(route) {
                Some(Route { owner: RouteOwner::Towpath, .. }) => {
                    self.routes.remove(route);
                    Ok(())
                }
                Some(_) | None => Err(NetOpError::NotFound),
            },
        }
    }

    fn index(&self, name: &IfName) -> Result<IfIndex, NetOpError> {
        self.link(name).map(|(index, _)| index).ok_or_else(|| NetOpError::NoLink(name.clone()))
    }

    fn index_up(&self, name: &IfName) -> Result<IfIndex, NetOpError> {
        let index = self.index(name)?;
        match self.links.get(&index) {
            Some(Link { state: LinkState::Up, .. }) => Ok(index),
            Some(_) | None => Err(NetOpError::LinkDown(name.clone())),
        }
    }

    fn vxlan(&self, name: &IfName) -> Result<IfIndex, NetOpError> {
        let (index, link) = self.link(name).ok_or_else(|| NetOpError::NoLink(name.clone()))?;
        if matches!(link.kind, LinkKind::Vxlan(_)) { Ok(index) } else { Err(NetOpError::NotVxlan(name.clone())) }
    }

    fn modify_link(&mut self, name: &IfName, modify: impl FnOnce(&mut Link)) -> Result<(), NetOpError> {
        let index = self.index(name)?;
        self.links.get_mut(&index).map(modify).ok_or_else(|| NetOpError::NoLink(name.clone()))
    }

    fn create_device(&mut self, device: &VxlanDevice) -> Result<(), NetOpError> {
        if self.link(&device.name).is_some() {
            return Err(NetOpError::Exists);
        }
        let link = Link {
            name: device.name.clone(),
            mac: Some(device.mac),
            mtu: device.mtu,
            state: LinkState::Up,
            kind: LinkKind::Vxlan(device.tunnel),
        };
        // The kernel continues from the highest ifindex ever assigned; this state knows only those of existing links.
        let index = IfIndex(self.links.keys().next_back().map_or(1, |last| last.0 + 1));
        self.links.insert(index, link);
        // The kernel creates the sysctls of a link with the link, with default values.
        self.sysctls.insert(Sysctl::AcceptRouterAdvertisements(device.name.clone()), 1);
        Ok(())
    }

    /// Deletes a link and all addresses, neighbours, FDB entries, routes and sysctls that depend on it.
    fn delete_link(&mut self, name: &IfName) -> Result<(), NetOpError> {
        let index = self.index(name)?;
        self.links.remove(&index);
        self.addresses.remove(&index);
        self.neighbours.retain(|(on, _), _| *on != index);
        self.fdb.retain(|(on, _), _| *on != index);
        self.routes.retain(|_, route| route.target.link() != Some(index));
        self.sysctls.remove(&Sysctl::AcceptRouterAdvertisements(name.clone()));
        Ok(())
    }

    fn set_sysctl(&mut self, sysctl: &Sysctl, value: i32) -> Result<(), NetOpError> {
        if let Sysctl::AcceptRouterAdvertisements(link) = sysctl {
            self.index(link)?;
        }
        self.sysctls.insert(sysctl.clone(), value);
        Ok(())
    }

    /// The most specific route that covers an address, default routes excluded. One lookup per prefix length: a scan
    /// would visit thousands of routes.
    fn most_specific_route(&self, address: IpAddr) -> Option<&Route> {
        let longest = Family::of(address).host_prefix_len();
        let nets = (1..=longest).rev().filter_map(|length| IpNet::new(address, length).ok());
        nets.filter_map(|net| self.routes_to(net.trunc()).next()).next().map(|(_, route)| route)
    }

    fn set_route(&mut self, key: RouteKey, hop: &NextHop) -> Result<(), NetOpError> {
        let target = match hop {
            NextHop::Onlink { gateway, link } => RouteTarget::Via { gateway: *gateway, link: self.index_up(link)? },
            NextHop::Link(link) => RouteTarget::Link(self.index_up(link)?),
            NextHop::Blackhole => RouteTarget::Blackhole,
        };
        if let RouteTarget::Via { gateway: gateway @ IpAddr::V6(_), link } = target {
            let routed_to = self.most_specific_route(gateway).and_then(|route| route.target.link());
            if routed_to.is_some_and(|other| other != link) {
                return Err(NetOpError::GatewayOnOtherLink);
            }
        }
        self.routes.insert(key, Route { target, owner: RouteOwner::Towpath });
        Ok(())
    }
}

fn route_key(destination: IpNet) -> RouteKey {
    RouteKey { destination, metric: default_metric(Family::of_net(destination)) }
}
