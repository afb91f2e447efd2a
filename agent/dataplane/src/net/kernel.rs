//! Reads and changes the kernel's network.

use std::collections::BTreeMap;

use nix::errno::Errno;
use towpath_core::{
    model::Family,
    names::IfName,
    overlay::{self, IfIndex, Kernel, Link, NetOp, Sysctl},
};

use super::{
    ApplyCause, ApplyError, Net, NetlinkError, ReadBackError,
    connection::RouteConnection,
    message::{
        create_vxlan, delete_address, delete_fdb_entry, delete_neighbour, delete_route, fdb_entries_on, neighbours_on,
        set_fdb_entry, set_mac, set_mtu,
    },
};
use towpath_podlink::{
    route::{
        RouteRequest,
        message::{self, Hop, Reach, RouteOrigin, WriteMode},
        parse,
    },
    sysctl::Sysctls,
};

/// The network of the namespace in which it was opened.
#[derive(Debug)]
pub struct KernelNet {
    connection: RouteConnection,
    sysctls: Sysctls,
    /// The ifindex of each link that the current changes name.
    indexes: BTreeMap<IfName, IfIndex>,
}

impl KernelNet {
    /// Opens the network of the calling thread's namespace. Sysctls are those of the thread that makes a call, and a
    /// connection that ended is opened again there: call from the same namespace.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn open(sysctls: Sysctls) -> Result<Self, NetlinkError> {
        Ok(Self { connection: RouteConnection::open()?, sysctls, indexes: BTreeMap::new() })
    }

    fn read_device(&mut self, index: IfIndex, link: &Link, kernel: &mut Kernel) -> Result<(), ReadBackError> {
        let failed = |what: &'static str| move |source| ReadBackError { what, source };
        for family in Family::ALL {
            // A filter that the kernel did not know would give other devices' entries as well.
            let neighbour = |message: &_| {
                parse::new_neighbour(message).and_then(parse::neighbour).filter(|((at, _), _)| *at == index)
            };
            let dump = self.connection.dump(&neighbours_on(family, index.0), neighbour);
            kernel.neighbours.extend(dump.map_err(failed("neighbours"))?);
        }
        let entry =
            |message: &_| parse::new_neighbour(message).and_then(parse::fdb_entry).filter(|((at, _), _)| *at == index);
        kernel.fdb.extend(self.connection.dump(&fdb_entries_on(index.0), entry).map_err(failed("FDB entries"))?);
        self.read_sysctl(Sysctl::AcceptRouterAdvertisements(link.name.clone()), kernel);
        Ok(())
    }

    /// One that does not exist (no IPv6 in this kernel, a deleted device) is left out.
    fn read_sysctl(&self, sysctl: Sysctl, kernel: &mut Kernel) {
        if let Ok(value) = self.sysctls.read(&sysctl.to_string()) {
            kernel.sysctls.insert(sysctl, value);
        }
    }

    /// Executes the pending requests and collects the failures.
    fn flush<'a>(&mut self, pending: &mut Vec<(&'a NetOp, RouteRequest)>, failed: &mut Vec<ApplyError>) {
        let (ops, requests): (Vec<&'a NetOp>, Vec<RouteRequest>) = std::mem::take(pending).into_iter().unzip();
        let results = self.connection.execute_all(requests);
        for (op, result) in ops.into_iter().zip(results) {
            let Err(source) = result else { continue };
            if !self.is_benign(op, &source) {
                failed.push(ApplyError { op: op.clone(), advice: advice(op, &source), source: source.into() });
            }
        }
    }

    /// Whether a rejection only says that the state is as wanted already.
    fn is_benign(&mut self, op: &NetOp, error: &NetlinkError) -> bool {
        match (op, error.errno()) {
            (NetOp::DeleteLink { .. }, Some(Errno::ENODEV))
            | (NetOp::DeleteNeighbour { .. } | NetOp::DeleteFdb { .. }, Some(Errno::ENOENT | Errno::ENODEV))
            | (NetOp::DeleteRoute { .. }, Some(Errno::ESRCH | Errno::ENOENT))
            | (NetOp::DeleteAddress { .. }, Some(Errno::EADDRNOTAVAIL | Errno::ENODEV)) => true,
            (NetOp::AddRoute { destination, hop: overlay::NextHop::Link(link) }, Some(Errno::EEXIST)) => {
                // The CNI plugin has added its pod's route already.
                let have = self.connection.get(&message::fib_match(destination.addr()), parse::output_link);
                let want = self.indexes.get(link);
                have.is_ok_and(|have| have.is_some() && have.as_ref() == want)
            }
            _ => false,
        }
    }

    fn index(&mut self, link: &IfName) -> Result<u32, ApplyCause> {
        if let Some(index) = self.indexes.get(link) {
            return Ok(index.0);
        }
        let not_found = || ApplyCause::NoLink(link.clone());
        let (index, _) = match self.connection.get(&message::get_link(link), parse::new_link) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => return Err(not_found()),
            answer => answer?.ok_or_else(not_found)?,
        };
        self.indexes.insert(link.clone(), index);
        Ok(index.0)
    }

    /// The request for a change; `None` for a sysctl, which is written at once.
    fn request(&mut self, op: &NetOp) -> Result<Option<RouteRequest>, ApplyCause> {
        let request = match op {
            NetOp::DeleteLink { link, .. } => message::delete_link(link),
            NetOp::CreateDevice(device) => create_vxlan(device),
            NetOp::SetMtu { link, mtu } => set_mtu(self.index(link)?, *mtu),
            NetOp::SetMac { link, mac } => set_mac(self.index(link)?, *mac),
            NetOp::SetUp { link } => message::set_up(self.index(link)?),
            NetOp::SetSysctl { sysctl, value } => {
                self.sysctls.ensure(&sysctl.to_string(), *value)?;
                return Ok(None);
            }
            NetOp::AddAddress { link, address } => message::add_address(self.index(link)?, *address),
            NetOp::DeleteAddress { link, address } => delete_address(self.index(link)?, *address),
            NetOp::SetNeighbour { link, address, mac } => message::neighbour(self.index(link)?, *address, *mac),
            NetOp::DeleteNeighbour { link, address } => delete_neighbour(self.index(link)?, *address),
            NetOp::SetFdb { link, mac, remote } => set_fdb_entry(self.index(link)?, *mac, *remote),
            NetOp::DeleteFdb { link, mac, remote } => delete_fdb_entry(self.index(link)?, *mac, *remote),
            NetOp::AddRoute { destination, hop } => message::add_route(
                message::route(*destination, self.hop(hop)?, RouteOrigin::Towpath),
                WriteMode::Create,
            ),
            NetOp::ReplaceRoute { destination, hop } => message::add_route(
                message::route(*destination, self.hop(hop)?, RouteOrigin::Towpath),
                WriteMode::Replace,
            ),
            NetOp::DeleteRoute { route } => delete_route(*route),
        };
        Ok(Some(request))
    }

    fn hop(&mut self, hop: &overlay::NextHop) -> Result<Hop, ApplyCause> {
        Ok(match hop {
            overlay::NextHop::Onlink { gateway, link } => {
                Hop::Via { gateway: *gateway, index: self.index(link)?, reach: Reach::Onlink }
            }
            overlay::NextHop::Link(link) => Hop::Link { index: self.index(link)? },
            overlay::NextHop::Blackhole => Hop::Blackhole,
        })
    }
}

impl Net for KernelNet {
    fn read_back(&mut self) -> Result<Kernel, ReadBackError> {
        let failed = |what: &'static str| move |source| ReadBackError { what, source };
        let mut kernel = Kernel::default();
        let links = self.connection.dump(&message::all_links(), parse::new_link).map_err(failed("links"))?;
        kernel.links = links.into_iter().collect();
        let addresses = self.connection.dump(&message::all_addresses(), parse::new_address);
        for (index, net) in addresses.map_err(failed("addresses"))? {
            kernel.addresses.entry(index).or_default().push(net);
        }
        let devices: Vec<_> = kernel.links.iter().filter(|(_, link)| link.overlay_family().is_some()).collect();
        let devices: Vec<_> = devices.into_iter().map(|(index, link)| (*index, link.clone())).collect();
        for (index, link) in &devices {
            self.read_device(*index, link, &mut kernel)?;
        }
        for family in Family::ALL {
            let on_device = |link| devices.iter().any(|(index, _)| *index == link);
            let concerns_us = |(key, route): &(overlay::RouteKey, overlay::Route)| {
                let ours = route.owner == overlay::RouteOwner::Towpath;
                let given = route.owner != overlay::RouteOwner::KERNEL;
                ours || key.destination.prefix_len() == 0 || given && route.target.link().is_some_and(on_device)
            };
            let route = |message: &_| parse::new_route(message).filter(concerns_us);
            let routes = self.connection.dump(&message::main_routes(family), route);
            kernel.routes.extend(routes.map_err(failed("routes"))?);
            self.read_sysctl(Sysctl::Forwarding(family), &mut kernel);
        }
        for link in followed_routers(&kernel) {
            self.read_sysctl(Sysctl::AcceptRouterAdvertisements(link), &mut kernel);
        }
        Ok(kernel)
    }

    fn apply(&mut self, ops: &[NetOp]) -> Vec<ApplyError> {
        let mut failed = Vec::new();
        let mut pending = Vec::new();
        self.indexes.clear();
        for op in ops {
            let changes_links = matches!(op, NetOp::CreateDevice(_) | NetOp::DeleteLink { .. });
            if matches!(op, NetOp::SetSysctl { .. }) {
                // Its file exists only once the device does.
                self.flush(&mut pending, &mut failed);
            }
            match self.request(op) {
                Ok(Some(request)) => pending.push((op, request)),
                Ok(None) => {}
                // It was deleted with its link.
                Err(ApplyCause::NoLink(_)) if is_deletion(op) => {}
                Err(source) => failed.push(ApplyError { op: op.clone(), advice: "", source }),
            }
            if changes_links {
                self.flush(&mut pending, &mut failed);
                self.indexes.clear();
            }
        }
        self.flush(&mut pending, &mut failed);
        failed
    }
}

/// The links with a default route from a router's advertisement.
fn followed_routers(kernel: &Kernel) -> Vec<IfName> {
    let advertised = kernel.routes.values().filter(|route| route.owner == overlay::RouteOwner::ROUTER_ADVERTISEMENT);
    let links = advertised.filter_map(|route| kernel.links.get(&route.target.link()?));
    links.map(|link| link.name.clone()).collect()
}

const fn is_deletion(op: &NetOp) -> bool {
    matches!(op, NetOp::DeleteAddress { .. } | NetOp::DeleteNeighbour { .. } | NetOp::DeleteFdb { .. })
}

/// The remedy for a rejection.
fn advice(op: &NetOp, error: &NetlinkError) -> &'static str {
    match (op, error.errno()) {
        (_, Some(Errno::EPERM)) => ": the agent needs the capability NET_ADMIN",
        (NetOp::AddRoute { .. }, Some(Errno::EEXIST)) => {
            ": another program has a route to this network; remove it, or the program"
        }
        (NetOp::AddRoute { .. } | NetOp::ReplaceRoute { .. }, Some(Errno::EINVAL)) => {
            ": a route to a larger network may lead elsewhere; remove it"
        }
        (NetOp::CreateDevice(_), Some(Errno::EEXIST)) => {
            ": another VXLAN device has this VNI and port; remove it or choose another VNI"
        }
        (NetOp::CreateDevice(_), Some(Errno::EADDRINUSE)) => ": another program has the UDP port; choose another",
        (NetOp::CreateDevice(_), Some(Errno::EOPNOTSUPP)) => ": load the kernel module vxlan",
        (NetOp::SetMtu { .. } | NetOp::CreateDevice(_), Some(Errno::EINVAL)) => {
            ": does the MTU fit through the uplink?"
        }
        _ => "",
    }
}
