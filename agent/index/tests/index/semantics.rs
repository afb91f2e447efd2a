//! The semantics of NetworkPolicy, statement by statement of its API documentation. The policies are in namespace `a`.

use serde_json::json;

use crate::cluster::check;

const ALL_TO_WEB: [&str; 4] =
    ["a/db > a/web tcp 80", "b/client > a/web udp 53", "outside.1 > a/web sctp 7", "c/other > a/web icmp"];

#[test]
fn a_pod_is_isolated_only_in_the_directions_of_policies_that_select_it() {
    check("no policy, no isolation", &[], &ALL_TO_WEB, &[]);
    let deny = json!({ "podSelector": {}, "policyTypes": ["Ingress"] });
    check("deny all ingress", &[deny], &["a/web > b/client tcp 80", "a/web > outside.1 udp 9"], &ALL_TO_WEB);
    let deny = json!({ "podSelector": {}, "policyTypes": ["Egress"] });
    check("deny all egress", &[deny], &ALL_TO_WEB[1..], &["a/web > b/client tcp 80", "a/web > outside.1 icmp"]);
    let deny = json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Ingress"] });
    check("a pod that is not selected is not isolated", &[deny], &ALL_TO_WEB, &["a/web > a/db tcp 80"]);
    let deny = json!({ "podSelector": {}, "policyTypes": ["Ingress"] });
    check("a policy selects pods of its own namespace", &[deny], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
}

#[test]
fn unset_policy_types_mean_ingress_and_also_egress_if_there_are_egress_rules() {
    let none = json!({ "podSelector": {} });
    check("always ingress", &[none], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
    let empty = json!({ "podSelector": {}, "egress": [] });
    check("an empty egress list has no rules", &[empty], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
    let rule = json!({ "podSelector": {}, "egress": [{ "ports": [{ "port": 80 }] }] });
    check("an egress rule", &[rule], &["a/web > b/web tcp 80"], &["a/web > b/web tcp 1", "b/web > a/web tcp 1"]);
    let none = json!({ "podSelector": {}, "policyTypes": [], "egress": [{ "ports": [{ "port": 80 }] }] });
    check(
        "an empty list is the same as unset",
        &[none],
        &["a/web > b/web tcp 80"],
        &["a/web > b/web tcp 1", "b/web > a/web tcp 1"],
    );
    let ingress = json!({ "podSelector": {}, "policyTypes": ["Ingress"], "egress": [{ "ports": [{ "port": 80 }] }] });
    check("rules of a missing type are ignored", &[ingress], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
    check("an empty spec", &[json!({})], &["a/web > b/web tcp 1"], &["b/web > a/web tcp 1"]);
    let egress = json!({ "podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}] });
    check("only the listed types take effect", &[egress], &["b/web > a/web tcp 1"], &["a/web > b/web tcp 1"]);
}

#[test]
fn policies_are_additive_and_both_ends_must_allow_a_connection() {
    let a = json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }] });
    let b = json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 81 }] }] });
    let both = ["b/web > a/web tcp 80", "b/web > a/web tcp 81"];
    check("either policy allows", &[a.clone(), b.clone()], &both, &["b/web > a/web tcp 82"]);
    check("the order does not matter", &[b, a], &both, &["b/web > a/web tcp 82"]);
    let egress = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Egress"] });
    let ingress = json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [{}] });
    check(
        "ingress of the destination allows it, egress of the source denies it",
        &[egress, ingress],
        &["b/web > a/db tcp 1"],
        &["a/web > a/db tcp 1"],
    );
}

#[test]
fn empty_lists_deny_all_and_empty_rules_allow_all() {
    check("a missing list denies all", &[json!({ "podSelector": {} })], &[], &ALL_TO_WEB);
    check("an empty list denies all", &[json!({ "podSelector": {}, "ingress": [] })], &[], &ALL_TO_WEB);
    check("an empty rule allows all", &[json!({ "podSelector": {}, "ingress": [{}] })], &ALL_TO_WEB, &[]);
    let any_peer = json!({ "podSelector": {}, "ingress": [{ "from": [], "ports": [{ "port": 80 }] }] });
    check(
        "an empty from matches any peer, inside or outside the cluster",
        &[any_peer],
        &["outside.1 > a/web tcp 80", "c/other > a/web tcp 80"],
        &["outside.1 > a/web udp 80"],
    );
    let any_port = json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": {} }], "ports": [] }] });
    check(
        "empty ports match any port and protocol",
        &[any_port],
        &["a/db > a/web tcp 1", "a/db > a/web sctp 1", "a/db > a/web icmp"],
        &["b/web > a/web tcp 1"],
    );
}

#[test]
fn all_label_requirements_must_be_met_and_absent_labels_meet_negative_ones() {
    let spec = |subject| json!({ "podSelector": subject, "policyTypes": ["Ingress"] });
    let both = spec(json!({
        "matchLabels": { "app": "db" },
        "matchExpressions": [{ "key": "tier", "operator": "In", "values": ["front"] }]
    }));
    check("one of two requirements is not met", &[both], &["a/web > a/db tcp 1"], &[]);
    let not_in = spec(json!({ "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["back"] }] }));
    check("NotIn matches an absent label", &[not_in], &["a/web > a/db tcp 1"], &["a/db > a/web tcp 1"]);
    let absent = spec(json!({ "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] }));
    check("DoesNotExist", &[absent], &["a/web > a/db tcp 1"], &["a/db > a/web tcp 1"]);
    let exists = spec(json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] }));
    check("Exists", &[exists], &["a/db > a/web tcp 1"], &["a/web > a/db tcp 1"]);
}

#[test]
fn pod_and_namespace_selectors_select_peers() {
    let from = |peers| json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [{ "from": peers }] });
    check(
        "a podSelector alone selects pods of the policy's namespace",
        &[from(json!([{ "podSelector": { "matchLabels": { "app": "web" } } }]))],
        &["a/web > a/db tcp 1"],
        &["b/web > a/db tcp 1", "outside.1 > a/db tcp 1"],
    );
    check(
        "a namespaceSelector alone selects all pods of the namespaces",
        &[from(json!([{ "namespaceSelector": { "matchLabels": { "team": "blue" } } }]))],
        &["b/web > a/db tcp 1", "b/client > a/db tcp 1"],
        &["a/web > a/db tcp 1", "c/other > a/db tcp 1"],
    );
    check(
        "an empty namespaceSelector selects pods of every namespace, and nothing outside the cluster",
        &[from(json!([{ "namespaceSelector": {} }]))],
        &["a/web > a/db tcp 1", "c/other > a/db tcp 1"],
        &["outside.1 > a/db tcp 1"],
    );
    let blue = json!({ "matchLabels": { "team": "blue" } });
    let web = json!({ "matchLabels": { "app": "web" } });
    check(
        "both selectors in one peer: both must match",
        &[from(json!([{ "namespaceSelector": blue, "podSelector": web }]))],
        &["b/web > a/db tcp 1"],
        &["b/client > a/db tcp 1", "a/web > a/db tcp 1"],
    );
    check(
        "two peers: one must match",
        &[from(json!([{ "namespaceSelector": blue }, { "podSelector": web }]))],
        &["b/client > a/db tcp 1", "a/web > a/db tcp 1"],
        &["c/other > a/db tcp 1"],
    );
}

#[test]
fn selectors_match_running_pods_with_their_own_network_namespace_only() {
    let clients = json!({ "namespaceSelector": {}, "podSelector": { "matchLabels": { "role": "client" } } });
    check(
        "finished pods do not match, terminating pods do, host-network pods do not",
        &[json!({ "podSelector": {}, "ingress": [{ "from": [clients] }] })],
        &["b/client > a/web tcp 1", "b/terminating > a/web tcp 1"],
        &["b/done > a/web tcp 1", "b/host > a/web tcp 1"],
    );
}

#[test]
fn an_ip_block_matches_addresses_outside_its_exceptions() {
    let from = |block| json!({ "podSelector": {}, "ingress": [{ "from": [{ "ipBlock": block }] }] });
    check(
        "inside and outside the block",
        &[from(json!({ "cidr": "192.0.2.0/24" }))],
        &["outside.1 > a/web tcp 1", "outside.1 > a/web icmp"],
        &["b/client > a/web tcp 1"],
    );
    check(
        "an exception",
        &[from(json!({ "cidr": "192.0.2.0/24", "except": ["192.0.2.16/28"] }))],
        &["outside.1 > a/web tcp 1", "outside.33 > a/web tcp 1"],
        &["outside.17 > a/web tcp 1"],
    );
    check(
        "an exception outside the block has no effect",
        &[from(json!({ "cidr": "192.0.2.0/24", "except": ["10.0.0.0/24"] }))],
        &["outside.1 > a/web tcp 1"],
        &["b/client > a/web tcp 1"],
    );
    check(
        "an exception that covers the block leaves nothing",
        &[from(json!({ "cidr": "192.0.2.0/24", "except": ["192.0.2.0/24"] }))],
        &[],
        &["outside.1 > a/web tcp 1", "b/client > a/web tcp 1"],
    );
    check(
        "host bits are ignored",
        &[from(json!({ "cidr": "192.0.2.77/24", "except": ["192.0.2.19/28"] }))],
        &["outside.1 > a/web tcp 1", "outside.33 > a/web tcp 1"],
        &["outside.17 > a/web tcp 1"],
    );
    let hole = json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["192.0.2.16/28"] } });
    let filled = json!({ "ipBlock": { "cidr": "192.0.2.17/32" } });
    check(
        "another peer can allow an excluded address",
        &[json!({ "podSelector": {}, "ingress": [{ "from": [hole, filled] }] })],
        &["outside.17 > a/web tcp 1", "b/client > a/web tcp 1"],
        &["outside.18 > a/web tcp 1"],
    );
    check(
        "an ipBlock with ports",
        &[json!({ "podSelector": {}, "egress": [{
            "to": [{ "ipBlock": { "cidr": "192.0.2.0/24" } }],
            "ports": [{ "port": 443 }, { "port": 8000, "endPort": 8010, "protocol": "UDP" }]
        }] })],
        &["a/web > outside.1 tcp 443", "a/web > outside.9 udp 8000", "a/web > outside.9 udp 8010"],
        &["a/web > outside.1 udp 443", "a/web > outside.1 udp 8011", "a/web > b/client tcp 443"],
    );
}

#[test]
fn ports_match_protocol_and_number_or_range() {
    let ports = |ports| json!({ "podSelector": {}, "ingress": [{ "ports": ports }] });
    check(
        "the default protocol is TCP",
        &[ports(json!([{ "port": 80 }]))],
        &["b/web > a/web tcp 80"],
        &["b/web > a/web udp 80", "b/web > a/web sctp 80", "b/web > a/web icmp", "b/web > a/web tcp 81"],
    );
    check(
        "a protocol without a port matches all ports",
        &[ports(json!([{ "protocol": "UDP" }]))],
        &["b/web > a/web udp 1", "b/web > a/web udp 65535"],
        &["b/web > a/web tcp 1", "b/web > a/web icmp"],
    );
    check(
        "SCTP",
        &[ports(json!([{ "protocol": "SCTP", "port": 7 }]))],
        &["b/web > a/web sctp 7"],
        &["b/web > a/web tcp 7"],
    );
    check(
        "a range includes both ends",
        &[ports(json!([{ "port": 80, "endPort": 82 }]))],
        &["b/web > a/web tcp 80", "b/web > a/web tcp 82"],
        &["b/web > a/web tcp 79", "b/web > a/web tcp 83"],
    );
    check(
        "a range of one port",
        &[ports(json!([{ "port": 80, "endPort": 80 }]))],
        &["b/web > a/web tcp 80"],
        &["b/web > a/web tcp 79", "b/web > a/web tcp 81"],
    );
    check(
        "a range for selected pods",
        &[json!({ "podSelector": {}, "ingress": [{
            "from": [{ "namespaceSelector": { "matchLabels": { "team": "blue" } } }],
            "ports": [{ "port": 80, "endPort": 82 }, { "port": 90 }]
        }] })],
        &["b/web > a/web tcp 81", "b/web > a/web tcp 90"],
        &["a/db > a/web tcp 81", "b/web > a/web tcp 83"],
    );
}

#[test]
fn a_port_name_refers_to_the_destination_pod() {
    let name = |name: &str, protocol| json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": name, "protocol": protocol }] }] });
    check(
        "on ingress the selected pod's port",
        &[name("http", "TCP")],
        &["b/web > a/web tcp 8080"],
        &["b/web > a/web tcp 80", "b/web > a/db tcp 8080", "b/web > a/web udp 8080"],
    );
    check("protocol and name must match", &[name("dns", "UDP")], &["b/web > a/web udp 53"], &["b/web > a/web tcp 53"]);
    check("the name with another protocol matches nothing", &[name("dns", "TCP")], &[], &["b/web > a/web udp 53"]);
    check("ports of init containers match", &[name("init", "TCP")], &["b/web > a/web tcp 9000"], &[]);
    let to = |peers| json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": peers, "ports": [{ "port": "http" }] }] });
    check(
        "on egress the port of each peer",
        &[to(json!([{ "namespaceSelector": {} }]))],
        &["a/db > a/web tcp 8080", "a/db > b/web tcp 80"],
        &["a/db > b/web tcp 8080", "a/db > b/client tcp 80", "a/db > outside.1 tcp 80"],
    );
    check(
        "with any peer, only pods that have the port",
        &[to(json!([]))],
        &["a/db > b/web tcp 80"],
        &["a/db > outside.1 tcp 80", "a/db > b/host tcp 80"],
    );
    check(
        "with an ipBlock, only pods inside it",
        &[to(json!([{ "ipBlock": { "cidr": "10.0.0.3/32" } }, { "ipBlock": { "cidr": "192.0.2.0/24" } }]))],
        &["a/db > b/web tcp 80"],
        &["a/web > a/web tcp 8080", "a/db > outside.1 tcp 80"],
    );
}

#[test]
fn policy_applies_at_both_ends_of_a_connection_from_a_pod_to_itself_through_a_service() {
    let deny = json!({ "podSelector": {}, "policyTypes": ["Ingress"] });
    check("ingress denies it", &[deny], &[], &["a/web > a/web tcp 8080"]);
    let own =
        json!({ "podSelector": {}, "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "web" } } }] }] });
    check("allowed by its labels", &[own], &["a/web > a/web tcp 8080"], &["a/db > a/web tcp 8080"]);
}
