//! Nodes, cut down to what the overlay needs. Annotations are read when they arrive, so that nobody reads a thousand of
//! them again because one has changed.

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

/// A Node as the overlay sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its UID: a Node that was deleted and made again has another.
    pub uid: String,
    /// When it was made.
    pub created: Option<Time>,
    /// Its pods' networks, one per family at most.
    pub pod_cidrs: BTreeMap<Family, IpNet>,
    /// Its addresses of the type InternalIP.
    pub internal_ips: BTreeSet<IpAddr>,
    /// flannel's annotations as they are now.
    pub annotations: BTreeMap<String, String>,
    /// What it publishes, as far as it does.
    pub published: BTreeMap<Family, Result<PublishedVtep, NodeProblem>>,
    /// Its condition NetworkUnavailable.
    pub network_unavailable: NetworkUnavailable,
    /// What is wrong with it as such.
    pub problems: Vec<NodeProblem>,
}

/// What a node publishes for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedVtep {
    /// Where its VTEP is reached.
    pub public_ip: IpAddr,
    /// Its VTEP.
    pub backend: BackendData,
}

/// The condition NetworkUnavailable of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkUnavailable {
    /// Nobody has set it.
    Unset,
    /// Nothing but what needs no network is scheduled there.
    True {
        /// Who set it, and why, in one word.
        reason: String,
    },
    /// The network is up.
    False {
        /// Who set it, and why, in one word.
        reason: String,
    },
}

/// Something in a Node that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeProblem {
    /// An annotation has a value that means nothing.
    #[error("annotation {annotation}: {error}; the node's network daemon writes it, restart it there")]
    Annotation {
        /// Its name.
        annotation: String,
        /// What is wrong. Told in the message, because it is the message.
        error: ParseError,
    },
    /// The node uses another transport.
    #[error("annotation {} is {backend:?} and not \"vxlan\": all nodes need the same backend", flannel::BACKEND_TYPE)]
    Backend {
        /// The transport.
        backend: String,
    },
    /// An entry of podCIDRs is no network.
    #[error("spec.podCIDRs: {cidr:?} is no address range: delete the Node and let it register again")]
    PodCidr {
        /// The entry.
        cidr: String,
    },
    /// There is more than one podCIDR of a family.
    #[error("spec.podCIDRs: {cidr} is a second range of its family, which is not used")]
    SecondPodCidr {
        /// The one that is not used.
        cidr: IpNet,
    },
}

/// What the user has told a node to do about one family's addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressOverrides {
    /// Publish this address to the peers; the local device is not touched by it.
    pub publish: Option<IpAddr>,
    /// Use this address as the local one.
    pub local: Option<IpAddr>,
}

impl NodeRecord {
    /// What the user has told the node to do about its addresses of this family.
    ///
    /// # Errors
    /// If an annotation holds no address of this family.
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
        published: Family::ALL.into_iter().filter_map(|f| Some((f, announcement(f, &annotations)?))).collect(),
        annotations,
        network_unavailable: network_unavailable(&status),
        problems,
    }
}

/// `podCIDRs`, or `podCIDR` where the list is missing, as very old objects have it.
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

/// What the annotations say about a family; `None` as long as they say nothing.
fn announcement(family: Family, annotations: &BTreeMap<String, String>) -> Option<Result<PublishedVtep, NodeProblem>> {
    let names = flannel::names(family);
    let (data, ip) = (annotations.get(names.backend_data)?, annotations.get(names.public_ip)?);
    Some(match annotations.get(flannel::BACKEND_TYPE).map(String::as_str) {
        None => return None,
        Some(flannel::VXLAN) => read_announcement(family, data, ip),
        Some(backend) => Err(NodeProblem::Backend { backend: backend.to_owned() }),
    })
}

fn read_announcement(family: Family, data: &str, ip: &str) -> Result<PublishedVtep, NodeProblem> {
    let names = flannel::names(family);
    let backend = BackendData::parse(data)
        .map_err(|error| NodeProblem::Annotation { annotation: names.backend_data.to_owned(), error })?;
    Ok(PublishedVtep { public_ip: address(family, names.public_ip, ip)?, backend })
}

fn address(family: Family, annotation: &str, text: &str) -> Result<IpAddr, NodeProblem> {
    flannel::parse_address(family, text)
        .map_err(|error| NodeProblem::Annotation { annotation: annotation.to_owned(), error })
}
