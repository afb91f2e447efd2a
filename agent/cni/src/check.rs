//! CHECK: compares the pod's network with the result of ADD.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use towpath_core::model::Mac;
use towpath_local::{AddressDir, Attachment, EndpointFile, Endpoints};
use towpath_podlink::{PodLink, PodLinkError, netns::Netns};

use crate::{attach::spec_of, config::NetConf, error::CniError};

/// The parts of a result that concern our interface. Plugins after us may have added more.
#[derive(Debug, Deserialize)]
struct PrevResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    address: IpNet,
    interface: Option<usize>,
}

/// Compares prevResult with the endpoint file, the address files and the kernel, and reports all differences.
pub(crate) fn check(conf: &NetConf, attachment: &Attachment, netns: &Path) -> Result<(), CniError> {
    let prev = conf.prev_result.as_ref().ok_or_else(|| CniError::Config("CHECK needs prevResult".to_owned()))?;
    let (mac, addresses) = ours(prev, attachment)?;
    let open = Netns::open(netns).map_err(CniError::Netns)?;
    let endpoint = Endpoints::new(&conf.paths)
        .read(attachment)
        .map_err(CniError::Local)?
        .ok_or_else(|| CniError::Differs(vec![format!("the node has no endpoint file of {attachment}")]))?;
    let mut differs = Vec::new();
    let recorded: BTreeSet<IpAddr> = endpoint.addresses.iter().copied().collect();
    if addresses != recorded {
        differs.push(format!("prevResult has the addresses {addresses:?} and the endpoint file {recorded:?}"));
    }
    differs.extend(unreserved(conf, attachment, &endpoint)?);
    match PodLink::check(&open, &spec_of(&endpoint), mac) {
        Ok(()) => {}
        Err(PodLinkError::Differs(differences)) => differs.extend(differences.iter().map(ToString::to_string)),
        Err(error) => return Err(CniError::Link(error)),
    }
    if differs.is_empty() { Ok(()) } else { Err(CniError::Differs(differs)) }
}

/// MAC and addresses of the pod's end in a result.
fn ours(prev: &Value, attachment: &Attachment) -> Result<(Mac, BTreeSet<IpAddr>), CniError> {
    let broken = |why: String| CniError::Config(format!("prevResult: {why}"));
    let result = PrevResult::deserialize(prev).map_err(|e| broken(e.to_string()))?;
    let is_ours = |i: &Interface| i.name == attachment.ifname().as_str() && !i.sandbox.is_empty();
    let (index, interface) = result
        .interfaces
        .iter()
        .enumerate()
        .find(|(_, i)| is_ours(i))
        .ok_or_else(|| broken(format!("it has no interface {}", attachment.ifname())))?;
    let mac = interface.mac.parse().map_err(|e| broken(format!("interface {}: {e}", interface.name)))?;
    let addresses = result.ips.iter().filter(|ip| ip.interface == Some(index)).map(|ip| ip.address.addr()).collect();
    Ok((mac, addresses))
}

/// The pod's addresses whose files are missing or another pod's.
fn unreserved(conf: &NetConf, attachment: &Attachment, endpoint: &EndpointFile) -> Result<Vec<String>, CniError> {
    let dir = AddressDir::new(conf.paths.addresses(&conf.name));
    let locked = dir.lock().map_err(CniError::Addresses)?;
    let reservations = locked.reservations().map_err(CniError::Addresses)?;
    let held = |addr: &IpAddr| reservations.iter().any(|r| r.addr == *addr && r.owner.is(attachment));
    let lost = endpoint.addresses.iter().filter(|addr| !held(addr));
    Ok(lost.map(|addr| format!("address {addr} is not reserved for it")).collect())
}
