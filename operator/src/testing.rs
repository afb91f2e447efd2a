//! Builders for tests.

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use crate::{
    facts::{Kubelet, NodeFacts, ReadyCondition, ReportFacts, UplinkFacts},
    store::{ObjectEvent, Store},
};

/// Current time of the tests.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(crate) fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A store that has been listed.
pub(crate) fn table<T: PartialEq>(objects: impl IntoIterator<Item = (String, T)>) -> Store<T> {
    let mut table = Store::default();
    table.apply(ObjectEvent::ListStarted);
    for (name, object) in objects {
        table.apply(ObjectEvent::Listed(name, object));
    }
    table.apply(ObjectEvent::ListDone);
    table
}

/// The node number `index`, 172.30.0.11 and up, an hour old.
pub(crate) fn node(index: usize, pod_cidrs: &[&str]) -> NodeFacts {
    NodeFacts {
        pod_cidrs: nets(pod_cidrs),
        addresses: vec![format!("172.30.0.{}", 11 + index).parse().unwrap()],
        kubelet: Kubelet::Reachable,
        created: Some(Timestamp::from_second(now().as_second() - 3600).unwrap()),
    }
}

/// Nodes n0, n1, … with these podCIDRs.
pub(crate) fn node_table(pod_cidrs: &[&[&str]]) -> Store<NodeFacts> {
    table(pod_cidrs.iter().enumerate().map(|(i, cidrs)| (format!("n{i}"), node(i, cidrs))))
}

/// A report of a healthy node, a minute old.
pub(crate) fn report(revision: &str) -> ReportFacts {
    ReportFacts {
        revision: Some(revision.to_owned()),
        version: Some("0.1.0".to_owned()),
        at: Some(Timestamp::from_second(now().as_second() - 60).unwrap()),
        ready: Some(ReadyCondition { is_true: true, reason: "DataPathReady".to_owned(), message: String::new() }),
        uplink: Some(UplinkFacts {
            name: "eth0".to_owned(),
            mtu: 1500,
            addresses: vec!["172.30.0.11".parse().unwrap()],
        }),
        mtus: vec![1450],
        peers: 9,
        rejected: Vec::new(),
    }
}
