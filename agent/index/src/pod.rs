//! Pods, cut down to what policy needs.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod as KubePod, PodSpec, PodStatus};
use towpath_core::{
    model::{NodeName, PodId, Protocol},
    policy::ir::{NamedPort, Pod, PodKind},
};

/// The pod's name; `None` for an object without one.
pub(crate) fn id(pod: &KubePod) -> Option<PodId> {
    Some(PodId { namespace: pod.metadata.namespace.clone()?, name: pod.metadata.name.clone()? })
}

/// The UID by which the kubelet and the runtime know the pod. Of a static pod the API server has an image with a UID of its
/// own, and an annotation with the kubelet's.
pub(crate) fn uid(pod: &KubePod) -> Option<String> {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get("kubernetes.io/config.mirror")).or(pod.metadata.uid.as_ref()).cloned()
}

/// The pod as policy sees it. `None` once it has run to its end: its address may belong to another pod the next moment.
/// A pod that is terminating stays until it is gone, because its processes still talk.
pub(crate) fn convert(pod: KubePod) -> Option<Pod> {
    let status = pod.status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let spec = pod.spec.unwrap_or_default();
    let kind = if spec.host_network == Some(true) { PodKind::HostNetwork } else { PodKind::Endpoint };
    let (addresses, named_ports) = match kind {
        PodKind::Endpoint => (addresses(&status), named_ports(&spec)),
        PodKind::HostNetwork => (BTreeSet::new(), BTreeSet::new()),
    };
    Some(Pod {
        labels: pod.metadata.labels.unwrap_or_default(),
        addresses,
        named_ports,
        kind,
        node: spec.node_name.filter(|name| !name.is_empty()).map(NodeName),
    })
}

fn addresses(status: &PodStatus) -> BTreeSet<IpAddr> {
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    all.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect()
}

fn named_ports(spec: &PodSpec) -> BTreeSet<NamedPort> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.flat_map(container_ports).collect()
}

fn container_ports(container: &Container) -> impl Iterator<Item = NamedPort> {
    container.ports.iter().flatten().filter_map(named_port)
}

fn named_port(port: &ContainerPort) -> Option<NamedPort> {
    let name = port.name.clone().filter(|name| !name.is_empty())?;
    let number = u16::try_from(port.container_port).ok().filter(|n| *n != 0)?;
    Some(NamedPort { name, protocol: protocol(port.protocol.as_deref())?, port: number })
}

/// A protocol of the API; unset means TCP.
pub(crate) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}
