//! Nodes and the peers of the overlay.

use imbl::OrdSet;
use ipnet::IpNet;
use serde_json::{Value, json};
use towpath_core::model::{Family, NodeName, Vni};
use towpath_index::{DirtyPart, FamilyPeers, Index, NetworkUnavailable, PeerResolver, PeersByFamily, flannel};

use crate::objects::{Object, me, object, synced};

/// A node that has published its VTEP: podCIDR 10.244.n.0/24, address 172.30.0.n. Nodes with smaller n are older.
fn node(name: &str, n: u8) -> Value {
    json!({
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": format!("uid-{name}"),
            "creationTimestamp": format!("2026-01-01T00:00:{n:02}Z"),
            "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}"#),
                "flannel.alpha.coreos.com/public-ip": format!("172.30.0.{n}"),
                "example.org/other": "x",
            }
        },
        "spec": { "podCIDR": format!("10.244.{n}.0/24"), "podCIDRs": [format!("10.244.{n}.0/24")] },
        "status": { "addresses": [
            { "type": "Hostname", "address": name },
            { "type": "InternalIP", "address": format!("172.30.0.{n}") },
        ] },
    })
}

fn networks() -> Vec<IpNet> {
    vec!["10.244.0.0/16".parse().unwrap()]
}

/// The peers of an index, resolved by a new resolver.
fn resolved(index: &Index, networks: &[IpNet]) -> PeerResolver {
    let mut resolver = PeerResolver::new(me(), networks, Vni::new(1).unwrap());
    resolver.update(index.nodes().unwrap());
    resolver
}

/// The peers in an IPv4-only pod network.
fn view(index: &Index) -> FamilyPeers {
    let PeersByFamily { families, problems } = resolved(index, &networks()).view().clone();
    assert!(problems.is_empty(), "{problems:?}");
    families[&Family::V4].clone()
}

fn names(view: &FamilyPeers) -> Vec<&str> {
    view.peers.keys().map(|node| node.0.as_str()).collect()
}

fn annotate(node: &mut Value, name: &str, value: &str) {
    node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")] = json!(value);
}

#[test]
fn every_other_node_with_a_published_vtep_is_a_peer() {
    let index = synced([object(node("me", 1)), object(node("b", 2)), object(node("c", 3))]);
    let view = view(&index);
    assert_eq!(names(&view), ["b", "c"]);
    let b = &view.peers[&NodeName("b".into())];
    assert_eq!(b.pod_cidr.to_string(), "10.244.2.0/24");
    assert_eq!(b.public_ip.to_string(), "172.30.0.2");
    assert_eq!(b.vtep_mac.to_string(), "02:00:00:00:00:02");
    assert!(view.skipped.is_empty() && view.waiting.is_empty(), "{view:?}");
}

const OWN_VTEP: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;
const VTEP_OF_B: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#;

#[test]
fn a_malformed_node_is_skipped_with_a_reason_and_does_not_affect_others() {
    let change = |change: &dyn Fn(&mut Value)| {
        let mut malformed = node("malformed", 9);
        change(&mut malformed);
        malformed
    };
    for (malformed, reason, why) in [
        (change(&|n| annotate(n, "backend-data", "{")), "backend-data", "not JSON"),
        (change(&|n| annotate(n, "backend-data", "null")), "backend-data", "null, with backend type vxlan"),
        (change(&|n| annotate(n, "public-ip", "fd00::1")), "public-ip", "an address of the other family"),
        (change(&|n| annotate(n, "backend-type", "host-gw")), "host-gw", "another backend"),
        (
            change(&|n| annotate(n, "backend-data", r#"{"VNI":7,"VtepMAC":"02:00:00:00:00:09"}"#)),
            "VNI 7",
            "another VNI",
        ),
        (
            change(&|n| annotate(n, "public-ip", "172.30.0.2")),
            "172.30.0.2 is also that of node b",
            "public IP of an older node",
        ),
        (change(&|n| n["spec"]["podCIDRs"] = json!(["10.99.0.0/24"])), "outside the pod network", "another network"),
        (
            change(&|n| n["spec"]["podCIDRs"] = json!(["10.244.2.0/25"])),
            "10.244.2.0/24 of node b",
            "inside b's podCIDR",
        ),
        (
            change(&|n| n["spec"]["podCIDRs"] = json!(["10.244.2.0/23"])),
            "10.244.2.0/24 of node b",
            "around b's podCIDR",
        ),
        (
            change(&|n| n["spec"]["podCIDRs"] = json!(["10.244.1.0/24"])),
            "10.244.1.0/24 of node me",
            "this node's podCIDR",
        ),
        (
            change(&|n| annotate(n, "public-ip", "172.30.0.1")),
            "172.30.0.1 is also that of node me",
            "this node's public IP",
        ),
        (
            change(&|n| annotate(n, "backend-data", VTEP_OF_B)),
            "MAC 02:00:00:00:00:02 is also that of node b",
            "b's MAC",
        ),
        (
            change(&|n| annotate(n, "backend-data", OWN_VTEP)),
            "MAC 02:00:00:00:00:01 is also that of node me",
            "this node's MAC",
        ),
    ] {
        let index = synced([object(malformed), object(node("me", 1)), object(node("b", 2))]);
        let view = view(&index);
        assert_eq!(names(&view), ["b"], "{why}");
        assert_eq!(view.skipped.len(), 1, "{why}: {view:?}");
        let message = view.skipped[&NodeName("malformed".into())].to_string();
        assert!(message.contains(reason), "{why}: {message}");
    }
}

#[test]
fn a_new_node_is_waiting_and_not_skipped() {
    let mut no_cidr = node("no-cidr", 8);
    no_cidr["spec"] = json!({});
    let mut unpublished = node("unpublished", 9);
    unpublished["metadata"]["annotations"] = json!({});
    let mut incomplete = node("incomplete", 10);
    incomplete["metadata"]["annotations"].as_object_mut().unwrap().remove("flannel.alpha.coreos.com/public-ip");
    let index = synced([no_cidr, unpublished, incomplete, node("me", 1), node("b", 2)].map(object));
    let view = view(&index);
    assert_eq!(names(&view), ["b"]);
    assert!(view.skipped.is_empty(), "{view:?}");
    let waiting: Vec<&str> = view.waiting.iter().map(|name| name.0.as_str()).collect();
    assert_eq!(waiting, ["incomplete", "no-cidr", "unpublished"]);
}

#[test]
fn a_node_without_a_published_vtep_keeps_its_podcidr() {
    let mut unpublished = node("unpublished", 2);
    unpublished["metadata"]["annotations"] = json!({});
    let mut duplicate = node("duplicate", 3);
    duplicate["spec"]["podCIDRs"] = json!(["10.244.2.0/24"]);
    let view = view(&synced([unpublished, duplicate, node("me", 1)].map(object)));
    assert!(names(&view).is_empty());
    assert_eq!(view.skipped.len(), 1, "the younger node is skipped: {view:?}");
}

#[test]
fn the_families_are_independent() {
    let mut dual = node("dual", 2);
    dual["spec"]["podCIDRs"] = json!(["10.244.2.0/24", "fd00:2::/64", "fd00:3::/64", "nonsense"]);
    annotate(&mut dual, "backend-v6-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}"#);
    annotate(&mut dual, "public-ipv6", "2001:db8::2");
    let index = synced([object(node("me", 1)), object(dual)]);
    let networks = ["10.244.0.0/16", "fd00::/16"].map(|n| n.parse().unwrap());
    let resolved = resolved(&index, &networks);
    let PeersByFamily { families, problems } = resolved.view();
    let dual = NodeName("dual".into());
    let v6 = &families[&Family::V6].peers[&dual];
    assert_eq!((v6.pod_cidr.to_string(), v6.public_ip.to_string()), ("fd00:2::/64".into(), "2001:db8::2".into()));
    assert_eq!(v6.vtep_mac.to_string(), "02:00:00:00:06:02");
    assert_eq!(families[&Family::V4].peers.len(), 1, "IPv4 is not affected");
    assert_eq!(families[&Family::V6].waiting, OrdSet::unit(me()), "this node has no IPv6 podCIDR");
    let problems: Vec<String> = problems[&dual].iter().map(ToString::to_string).collect();
    assert!(problems[0].contains("fd00:3::/64") && problems[1].contains("nonsense"), "{problems:?}");
}

#[test]
fn pod_cidr_is_used_if_pod_cidrs_is_missing() {
    let mut old = node("old", 2);
    old["spec"] = json!({ "podCIDR": "10.244.2.0/24" });
    assert_eq!(names(&view(&synced([object(old), object(node("me", 1))]))), ["old"]);
}

#[test]
fn the_underlay_contains_internal_and_public_ips_of_all_nodes() {
    let mut b = node("b", 2);
    annotate(&mut b, "public-ip", "198.51.100.2");
    let index = synced([object(node("me", 1)), object(b)]);
    let addresses: Vec<String> = resolved(&index, &networks()).underlay().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["172.30.0.1", "172.30.0.2", "198.51.100.2"]);
}

#[test]
fn the_own_node_has_uid_podcidrs_condition_and_overrides() {
    let mut own = node("me", 1);
    annotate(&mut own, "public-ip-overwrite", "198.51.100.1");
    annotate(&mut own, "node-public-ip", "172.30.0.77");
    annotate(&mut own, "node-public-ipv6", "no address");
    own["status"]["conditions"] =
        json!([{ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" }]);
    let mut index = synced([object(own)]);
    let node = index.own_node().unwrap();
    assert_eq!(node.uid, "uid-me");
    assert_eq!(node.pod_cidrs[&Family::V4].to_string(), "10.244.1.0/24");
    assert_eq!(node.network_unavailable, NetworkUnavailable::True { reason: "NoRouteCreated".into() });
    let overrides = node.overrides(Family::V4).unwrap();
    assert_eq!(overrides.publish.unwrap().to_string(), "198.51.100.1");
    assert_eq!(overrides.local.unwrap().to_string(), "172.30.0.77");
    let error = node.overrides(Family::V6).unwrap_err().to_string();
    assert!(error.contains("node-public-ipv6") && error.contains("no address"), "{error}");
    assert!(node.annotations.keys().all(|k| k.starts_with(flannel::PREFIX)), "other annotations are dropped");
    assert_eq!(view(&index).peers.len(), 0, "a node is not its own peer");
    let _ = index.apply(object(self::node("me", 1)).deleted());
    assert!(index.own_node().is_none());
}

#[test]
fn only_relevant_changes_of_a_node_make_parts_dirty() {
    let mut index = synced([object(node("me", 1)), object(node("b", 2))]);
    let mut apply = |node: Value| index.apply(object(node).applied());
    assert!(apply(node("b", 2)).is_empty(), "no change");
    let mut heartbeat = node("b", 2);
    heartbeat["metadata"]["resourceVersion"] = json!("77");
    heartbeat["metadata"]["annotations"]["example.org/other"] = json!("y");
    heartbeat["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    assert!(apply(heartbeat).is_empty(), "no relevant property has changed");
    let mut moved = node("b", 2);
    annotate(&mut moved, "public-ip", "172.30.0.99");
    let dirty = apply(moved);
    assert!(dirty.contains(DirtyPart::Nodes) && !dirty.contains(DirtyPart::Policy));
    let mut own = node("me", 1);
    own["metadata"]["uid"] = json!("recreated");
    assert!(apply(own).contains(DirtyPart::Nodes), "this Node was deleted and recreated");
}

#[test]
fn the_same_node_wins_a_conflict_in_any_order_of_events() {
    let twin = |name: &str, n| {
        let mut node = node(name, n);
        node["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        node["spec"]["podCIDRs"] = json!(["10.244.2.0/24"]);
        node
    };
    let mut nodes = [object(node("me", 1)), object(twin("x", 8)), object(twin("b", 9))];
    let first = view(&synced(nodes.clone()));
    nodes.reverse();
    assert_eq!(first, view(&synced(nodes)));
    assert_eq!(names(&first), ["b"], "equal creation times: the first name wins");
    assert!(first.skipped.contains_key(&NodeName("x".into())));
}

#[test]
fn snapshot_and_nodes_are_none_until_all_kinds_have_been_listed() {
    let mut index = Index::new(me());
    let objects: [Object; 1] = [object(node("me", 1))];
    for object in objects {
        assert!(!index.apply(object.applied()).is_empty());
    }
    assert!(!index.synced() && index.snapshot().is_none() && index.nodes().is_none());
    assert!(index.own_node().is_some(), "the own node does not depend on other objects");
}
