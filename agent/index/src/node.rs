//! Nodes, reduced to the properties that the overlay needs. Annotations are parsed once, when a Node changes, and not for
//! all Nodes at each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Node as KubeNode, NodeSpec, NodeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use towpath_core::model::{Family, NodeName, ParseError};

use crate::flannel::{self, BackendData};

/// The properties of a Node that the overlay needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// `metadata.uid`. A Node that is deleted and created again gets another UID.
    pub uid: String,
    /// `metadata.creationTimestamp`.
    pub created: Option<Time>,
    /// `spec.podCIDRs`, without host bits. At most one per family.
    pub pod_cidrs: BTreeMap<Family, IpNet>,
    /// The addresses of type InternalIP in `status.addresses`.
    pub internal_ips: BTreeSet<IpAddr>,
    /// The annotations with flannel's prefix, [`flannel::PREFIX`].
    pub annotations: BTreeMap<String, String>,
    /// The VTEPs that the node publishes, by family. Families without complete annotations are missing.
    pub published: BTreeMap<Family, Result<PublishedVtep, NodeProblem>>,
    /// The condition NetworkUnavailable.
    pub network_unavailable: NetworkUnavailable,
    /// Problems with the podCIDRs. Problems with annotations are in `published`.
    pub problems: Vec<NodeProblem>,
}

/// The VTEP that a node publishes for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedVtep {
    /// The underlay address of the VTEP.
    pub public_ip: IpAddr,
    /// The VNI and the MAC address of the VTEP.
    pub backend: BackendData,
}

/// The NetworkUnavailable condition of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkUnavailable {
    /// The condition is missing, or its status is Unknown.
    Unset,
    /// The network is not ready. Kubernetes taints the Node, so only pods that tolerate the taint are scheduled.
    True {
        /// The condition's `reason`, which tells which component has set it.
        reason: String,
    },
    /// The network is ready.
    False {
        /// The condition's `reason`, which tells which component has set it.
        reason: String,
    },
}

/// A part of a Node that is invalid and ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeProblem {
    /// The value of an annotation is malformed.
    #[error(
        "annotation {annotation}: {error}; correct it, or restart the node's network agent if the agent has written it"
    )]
    Annotation {
        /// The name of the annotation.
        annotation: String,
        /// Why the value is malformed. It is part of the message and not a source.
        error: ParseError,
    },
    /// The node uses another flannel backend.
    #[error("annotation {} is {backend:?}, not \"vxlan\": all nodes must use the same backend", flannel::BACKEND_TYPE)]
    Backend {
        /// The value of the annotation.
        backend: String,
    },
    /// An entry of podCIDRs is malformed.
    #[error("spec.podCIDRs: {cidr:?} is not a CIDR: delete the Node and let it register again")]
    PodCidr {
        /// The entry.
        cidr: String,
    },
    /// There is more than one podCIDR of a family.
    #[error("spec.podCIDRs: {cidr} is ignored: a node has at most one podCIDR per address family")]
    SecondPodCidr {
        /// The podCIDR that is ignored.
        cidr: IpNet,
    },
}

/// Addresses of one family that the user sets by annotation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressOverrides {
    /// The public IP to publish to the peers. It does not change the local address of the VXLAN device.
    pub publish: Option<IpAddr>,
    /// The local underlay address to use.
    pub local: Option<IpAddr>,
}

impl NodeRecord {
    /// The addresses of this family that the user sets by annotation.
    ///
    /// # Errors
    /// If the value of an annotation is not an address of this family.
    pub fn overrides(&self, family: Family) -> Result<AddressOverrides, NodeProblem> {
        let names = flannel::names(family);
        let read = |annotation: &str| match self.annotations.get(annotation) {
            None => Ok(None),
            Some(text) => address(family, annotation, text).map(Some),
        };
        Ok(AddressOverrides { publish: read(names.public_ip_overwrite)?, local: read(names.node_public_ip)? })
    }
}

pub(crate) fn name(node: &KubeNode) -> Option<NodeName> {
    node.metadata.name.clone().map(NodeName)
}

pub(crate) fn convert(node: KubeNode) -> NodeRecord {
    let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
    let mut annotations = node.metadata.annotations.unwrap_or_default();
    annotations.retain(|name, _| name.starts_with(flannel::PREFIX));
    let mut problems = Vec::new();
    let pod_cidrs = pod_cidrs(&spec, &mut problems);
    NodeRecord {
        uid: node.metadata.uid.unwrap_or_default(),
        created: node.metadata.creation_timestamp,
        pod_cidrs,
        internal_ips: internal_ips(&status),
        published: Family::ALL.into_iter().filter_map(|f| Some((f, published_vtep(f, &annotations)?))).collect(),
        annotations,
        network_unavailable: network_unavailable(&status),
        problems,
    }
}

/// `podCIDRs`, or `podCIDR` if the list is missing, as in objects from before dual-stack.
fn pod_cidrs(spec: &NodeSpec, problems: &mut Vec<NodeProblem>) -> BTreeMap<Family, IpNet> {
    let list = spec.pod_cidrs.as_deref().filter(|list| !list.is_empty());
    let texts = list.unwrap_or(spec.pod_cidr.as_slice()).iter().filter(|text| !text.is_empty());
    let mut cidrs = BTreeMap::new();
    for text in texts {
        match text.parse::<IpNet>().map(|net| net.trunc()) {
            Err(_) => problems.push(NodeProblem::PodCidr { cidr: text.clone() }),
            Ok(cidr) if cidrs.contains_key(&Family::of_net(cidr)) => problems.push(NodeProblem::SecondPodCidr { cidr }),
            Ok(cidr) => {
                cidrs.insert(Family::of_net(cidr), cidr);
            }
        }
    }
    cidrs
}

fn internal_ips(status: &NodeStatus) -> BTreeSet<IpAddr> {
    let internal = status.addresses.iter().flatten().filter(|a| a.type_ == "InternalIP");
    internal.filter_map(|a| a.address.parse().ok()).collect()
}

fn network_unavailable(status: &NodeStatus) -> NetworkUnavailable {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "NetworkUnavailable");
    let reason = || condition.and_then(|c| c.reason.clone()).unwrap_or_default();
    match condition.map(|c| c.status.as_str()) {
        Some("True") => NetworkUnavailable::True { reason: reason() },
        Some("False") => NetworkUnavailable::False { reason: reason() },
        Some(_) | None => NetworkUnavailable::Unset,
    }
}

/// The VTEP in the annotations of a family; `None` if annotations are missing.
fn published_vtep(
    family: Family,
    annotations: &BTreeMap<String, String>,
) -> Option<Result<PublishedVtep, NodeProblem>> {
    let names = flannel::names(family);
    let (data, ip) = (annotations.get(names.backend_data)?, annotations.get(names.public_ip)?);
    Some(match annotations.get(flannel::BACKEND_TYPE).map(String::as_str) {
        None => return None,
        Some(flannel::VXLAN) => parse_vtep(family, data, ip),
        Some(backend) => Err(NodeProblem::Backend { backend: backend.to_owned() }),
    })
}

fn parse_vtep(family: Family, data: &str, ip: &str) -> Result<PublishedVtep, NodeProblem> {
    let names = flannel::names(family);
    let backend = BackendData::parse(data)
        .map_err(|error| NodeProblem::Annotation { annotation: names.backend_data.to_owned(), error })?;
    Ok(PublishedVtep { public_ip: address(family, names.public_ip, ip)?, backend })
}

fn address(family: Family, annotation: &str, text: &str) -> Result<IpAddr, NodeProblem> {
    flannel::parse_address(family, text)
        .map_err(|error| NodeProblem::Annotation { annotation: annotation.to_owned(), error })
}
