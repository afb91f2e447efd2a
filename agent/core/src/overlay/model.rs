//! The kernel's network as a value that carries out changes: what it refuses, and what else goes when something goes.
//!
//! It is the reference for the order of changes, the heart of the fake in `towpath-dataplane`, and the way in which the
//! agent follows its own changes without reading everything back.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    IfIndex, Kernel, Link, LinkKind, LinkState, NetOp, NextHop, Route, RouteKey, RouteOwner, RouteTarget, Sysctl,
    VxlanDevice, kernel::default_metric,
};
use crate::{model::Family, names::IfName};

/// Why the kernel would refuse a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetOpError {
    /// There is no such link (ENODEV).
    #[error("there is no link {0}")]
    NoLink(IfName),
    /// The link is not up (ENETDOWN).
    #[error("link {0} is down")]
    LinkDown(IfName),
    /// There is such a thing already (EEXIST).
    #[error("it exists already")]
    Exists,
    /// There is no such thing (ENOENT, ESRCH).
    #[error("it does not exist")]
    Missing,
    /// An IPv6 route leads its gateway to another link (EINVAL, `ip6_route_check_nh_onlink`).
    #[error("the gateway is routed to another link")]
    GatewayElsewhere,
    /// The link is of another kind (EOPNOTSUPP).
    #[error("link {0} is no VXLAN device")]
    WrongKind(IfName),
}

impl Kernel {
    /// Carries out a change.
    ///
    /// # Errors
    /// Why the kernel would refuse it; nothing has changed then.
    pub fn execute(&mut self, op: &NetOp) -> Result<(), NetOpError> {
        match op {
            NetOp::DeleteLink { link, .. } => self.delete_link(link),
            NetOp::CreateDevice(device) => self.create_device(device),
            NetOp::SetMtu { link, mtu } => self.change(link, |link| link.mtu = *mtu),
            NetOp::SetUp { link } => self.change(link, |link| link.state = LinkState::Up),
            NetOp::SetMac { link, mac } => {
                let index = self.index(link)?;
                self.neighbours.retain(|(at, _), _| *at != index);
                self.change(link, |link| link.mac = Some(*mac))
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
                let addresses = self.addresses.get_mut(&index).ok_or(NetOpError::Missing)?;
                let place = addresses.iter().position(|have| have == address).ok_or(NetOpError::Missing)?;
                addresses.remove(place);
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
                self.neighbours.remove(&(index, *address)).map(|_| ()).ok_or(NetOpError::Missing)
            }
            NetOp::SetFdb { link, mac, remote } => {
                let index = self.vxlan(link)?;
                self.fdb.insert((index, *mac), *remote);
                Ok(())
            }
            NetOp::DeleteFdb { link, mac, remote } => {
                let index = self.vxlan(link)?;
                if self.fdb.get(&(index, *mac)) != Some(remote) {
                    return Err(NetOpError::Missing);
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
                Some(_) | None => Err(NetOpError::Missing),
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
        if matches!(link.kind, LinkKind::Vxlan(_)) { Ok(index) } else { Err(NetOpError::WrongKind(name.clone())) }
    }

    fn change(&mut self, name: &IfName, change: impl FnOnce(&mut Link)) -> Result<(), NetOpError> {
        let index = self.index(name)?;
        self.links.get_mut(&index).map(change).ok_or_else(|| NetOpError::NoLink(name.clone()))
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
        // The kernel counts on from the greatest number ever given; the model knows only those that are there.
        let index = IfIndex(self.links.keys().next_back().map_or(1, |last| last.0 + 1));
        self.links.insert(index, link);
        // A new link's own sysctls exist from then on, with the kernel's defaults.
        self.sysctls.insert(Sysctl::AcceptRouterAdvertisements(device.name.clone()), 1);
        Ok(())
    }

    /// Deletes a link with everything on it and through it.
    fn delete_link(&mut self, name: &IfName) -> Result<(), NetOpError> {
        let index = self.index(name)?;
        self.links.remove(&index);
        self.addresses.remove(&index);
        self.neighbours.retain(|(at, _), _| *at != index);
        self.fdb.retain(|(at, _), _| *at != index);
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

    /// The route that an address takes, but for those to everywhere. Looked up length by length: there are thousands of routes.
    fn most_specific(&self, address: IpAddr) -> Option<&Route> {
        let host = Family::of(address).host_prefix_len();
        let nets = (1..=host).rev().filter_map(|length| IpNet::new(address, length).ok());
        nets.filter_map(|net| self.routes_to(net.trunc()).next()).next().map(|(_, route)| route)
    }

    fn set_route(&mut self, key: RouteKey, hop: &NextHop) -> Result<(), NetOpError> {
        let target = match hop {
            NextHop::Onlink { gateway, link } => RouteTarget::Via { gateway: *gateway, link: self.index_up(link)? },
            NextHop::Link(link) => RouteTarget::Link(self.index_up(link)?),
            NextHop::Blackhole => RouteTarget::Blackhole,
        };
        if let RouteTarget::Via { gateway: gateway @ IpAddr::V6(_), link } = target {
            let leads_to = self.most_specific(gateway).and_then(|route| route.target.link());
            if leads_to.is_some_and(|there| there != link) {
                return Err(NetOpError::GatewayElsewhere);
            }
        }
        self.routes.insert(key, Route { target, owner: RouteOwner::Towpath });
        Ok(())
    }
}

fn route_key(destination: IpNet) -> RouteKey {
    RouteKey { destination, metric: default_metric(Family::of_net(destination)) }
}
