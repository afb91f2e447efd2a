//! Rejected parts of policies: each is reported, allows nothing, and leaves the rest of the policy in force.

use serde_json::{Value, json};

use crate::{
    cluster::check,
    objects::{policy, synced},
};

/// The path and reason of each rejected part of a policy with this spec.
fn rejected(spec: &Value) -> Vec<(String, String)> {
    let index = synced([policy("a", "p", spec.clone())]);
    index.rejected().map(|r| (r.path.clone(), r.reason.clone())).collect()
}

/// Checks specs of which one part, given by its path, is rejected and matches nothing.
fn check_rejected<const N: usize>(cases: [(Value, &str, &str); N]) {
    for (spec, path, why) in cases {
        let rejected = rejected(&spec);
        assert_eq!(rejected.len(), 1, "{why}: {rejected:?}");
        assert_eq!(rejected[0].0, path, "{why}");
        assert!(rejected[0].1.len() > 20, "{why}: the reason is a sentence: {}", rejected[0].1);
        check(why, &[spec], &[], &["outside.1 > a/web tcp 80", "b/web > a/web tcp 80", "b/web > a/web icmp"]);
    }
}

#[test]
fn an_invalid_peer_is_rejected_and_matches_nothing() {
    let peer = |peer: Value| json!({ "podSelector": {}, "ingress": [{ "from": [peer, { "podSelector": {} }] }] });
    let block = |cidr: &str, except: Value| peer(json!({ "ipBlock": { "cidr": cidr, "except": except } }));
    let expression = |e: Value| peer(json!({ "namespaceSelector": { "matchExpressions": [e] } }));
    let pods = |e: Value| peer(json!({ "podSelector": { "matchExpressions": [e] } }));
    check_rejected([
        (peer(json!({})), "spec.ingress[0].from[0]", "an empty peer does not match everything"),
        (block("10.0.0.0/133", json!([])), "spec.ingress[0].from[0].ipBlock.cidr", "prefix length 133"),
        (block("10.0.0.1", json!([])), "spec.ingress[0].from[0].ipBlock.cidr", "an address is not a CIDR"),
        (
            block("010.0.0.0/8", json!([])),
            "spec.ingress[0].from[0].ipBlock.cidr",
            "some parsers read a leading zero as octal, here 8.0.0.0",
        ),
        (
            block("0.0.0.0/0", json!(["10.0.0.0/8", "x"])),
            "spec.ingress[0].from[0].ipBlock.except[1]",
            "invalid exception",
        ),
        (
            peer(json!({ "ipBlock": { "cidr": "0.0.0.0/0" }, "podSelector": {} })),
            "spec.ingress[0].from[0]",
            "an ipBlock with a selector",
        ),
        (
            expression(json!({ "key": "team", "operator": "Near", "values": ["red"] })),
            "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0]",
            "an unknown operator",
        ),
        (
            expression(json!({ "key": "team", "operator": "NotIn" })),
            "spec.ingress[0].from[0].namespaceSelector.matchExpressions[0]",
            "NotIn without values would match everything",
        ),
        (
            pods(json!({ "key": "app", "operator": "near", "values": ["db"] })),
            "spec.ingress[0].from[0].podSelector.matchExpressions[0]",
            "an unknown operator",
        ),
        (
            pods(json!({ "key": "app", "operator": "In", "values": [] })),
            "spec.ingress[0].from[0].podSelector.matchExpressions[0]",
            "In without values",
        ),
        (
            pods(json!({ "key": "app", "operator": "Exists", "values": ["db"] })),
            "spec.ingress[0].from[0].podSelector.matchExpressions[0]",
            "Exists with a value is not In",
        ),
        (
            pods(json!({ "key": "app", "operator": "DoesNotExist", "values": ["db"] })),
            "spec.ingress[0].from[0].podSelector.matchExpressions[0]",
            "DoesNotExist with a value is not NotIn",
        ),
    ]);
}

#[test]
fn an_invalid_port_is_rejected_and_matches_nothing() {
    let port = |port: Value| json!({ "podSelector": {}, "ingress": [{ "ports": [port] }] });
    check_rejected([
        (port(json!({ "port": -1 })), "spec.ingress[0].ports[0]", "negative"),
        (port(json!({ "port": 80, "endPort": 65536 })), "spec.ingress[0].ports[0]", "an end above 65535"),
        (port(json!({ "port": "a-name-too-long!" })), "spec.ingress[0].ports[0].port", "sixteen characters"),
        (port(json!({ "port": "" })), "spec.ingress[0].ports[0].port", "an empty name"),
        (port(json!({ "port": 0 })), "spec.ingress[0].ports[0]", "zero"),
        (port(json!({ "port": 65536 })), "spec.ingress[0].ports[0]", "above 65535"),
        (port(json!({ "port": 80, "endPort": 79 })), "spec.ingress[0].ports[0]", "an end below the start"),
        (port(json!({ "endPort": 79 })), "spec.ingress[0].ports[0].endPort", "an end without a start"),
        (port(json!({ "port": "http", "endPort": 79 })), "spec.ingress[0].ports[0].endPort", "an end with a port name"),
        (port(json!({ "port": "80" })), "spec.ingress[0].ports[0].port", "a number as text"),
        (port(json!({ "port": 80, "protocol": "QUIC" })), "spec.ingress[0].ports[0].protocol", "an unknown protocol"),
    ]);
}

#[test]
fn invalid_egress_peers_and_ports_are_rejected_and_match_nothing() {
    let to = |rule: Value| json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [rule] });
    let unknown = json!({ "matchExpressions": [{ "key": "team", "operator": "Near" }] });
    for (spec, path) in [
        (to(json!({ "to": [{ "ipBlock": { "cidr": "::/129" } }] })), "spec.egress[0].to[0].ipBlock.cidr"),
        (
            to(json!({ "to": [{ "namespaceSelector": unknown }] })),
            "spec.egress[0].to[0].namespaceSelector.matchExpressions[0]",
        ),
        (to(json!({ "ports": [{ "endPort": 90 }] })), "spec.egress[0].ports[0].endPort"),
    ] {
        let rejected = rejected(&spec);
        assert_eq!(rejected.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), [path]);
        check(path, &[spec], &["b/web > a/web tcp 80"], &["a/web > b/web tcp 80", "a/web > outside.1 tcp 80"]);
    }
}

#[test]
fn the_rest_of_a_policy_stays_in_force() {
    let invalid = json!({ "ipBlock": { "cidr": "nonsense" } });
    let spec = json!({ "podSelector": {}, "ingress": [{ "from": [invalid, { "podSelector": {} }], "ports": [{ "port": 80 }] }] });
    check(
        "the valid peer is allowed",
        &[spec],
        &["a/db > a/web tcp 80"],
        &["a/db > a/web tcp 81", "outside.1 > a/web tcp 80"],
    );
}

#[test]
fn a_policy_with_an_invalid_pod_selector_isolates_more_pods_and_allows_nothing() {
    let spec = json!({
        "podSelector": { "matchLabels": { "app": "web" }, "matchExpressions": [{ "key": "x", "operator": "Near" }] },
        "ingress": [{}]
    });
    assert_eq!(rejected(&spec)[0].0, "spec.podSelector.matchExpressions[0]");
    check("the valid requirements select", &[spec], &["a/web > a/db tcp 1"], &["a/db > a/web tcp 1"]);
}

#[test]
fn an_unknown_policy_type_is_rejected_and_the_others_take_effect() {
    let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Sideways"] });
    assert_eq!(rejected(&spec)[0].0, "spec.policyTypes[1]");
    check("Ingress takes effect", &[spec], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
    let spec = json!({ "podSelector": {}, "policyTypes": ["Sideways"] });
    check("no valid type is the same as unset", &[spec], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
}

#[test]
fn a_corrected_policy_is_no_longer_reported() {
    let mut index = synced([policy("a", "p", json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 0 }] }] }))]);
    assert_eq!(index.rejected().count(), 1);
    let _ = index.apply(policy("a", "p", json!({ "podSelector": {} })).applied());
    assert_eq!(index.rejected().count(), 0);
}
