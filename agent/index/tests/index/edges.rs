//! Incomplete or inconsistent objects: missing namespaces, duplicate addresses, undecodable objects.

use serde_json::{Value, json};
use towpath_core::{
    model::{PodId, Protocol},
    policy::{
        eval::{Flow, FlowEndpoint, FlowTransport, eval},
        ir::{NamedPort, PodKind},
    },
};
use towpath_index::ObjectChange;

use crate::{
    cluster::{check_now, cluster_pod, objects},
    objects::{Object, namespace, object, of_every_kind, pod, policy, synced},
};

/// A policy of namespace `a` that allows ingress from these peers.
fn from(peers: Value) -> Object {
    policy("a", "p", json!({ "podSelector": {}, "ingress": [{ "from": peers }] }))
}

#[test]
fn an_address_of_two_pods_belongs_to_both_until_one_has_finished() {
    let clients = json!([{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "role": "client" } } }]);
    let mut index = synced(objects().into_iter().chain([from(clients)]));
    let old = |phase: &str| {
        let mut old = cluster_pod("b", "done", 5, json!({ "role": "client" }));
        old["status"]["phase"] = json!(phase);
        object(old)
    };
    let new_pod = |labels| object(cluster_pod("c", "new", 5, labels));
    let packet = ["b/done > a/web tcp 1"];
    let mut then = |what: Object, why: &str, passes: bool| {
        let _ = index.apply(what.applied());
        if passes { check_now(why, &index, &packet, &[]) } else { check_now(why, &index, &[], &packet) }
    };
    then(new_pod(json!({})), "the only pod with the address does not have the label", false);
    then(old("Running"), "one of two pods with the address has the label", true);
    then(new_pod(json!({ "x": "1" })), "a change of the pod without the label has no effect", true);
    then(old("Failed"), "a finished pod has no address", false);
    then(new_pod(json!({ "role": "client" })), "the new pod gets the label", true);
    then(old("Running"), "both pods have the label", true);
    then(old("Succeeded"), "the element of the new pod stays when the old one finishes", true);
}

#[test]
fn no_namespace_selector_matches_a_pod_of_an_unknown_namespace() {
    let selectors = json!([
        { "namespaceSelector": { "matchLabels": { "team": "blue" } } },
        { "namespaceSelector": { "matchExpressions": [{ "key": "team", "operator": "DoesNotExist" }] } },
        { "podSelector": { "matchLabels": { "tier": "back" } } },
    ]);
    let blue = || namespace("b", json!({ "team": "blue" }));
    let mut index = synced(objects().into_iter().chain([from(selectors)]));
    let (of_b, of_c, of_a) = ("b/client > a/web tcp 1", "c/other > a/web tcp 1", "a/db > a/web tcp 1");
    check_now("all namespaces are known", &index, &[of_b, of_c, of_a], &["a/web > a/db tcp 1"]);
    let _ = index.apply(blue().deleted());
    check_now(
        "the namespace is deleted before the pod: not even a negative selector matches",
        &index,
        &[of_c, of_a],
        &[of_b],
    );
    let _ = index.apply(blue().applied());
    check_now("the namespace is created after the pod", &index, &[of_b, of_c, of_a], &[]);
    let _ = index.apply(namespace("a", json!({})).deleted());
    check_now("a policy's own namespace is matched by name", &index, &[of_b, of_c, of_a], &["a/web > a/db tcp 1"]);
}

#[test]
fn a_host_network_pod_has_no_addresses_and_no_named_ports() {
    let mut host = cluster_pod("b", "host", 8, json!({}));
    host["spec"] = json!({
        "hostNetwork": true, "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 80 }] }],
    });
    let index = synced([object(host)]);
    let id = PodId { namespace: "b".to_owned(), name: "host".to_owned() };
    let host = &index.snapshot().unwrap().pods[&id];
    assert_eq!((host.kind, host.addresses.len(), host.named_ports.len()), (PodKind::HostNetwork, 0, 0));
}

#[test]
fn no_policy_isolates_a_host_network_pod() {
    let closed = policy("b", "p", json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }));
    let index = synced(objects().into_iter().chain([closed]));
    let of_b = |name: &str| PodId { namespace: "b".to_owned(), name: name.to_owned() };
    let outside = || FlowEndpoint { address: [192, 0, 2, 1].into(), pod: None };
    let node = || FlowEndpoint { address: [10, 0, 0, 8].into(), pod: Some(of_b("host")) };
    let client = || FlowEndpoint { address: [10, 0, 0, 4].into(), pod: Some(of_b("client")) };
    for (from, to, passes) in [
        (outside(), node(), true),
        (node(), outside(), true),
        (outside(), client(), false),
        (client(), outside(), false),
    ] {
        let packet = Flow { from, to, transport: FlowTransport::Port(Protocol::Tcp, 80) };
        assert_eq!(eval(index.snapshot().unwrap(), &packet).allows(), passes, "{packet:?}");
    }
}

#[test]
fn named_ports_of_all_kinds_of_containers_are_collected() {
    let container = |name: &str, ports: Value| json!({ "name": name, "ports": ports });
    let mut sidecar = container("sidecar", json!([{ "name": "http", "containerPort": 9002 }]));
    sidecar["restartPolicy"] = json!("Always");
    let mut pod = pod("a", "web", json!({}), &["10.0.0.1"]);
    pod["spec"] = json!({
        "containers": [container("main", json!([
            { "name": "http", "containerPort": 8080 },
            { "name": "http", "containerPort": 8080, "protocol": "UDP" },
            { "name": "sig", "containerPort": 7, "protocol": "SCTP" },
            { "containerPort": 1 },
            { "name": "zero", "containerPort": 0 },
            { "name": "far", "containerPort": 65536 },
            { "name": "odd", "containerPort": 5, "protocol": "QUIC" },
        ]))],
        "initContainers": [container("setup", json!([{ "name": "http", "containerPort": 9001 }])), sidecar],
    });
    let index = synced([object(pod)]);
    let ports = &index.snapshot().unwrap().pods.values().next().unwrap().named_ports;
    let port = |name: &str, protocol, port| NamedPort { name: name.to_owned(), protocol, port };
    let expected = [
        port("http", Protocol::Tcp, 8080),
        port("http", Protocol::Tcp, 9001),
        port("http", Protocol::Tcp, 9002),
        port("http", Protocol::Udp, 8080),
        port("sig", Protocol::Sctp, 7),
    ];
    assert_eq!(ports.iter().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
}

#[test]
fn an_undecodable_object_keeps_its_last_state_and_is_absent_if_it_had_none() {
    let known = || {
        [
            object(pod("a", "web", json!({ "app": "web" }), &["10.0.0.1"])),
            namespace("a", json!({ "team": "red" })),
            policy("a", "p", json!({ "podSelector": {} })),
            object(json!({ "kind": "Node", "metadata": { "name": "me" }, "spec": { "podCIDR": "10.0.0.0/24" } })),
        ]
    };
    let named = || {
        [
            object(json!({ "kind": "Pod", "metadata": { "namespace": "a", "name": "web" } })),
            object(json!({ "kind": "Namespace", "metadata": { "name": "a" } })),
            object(json!({ "kind": "NetworkPolicy", "metadata": { "namespace": "a", "name": "p" } })),
            object(json!({ "kind": "Node", "metadata": { "name": "me" } })),
        ]
    };
    let mut index = synced(known());
    let snapshot = index.snapshot().unwrap().clone();
    let node = index.own_node().unwrap().clone();
    for event in named().map(Object::undecodable) {
        assert!(index.apply(event).is_empty(), "an undecodable change");
    }
    let starts = of_every_kind(
        ObjectChange::ListStarted,
        ObjectChange::ListStarted,
        ObjectChange::ListStarted,
        ObjectChange::ListStarted,
    );
    let ends =
        of_every_kind(ObjectChange::ListDone, ObjectChange::ListDone, ObjectChange::ListDone, ObjectChange::ListDone);
    let never = object(json!({ "kind": "Pod", "metadata": { "namespace": "a", "name": "new" } })).undecodable();
    let undecodable = named().map(Object::undecodable);
    for event in starts.into_iter().chain(undecodable).chain([never]).chain(ends) {
        assert!(index.apply(event).is_empty(), "a list in which no object can be decoded");
    }
    assert_eq!((index.snapshot(), index.own_node()), (Some(&snapshot), Some(&node)));
}
