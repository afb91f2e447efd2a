//! Taking addresses for a pod, and finding those that nobody uses any more.

use std::{collections::BTreeSet, net::IpAddr};

use towpath_core::ipam::{IpamError, Range};
use towpath_local::{AddressDir, Attachment, EndpointFile, Endpoints, LockedAddresses, NodeState, Owner, Reservation};
use towpath_podlink::PodTraces;

use crate::{config::NetConf, error::CniError};

/// Takes an address of each podCIDR and records the endpoint with them: all or nothing.
///
/// The record is written before any address is taken and goes after the last one is given back. So an address without
/// a record is never one that is just being set up, and whatever becomes of this process, the record names all there is to
/// give back.
pub(crate) fn take(
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
            for taken in &endpoint.addresses[..n] {
                // The first error is the one to tell. What stays behind is the container's, and its DEL finds it.
                let _ = locked.release(*taken, attachment);
            }
            let _ = endpoints.remove(attachment);
            return Err(CniError::Addresses(error));
        }
    }
    Ok(endpoint)
}

/// Gives back what is nobody's in a full range, and finds a free address then.
///
/// Nobody's is an address whose container has no record, and which the host routes nowhere: `/run` and the kernel's
/// routes are empty after a reboot, the addresses' folder is not. Clocks and process lists are not asked: they lie
/// after a reboot. Running pods that another plugin made have no record either, but a route.
fn reclaim(
    locked: &LockedAddresses<'_>,
    endpoints: &Endpoints,
    range: Range,
    n: usize,
    used: &mut BTreeSet<IpAddr>,
) -> Result<IpAddr, CniError> {
    let traces = PodTraces::read().map_err(CniError::Link)?;
    let mut unreadable = Vec::new();
    for Reservation { addr, owner } in locked.reservations().map_err(CniError::Addresses)? {
        if !range.contains(addr) || traces.routed.contains(&addr) {
            continue;
        }
        match owner {
            Owner::Container { id, ifname } if is_recorded(endpoints, &id, ifname.as_deref()) => continue,
            Owner::Unknown(why) => unreadable.push(format!("{addr}: {why}")),
            Owner::Container { .. } | Owner::Nobody => {
                locked.free(addr).map_err(CniError::Addresses)?;
                used.remove(&addr);
            }
        }
    }
    range.next(locked.last_reserved(n), used).map_err(|source| CniError::Ipam { source, unreadable })
}

fn is_recorded(endpoints: &Endpoints, id: &str, ifname: Option<&str>) -> bool {
    Attachment::new(id, ifname.unwrap_or("eth0")).is_ok_and(|attachment| endpoints.has(&attachment))
}
