//! Nodes as peers of the overlay.

use imbl::OrdSet;
use ipnet::IpNet;
use serde_json::{Value, json};
use towpath_core::model::{Family, NodeName, Vni};
use towpath_index::{DirtyPart, FamilyPeers, Index, NetworkUnavailable, PeerResolver, PeersByFamily, flannel};

use crate::objects::{Object, me, object, synced};

/// A node that has published itself: its podCIDR is 10.244.n.0/24, its address 172.30.0.n. Older ones have smaller n.
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

/// The nodes of an index, sorted from nothing.
fn sorted(index: &Index, networks: &[IpNet]) -> PeerResolver {
    let mut sorter = PeerResolver::new(me(), networks, Vni::new(1).unwrap());
    sorter.update(index.nodes().unwrap());
    sorter
}

/// The view of a pod network of IPv4 alone.
fn view(index: &Index) -> FamilyPeers {
    let PeersByFamily { families, problems } = sorted(index, &networks()).view().clone();
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
fn every_other_node_that_has_published_itself_is_a_peer() {
    let index = synced([object(node("me", 1)), object(node("b", 2)), object(node("c", 3))]);
    let view = view(&index);
    assert_eq!(names(&view), ["b", "c"]);
    let b = &view.peers[&NodeName("b".into())];
    assert_eq!(b.pod_cidr.to_string(), "10.244.2.0/24");
    assert_eq!(b.public_ip.to_string(), "172.30.0.2");
    assert_eq!(b.vtep_mac.to_string(), "02:00:00:00:00:02");
    assert!(view.skipped.is_empty() && view.waiting.is_empty(), "{view:?}");
}

const OUR_VTEP: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;
const B_S_VTEP: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#;

#[test]
fn a_bad_node_is_left_out_with_a_reason_and_costs_nobody_else() {
    let change = |change: &dyn Fn(&mut Value)| {
        let mut bad = node("bad", 9);
        change(&mut bad);
        bad
    };
    for (bad, reason, why) in [
        (change(&|n| annotate(n, "backend-data", "{")), "backend-data", "no JSON"),
        (change(&|n| annotate(n, "backend-data", "null")), "backend-data", "null without a backend type of its own"),
        (change(&|n| annotate(n, "public-ip", "fd00::1")), "public-ip", "an address of the other family"),
        (change(&|n| annotate(n, "backend-type", "host-gw")), "host-gw", "another transport"),
        (
            change(&|n| annotate(n, "backend-data", r#"{"VNI":7,"VtepMAC":"02:00:00:00:00:09"}"#)),
            "VNI 7",
            "another VNI",
        ),
        (change(&|n| annotate(n, "public-ip", "172.30.0.2")), "172.30.0.2 as node b", "an older node has the address"),
        (change(&|n| n["spec"]["podCIDRs"] = json!(["10.99.0.0/24"])), "outside of the pod network", "not ours"),
        (change(&|n| n["spec"]["podCIDRs"] = json!(["10.244.2.0/25"])), "10.244.2.0/24 of node b", "inside of b's"),
        (change(&|n| n["spec"]["podCIDRs"] = json!(["10.244.2.0/23"])), "10.244.2.0/24 of node b", "around b's"),
        (change(&|n| n["spec"]["podCIDRs"] = json!(["10.244.1.0/24"])), "10.244.1.0/24 of node me", "our own"),
        (change(&|n| annotate(n, "public-ip", "172.30.0.1")), "172.30.0.1 as node me", "our own address"),
        (change(&|n| annotate(n, "backend-data", B_S_VTEP)), "MAC 02:00:00:00:00:02 as node b", "b's MAC"),
        (change(&|n| annotate(n, "backend-data", OUR_VTEP)), "MAC 02:00:00:00:00:01 as node me", "our own MAC"),
    ] {
        let index = synced([object(bad), object(node("me", 1)), object(node("b", 2))]);
        let view = view(&index);
        assert_eq!(names(&view), ["b"], "{why}");
        assert_eq!(view.skipped.len(), 1, "{why}: {view:?}");
        let said = view.skipped[&NodeName("bad".into())].to_string();
        assert!(said.contains(reason), "{why}: {said}");
    }
}

#[test]
fn a_node_that_is_not_ready_is_waited_for_and_not_complained_about() {
    let mut no_cidr = node("no-cidr", 8);
    no_cidr["spec"] = json!({});
    let mut silent = node("silent", 9);
    silent["metadata"]["annotations"] = json!({});
    let mut half = node("half", 10);
    half["metadata"]["annotations"].as_object_mut().unwrap().remove("flannel.alpha.coreos.com/public-ip");
    let index = synced([no_cidr, silent, half, node("me", 1), node("b", 2)].map(object));
    let view = view(&index);
    assert_eq!(names(&view), ["b"]);
    assert!(view.skipped.is_empty(), "{view:?}");
    let waiting: Vec<&str> = view.waiting.iter().map(|name| name.0.as_str()).collect();
    assert_eq!(waiting, ["half", "no-cidr", "silent"]);
}

#[test]
fn a_silent_node_keeps_its_podcidr_to_itself() {
    let mut silent = node("silent", 2);
    silent["metadata"]["annotations"] = json!({});
    let mut thief = node("thief", 3);
    thief["spec"]["podCIDRs"] = json!(["10.244.2.0/24"]);
    let view = view(&synced([silent, thief, node("me", 1)].map(object)));
    assert!(names(&view).is_empty());
    assert_eq!(view.skipped.len(), 1, "the younger one is named: {view:?}");
}

#[test]
fn the_families_are_independent() {
    let mut dual = node("dual", 2);
    dual["spec"]["podCIDRs"] = json!(["10.244.2.0/24", "fd00:2::/64", "fd00:3::/64", "nonsense"]);
    annotate(&mut dual, "backend-v6-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:06:02"}"#);
    annotate(&mut dual, "public-ipv6", "2001:db8::2");
    let index = synced([object(node("me", 1)), object(dual)]);
    let networks = ["10.244.0.0/16", "fd00::/16"].map(|n| n.parse().unwrap());
    let sorted = sorted(&index, &networks);
    let PeersByFamily { families, problems } = sorted.view();
    let dual = NodeName("dual".into());
    let v6 = &families[&Family::V6].peers[&dual];
    assert_eq!((v6.pod_cidr.to_string(), v6.public_ip.to_string()), ("fd00:2::/64".into(), "2001:db8::2".into()));
    assert_eq!(v6.vtep_mac.to_string(), "02:00:00:00:06:02");
    assert_eq!(families[&Family::V4].peers.len(), 1, "IPv4 as before");
    assert_eq!(families[&Family::V6].waiting, OrdSet::unit(me()), "we have no IPv6 podCIDR ourselves");
    let problems: Vec<String> = problems[&dual].iter().map(ToString::to_string).collect();
    assert!(problems[0].contains("fd00:3::/64") && problems[1].contains("nonsense"), "{problems:?}");
}

#[test]
fn the_old_field_podcidr_counts_where_the_list_is_missing() {
    let mut old = node("old", 2);
    old["spec"] = json!({ "podCIDR": "10.244.2.0/24" });
    assert_eq!(names(&view(&synced([object(old), object(node("me", 1))]))), ["old"]);
}

#[test]
fn the_underlay_is_every_address_that_a_node_may_send_from() {
    let mut b = node("b", 2);
    annotate(&mut b, "public-ip", "198.51.100.2");
    let index = synced([object(node("me", 1)), object(b)]);
    let addresses: Vec<String> = sorted(&index, &networks()).underlay().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["172.30.0.1", "172.30.0.2", "198.51.100.2"]);
}

#[test]
fn our_own_node_tells_what_the_agent_must_know_of_it() {
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
    assert!(node.annotations.keys().all(|k| k.starts_with(flannel::PREFIX)), "only flannel's are kept");
    assert_eq!(view(&index).peers.len(), 0, "nobody is its own peer");
    let _ = index.apply(object(self::node("me", 1)).deleted());
    assert!(index.own_node().is_none());
}

#[test]
fn only_a_change_that_matters_makes_something_stale() {
    let mut index = synced([object(node("me", 1)), object(node("b", 2))]);
    let mut apply = |node: Value| index.apply(object(node).applied());
    assert!(apply(node("b", 2)).is_empty(), "the same again");
    let mut heartbeat = node("b", 2);
    heartbeat["metadata"]["resourceVersion"] = json!("77");
    heartbeat["metadata"]["annotations"]["example.org/other"] = json!("y");
    heartbeat["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    assert!(apply(heartbeat).is_empty(), "nothing of ours has changed");
    let mut moved = node("b", 2);
    annotate(&mut moved, "public-ip", "172.30.0.99");
    let dirty = apply(moved);
    assert!(dirty.contains(DirtyPart::Nodes) && !dirty.contains(DirtyPart::Policy));
    let mut own = node("me", 1);
    own["metadata"]["uid"] = json!("made again");
    assert!(apply(own).contains(DirtyPart::Nodes), "our Node was deleted and made again");
}

#[test]
fn what_is_claimed_twice_goes_to_the_same_node_in_any_order() {
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
    assert_eq!(names(&first), ["b"], "equal age: the name decides");
    assert!(first.skipped.contains_key(&NodeName("x".into())));
}

#[test]
fn nothing_is_handed_out_before_all_kinds_have_been_listed() {
    let mut index = Index::new(me());
    let objects: [Object; 1] = [object(node("me", 1))];
    for object in objects {
        assert!(!index.apply(object.applied()).is_empty());
    }
    assert!(!index.synced() && index.snapshot().is_none() && index.nodes().is_none());
    assert!(index.own_node().is_some(), "one object is whole as soon as it is there");
}
