//! ADD: from the node's local state only, without a request to the API server.

use std::path::Path;

use nix::net::if_::if_nametoindex;
use serde_json::Value;
use towpath_core::{model::PodId, names::IfName};
use towpath_local::{Attachment, EndpointFile, Endpoints, NodeState, Reply, Request, ask};
use towpath_podlink::{PodLink, PodLinkError, PodLinkSpec, netns::Netns};

use crate::{
    answer,
    config::NetConf,
    detach::{self, Cleanup},
    error::{ADD_LIMIT, CniError},
    lease,
};

/// Creates a pod's interface with its addresses, once its policy rules are in force; a failure undoes everything.
///
/// Order: addresses, veth, rules, routes. Nothing reaches the pod before the last step, and its packets are dropped
/// as long as its interface is not in the rules.
pub(crate) fn add(
    conf: &NetConf,
    attachment: &Attachment,
    netns: &Path,
    (pod, uid): (&PodId, Option<&str>),
) -> Result<Value, CniError> {
    if conf.prev_result.is_some() {
        let rule = "towpath creates the pod's interface and must be the first plugin of the list";
        return Err(CniError::Config(rule.to_owned()));
    }
    let open = Netns::open(netns).map_err(CniError::Netns)?;
    let node = NodeState::read(&conf.paths).map_err(CniError::Local)?.ok_or(CniError::NodeNotReady)?;
    clear_earlier_attempt(conf, attachment)?;
    let endpoint = EndpointFile {
        container_id: attachment.container_id().to_owned(),
        ifname: attachment.ifname().clone(),
        netns: netns.to_owned(),
        network: conf.name.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        pod_uid: uid.map(str::to_owned),
        host_interface: IfName::of_pod(&pod.namespace, &pod.name),
        addresses: Vec::new(),
        mtu: node.mtu,
    };
    let endpoint = lease::reserve(conf, &node, attachment, endpoint)?;
    let spec = spec_of(&endpoint);
    let link = create_link(conf, attachment, &open, &spec).inspect_err(|_| {
        // The first error is the one to report; DEL finds what stays behind.
        let _ = detach::remove(conf, attachment, &endpoint, Cleanup::Files);
    })?;
    let connected = commit_rules(conf, &endpoint).and_then(|()| link.connect(&spec).map_err(CniError::Link));
    connected.inspect_err(|_| {
        let _ = detach::remove(conf, attachment, &endpoint, Cleanup::All);
    })?;
    Ok(answer::added(conf, &spec, link.pod_mac, netns))
}

/// Removes what a process left that was killed during this same ADD. A finished ADD stays as it is: a second ADD of one
/// container is an error, and must not harm the pod.
fn clear_earlier_attempt(conf: &NetConf, attachment: &Attachment) -> Result<(), CniError> {
    let Some(earlier) = Endpoints::new(&conf.paths).read(attachment).map_err(CniError::Local)? else { return Ok(()) };
    if if_nametoindex(earlier.host_interface.as_str()).is_ok() {
        return Err(CniError::InterfaceExists(attachment.ifname().to_string()));
    }
    detach::remove(conf, attachment, &earlier, Cleanup::Files)
}

/// Creates the link. One that an earlier container of the same pod left is removed first, with its addresses: a pod has
/// one sandbox at a time, so that container is dead, and its DEL is late or lost.
fn create_link(
    conf: &NetConf,
    attachment: &Attachment,
    netns: &Netns,
    spec: &PodLinkSpec,
) -> Result<PodLink, CniError> {
    match PodLink::create(netns, spec) {
        Err(PodLinkError::HostExists { .. }) => {}
        Err(PodLinkError::PodExists { name }) => return Err(CniError::InterfaceExists(name.to_string())),
        created => return created.map_err(CniError::Link),
    }
    let listing = Endpoints::new(&conf.paths).list().map_err(CniError::Local)?;
    for earlier in listing.endpoints.into_iter().filter(|e| e.host_interface == spec.host) {
        let Ok(other) = earlier.attachment() else { continue };
        if other == *attachment {
            continue;
        }
        if other.container_id() == attachment.container_id() {
            return Err(CniError::SecondInterface { pod: earlier.pod_id(), ifname: earlier.ifname.to_string() });
        }
        detach::remove(conf, &other, &earlier, Cleanup::All)?;
    }
    PodLink::delete(&spec.host).map_err(CniError::Link)?;
    match PodLink::create(netns, spec) {
        Err(PodLinkError::PodExists { name }) => Err(CniError::InterfaceExists(name.to_string())),
        created => created.map_err(CniError::Link),
    }
}

/// The link that an endpoint file describes.
pub(crate) fn spec_of(endpoint: &EndpointFile) -> PodLinkSpec {
    PodLinkSpec {
        host: endpoint.host_interface.clone(),
        pod: endpoint.ifname.clone(),
        addresses: endpoint.addresses.clone(),
        mtu: endpoint.mtu,
    }
}

fn commit_rules(conf: &NetConf, endpoint: &EndpointFile) -> Result<(), CniError> {
    let request = Request::Add { endpoint: endpoint.clone() };
    match ask(&conf.paths, &request, ADD_LIMIT).map_err(CniError::Ask)? {
        Reply::Ok => Ok(()),
        Reply::Error { code, msg, details } => Err(CniError::Agent { code, msg, details }),
    }
}
