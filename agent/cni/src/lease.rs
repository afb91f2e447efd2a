//! Reservation of a pod's addresses, and release of those that no pod uses.

use std::{collections::BTreeSet, net::IpAddr};

use towpath_core::ipam::{IpamError, Range};
use towpath_local::{
    AddressDir, AddressOwner, Attachment, EndpointFile, Endpoints, LockedAddresses, NodeState, Reservation,
};
use towpath_podlink::PodInventory;

use crate::{config::NetConf, error::CniError};

/// Reserves an address of each podCIDR and writes the endpoint file with them: all or nothing.
///
/// The endpoint file is written before the first reservation and removed after the last release. So an address without
/// an endpoint file is never one that is just being set up, and whatever becomes of this process, the file names all
/// addresses to release.
pub(crate) fn reserve(
    conf: &NetConf,
    node: &NodeState,
    attachment: &Attachment,
    mut endpoint: EndpointFile,
) -> Result<EndpointFile, CniError> {
    let endpoints = Endpoints::new(&conf.paths);
    let dir = AddressDir::new(conf.paths.addresses(&conf.name));
    let locked = dir.lock().map_err(CniError::Addresses)?;
    let mut used = locked.used().map_err(CniError::Addresses)?;
    for (n, cidr) in node.pod_cidrs.iter().enumerate() {
        let range = Range::new(*cidr).map_err(|source| CniError::Ipam { source, unreadable: Vec::new() })?;
        let free = match range.next(locked.last_reserved(n), &used) {
            Err(IpamError::Exhausted { .. }) => reclaim(&locked, &endpoints, range, n, &mut used)?,
            free => free.map_err(|source| CniError::Ipam { source, unreadable: Vec::new() })?,
        };
        endpoint.addresses.push(free);
    }
    endpoints.write(attachment, &endpoint).map_err(CniError::Local)?;
    for (n, addr) in endpoint.addresses.iter().enumerate() {
        if let Err(error) = locked.reserve(n, *addr, attachment) {
            for reserved in &endpoint.addresses[..n] {
                // The first error is the one to report. What stays behind is the container's, and its DEL finds it.
                let _ = locked.release(*reserved, attachment);
            }
            let _ = endpoints.remove(attachment);
            return Err(CniError::Addresses(error));
        }
    }
    Ok(endpoint)
}

/// Releases the stale addresses of a full range, and gives a free address.
///
/// An address is stale if its container has no endpoint file and the host has no route to it: `/run` and the kernel's
/// routes are empty after a reboot, the address directory is not. Clocks and process lists do not count: they mislead
/// after a reboot. Running pods that another plugin created have no endpoint file either, but a route.
fn reclaim(
    locked: &LockedAddresses<'_>,
    endpoints: &Endpoints,
    range: Range,
    n: usize,
    used: &mut BTreeSet<IpAddr>,
) -> Result<IpAddr, CniError> {
    let pods = PodInventory::read().map_err(CniError::Link)?;
    let mut unreadable = Vec::new();
    for Reservation { addr, owner } in locked.reservations().map_err(CniError::Addresses)? {
        if !range.contains(addr) || pods.routed.contains(&addr) {
            continue;
        }
        match owner {
            AddressOwner::Container { id, ifname } if is_recorded(endpoints, &id, ifname.as_deref()) => continue,
            AddressOwner::Unknown(why) => unreadable.push(format!("{addr}: {why}")),
            AddressOwner::Container { .. } | AddressOwner::Nobody => {
                locked.force_release(addr).map_err(CniError::Addresses)?;
                used.remove(&addr);
            }
        }
    }
    range.next(locked.last_reserved(n), used).map_err(|source| CniError::Ipam { source, unreadable })
}

fn is_recorded(endpoints: &Endpoints, id: &str, ifname: Option<&str>) -> bool {
    Attachment::new(id, ifname.unwrap_or("eth0")).is_ok_and(|attachment| endpoints.has(&attachment))
}
