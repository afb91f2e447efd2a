//! Pods, reduced to the properties that policy needs.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod as KubePod, PodSpec, PodStatus};
use towpath_core::{
    model::{NodeName, PodId, Protocol},
    policy::ir::{NamedPort, Pod, PodKind},
};

/// Namespace and name; `None` if the object lacks one of them.
pub(crate) fn id(pod: &KubePod) -> Option<PodId> {
    Some(PodId { namespace: pod.metadata.namespace.clone()?, name: pod.metadata.name.clone()? })
}

/// The pod's UID as kubelet and container runtime know it. The mirror pod of a static pod has a UID of its own; the
/// kubelet's UID is in its annotation `kubernetes.io/config.mirror`.
pub(crate) fn uid(pod: &KubePod) -> Option<String> {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get("kubernetes.io/config.mirror")).or(pod.metadata.uid.as_ref()).cloned()
}

/// Converts a pod. `None` if it has finished (phase Succeeded or Failed): its address may be reused at once. A
/// terminating pod is kept until it is deleted, because its processes may still communicate.
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

/// Parses a protocol of the Kubernetes API. Unset means TCP.
pub(crate) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}
