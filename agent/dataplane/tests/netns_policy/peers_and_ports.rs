//! Every form of peers with every form of ports, in both directions, for the pod `web`.
//!
//! Each form lists the peers or ports that it allows. A pair of forms allows a packet if the peer form allows its peer
//! and the port form its port.

use crate::scenario::{Scenario, run_scenarios};

/// A way to write `from` or `to`.
struct PeerForm {
    name: &'static str,
    why: &'static str,
    /// The list in YAML; empty if the key is missing.
    yaml: &'static str,
    /// Peers that it allows.
    allowed: &'static [&'static str],
    /// Peers that it does not allow.
    denied: &'static [&'static str],
}

/// A way to write `ports`.
struct PortForm {
    name: &'static str,
    why: &'static str,
    /// The list in YAML; empty if the key is missing.
    yaml: &'static str,
    allowed: AllowedPorts,
    /// Ports that it never allows.
    denied: &'static [&'static str],
}

/// The ports that a form of ports allows.
enum AllowedPorts {
    /// These, whatever the destination.
    Always(&'static [&'static str]),
    /// The port of this name in the destination's containers: destination and port.
    Named(&'static [(&'static str, &'static str)]),
}

impl AllowedPorts {
    fn at(&self, destination: &str) -> Vec<&'static str> {
        match self {
            Self::Always(ports) => ports.to_vec(),
            Self::Named(ports) => ports.iter().filter(|(pod, _)| *pod == destination).map(|(_, port)| *port).collect(),
        }
    }
}

const fn peers(
    name: &'static str,
    why: &'static str,
    yaml: &'static str,
    allowed: &'static [&'static str],
    denied: &'static [&'static str],
) -> PeerForm {
    PeerForm { name, why, yaml, allowed, denied }
}

const fn ports(
    name: &'static str,
    why: &'static str,
    yaml: &'static str,
    allowed: AllowedPorts,
    denied: &'static [&'static str],
) -> PortForm {
    PortForm { name, why, yaml, allowed, denied }
}

const PEERS: &[PeerForm] = &[
    peers(
        "a missing list",
        "a missing list means any peer, outside included",
        "",
        &["db", "client", "outside", "host"],
        &[],
    ),
    peers(
        "an empty list",
        "an empty list means any peer, outside included",
        "[]",
        &["bare", "remote", "stranger"],
        &[],
    ),
    peers(
        "a podSelector",
        "alone it selects pods of the policy's namespace",
        "[{podSelector: {matchLabels: {tier: back}}}]",
        &["db"],
        &["bare", "opsweb", "remote", "outside"],
    ),
    peers(
        "the empty podSelector",
        "all pods of the policy's namespace",
        "[{podSelector: {}}]",
        &["db", "bare"],
        &["client", "lab", "outside", "host"],
    ),
    peers(
        "a namespaceSelector",
        "alone it selects all pods of these namespaces but completed ones",
        "[{namespaceSelector: {matchLabels: {team: red}}}]",
        &["client", "opsweb", "remote", "terminating"],
        &["db", "lab", "completed", "outside"],
    ),
    peers(
        "the empty namespaceSelector",
        "all pods of all namespaces; no nodes, no hostNetwork pods, no outside",
        "[{namespaceSelector: {}}]",
        &["db", "lab", "remote", "terminating"],
        &["outside", "host", "completed"],
    ),
    peers(
        "both selectors in one item",
        "they are ANDed",
        "[{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: web}}}]",
        &["opsweb"],
        &["client", "db", "lab"],
    ),
    peers(
        "selectors in two items",
        "they are ORed",
        "[{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {matchLabels: {app: db}}}]",
        &["opsweb", "client", "db"],
        &["bare", "lab", "outside"],
    ),
    peers(
        "an ipBlock",
        "a range of addresses outside of the cluster",
        "[{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}]",
        &["outside", "excepted"],
        &["stranger", "db", "remote"],
    ),
    peers(
        "an ipBlock with an exception",
        "the range without the exception",
        "[{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}},
          {ipBlock: {cidr: '2001:db8::/64', except: ['2001:db8::8000/113']}}]",
        &["outside"],
        &["excepted", "stranger", "client"],
    ),
    peers(
        "all addresses with an exception",
        "all addresses include those of pods and nodes",
        "[{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/24]}},
          {ipBlock: {cidr: '::/0', except: ['2001:db8:f::/48']}}]",
        &["outside", "db", "remote", "host"],
        &["stranger"],
    ),
    peers(
        "an ipBlock of pods",
        "it matches addresses, those of pods too",
        "[{ipBlock: {cidr: 10.244.1.0/24}}, {ipBlock: {cidr: 'fd00:244:1::/64'}}]",
        &["db", "client", "lab"],
        &["remote", "outside"],
    ),
    peers(
        "an exception that another item allows",
        "an exception applies to its own item only",
        "[{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}}, {ipBlock: {cidr: 198.51.100.130/32}},
          {ipBlock: {cidr: '2001:db8::/64', except: ['2001:db8::8000/113']}}, {ipBlock: {cidr: '2001:db8::8007/128'}}]",
        &["outside", "excepted"],
        &["stranger"],
    ),
    peers(
        "an ipBlock beside a selector",
        "items are ORed, whatever they are",
        "[{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: '2001:db8:f::/48'}}, {podSelector: {}}]",
        &["stranger", "bare"],
        &["outside", "client"],
    ),
    peers(
        "an invalid CIDR",
        "an ipBlock with an invalid CIDR matches nothing",
        "[{ipBlock: {cidr: everywhere}}]",
        &[],
        &["db", "outside", "host"],
    ),
    peers(
        "an invalid exception",
        "an ipBlock with an invalid exception matches nothing: it could allow what it must not",
        "[{ipBlock: {cidr: 0.0.0.0/0, except: [here]}}, {ipBlock: {cidr: '::/0', except: [here]}}]",
        &[],
        &["db", "outside"],
    ),
    peers(
        "an invalid item beside a valid one",
        "the rest of the rule applies",
        "[{ipBlock: {cidr: everywhere}}, {podSelector: {matchLabels: {app: db}}}]",
        &["db"],
        &["outside", "client"],
    ),
    peers("an empty item", "an empty peer matches nothing", "[{}]", &[], &["db", "outside"]),
    peers(
        "In",
        "labels of the peer: one of the values",
        "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: In, values: [back]}]}}]",
        &["db", "opsweb", "remote"],
        &["bare", "client", "lab"],
    ),
    peers(
        "NotIn",
        "it matches where the label is absent",
        "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back]}]}}]",
        &["bare", "client", "lab"],
        &["db", "remote", "outside"],
    ),
    peers(
        "Exists",
        "whatever the value",
        "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]",
        &["db", "client"],
        &["bare", "lab"],
    ),
    peers(
        "DoesNotExist",
        "only where the label is absent",
        "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]",
        &["bare", "lab"],
        &["db", "client", "outside"],
    ),
    peers(
        "namespaces without a label",
        "expressions match labels of namespaces, too",
        "[{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]",
        &["lab"],
        &["db", "client", "remote"],
    ),
];

const PORTS: &[PortForm] = &[
    ports(
        "no ports",
        "any port and any protocol, with ports or without",
        "",
        AllowedPorts::Always(&["tcp 8080", "udp 53", "sctp 7", "icmp", "plain"]),
        &[],
    ),
    ports(
        "an empty list of ports",
        "any port and any protocol",
        "[]",
        AllowedPorts::Always(&["tcp 81", "udp 5353", "icmp"]),
        &[],
    ),
    ports(
        "a number",
        "TCP is the default",
        "[{port: 8080}]",
        AllowedPorts::Always(&["tcp 8080"]),
        &["tcp 8081", "udp 8080", "sctp 8080", "icmp", "plain"],
    ),
    ports(
        "a number of UDP",
        "only the given protocol matches",
        "[{port: 53, protocol: UDP}]",
        AllowedPorts::Always(&["udp 53"]),
        &["tcp 53", "udp 54", "icmp"],
    ),
    ports(
        "a number of SCTP",
        "the third protocol with ports",
        "[{port: 3868, protocol: SCTP}]",
        AllowedPorts::Always(&["sctp 3868"]),
        &["tcp 3868", "sctp 3869"],
    ),
    ports(
        "a range",
        "both ends are included",
        "[{port: 7000, endPort: 7010}]",
        AllowedPorts::Always(&["tcp 7000", "tcp 7005", "tcp 7010"]),
        &["tcp 6999", "tcp 7011", "udp 7005"],
    ),
    ports(
        "a range of UDP",
        "the range applies to its protocol only",
        "[{port: 7000, endPort: 7010, protocol: UDP}]",
        AllowedPorts::Always(&["udp 7000", "udp 7010"]),
        &["udp 6999", "udp 7011", "tcp 7005"],
    ),
    ports(
        "a range of SCTP",
        "the range applies to its protocol only",
        "[{port: 7000, endPort: 7010, protocol: SCTP}]",
        AllowedPorts::Always(&["sctp 7000", "sctp 7010"]),
        &["sctp 7011", "tcp 7005"],
    ),
    ports(
        "a range of one port",
        "it matches that port",
        "[{port: 7000, endPort: 7000}]",
        AllowedPorts::Always(&["tcp 7000"]),
        &["tcp 6999", "tcp 7001"],
    ),
    ports(
        "a protocol alone",
        "all ports of the protocol",
        "[{protocol: UDP}]",
        AllowedPorts::Always(&["udp 1", "udp 19999"]),
        &["tcp 1", "icmp", "plain"],
    ),
    ports(
        "a name",
        "each destination pod's own port of that name, and no other pod's",
        "[{port: http}]",
        AllowedPorts::Named(&[
            ("web", "tcp 8080"),
            ("db", "tcp 8081"),
            ("client", "tcp 8082"),
            ("opsweb", "tcp 80"),
            ("remote", "tcp 8083"),
        ]),
        &["tcp 9999", "udp 8080", "icmp"],
    ),
    ports(
        "a name of UDP",
        "name and protocol must both match",
        "[{port: dns, protocol: UDP}]",
        AllowedPorts::Named(&[("web", "udp 5353"), ("db", "udp 5301")]),
        &["tcp 5353", "udp 53"],
    ),
    ports(
        "a name of SCTP",
        "name and protocol must both match",
        "[{port: signal, protocol: SCTP}]",
        AllowedPorts::Named(&[("web", "sctp 3868")]),
        &["tcp 3868", "sctp 3869"],
    ),
    ports(
        "an init container's name",
        "ports of init containers have names, too",
        "[{port: setup}]",
        AllowedPorts::Named(&[("web", "tcp 9000")]),
        &["tcp 9001"],
    ),
    ports(
        "a name of another protocol",
        "no pod has this name in this protocol",
        "[{port: dns}]",
        AllowedPorts::Always(&[]),
        &["tcp 5353", "udp 5353", "udp 5301"],
    ),
    ports(
        "a name that no pod has",
        "it allows nothing",
        "[{port: nowhere}]",
        AllowedPorts::Always(&[]),
        &["tcp 8080", "udp 53", "icmp"],
    ),
    ports(
        "several ports",
        "a packet that matches one of them is allowed",
        "[{port: 80}, {port: 53, protocol: UDP}, {port: 7000, endPort: 7010}, {port: 5, protocol: SCTP}]",
        AllowedPorts::Always(&["tcp 80", "udp 53", "tcp 7003", "sctp 5"]),
        &["udp 80", "tcp 53", "sctp 80", "icmp"],
    ),
    ports(
        "an unsupported protocol",
        "an invalid port allows nothing",
        "[{port: 80, protocol: ICMP}]",
        AllowedPorts::Always(&[]),
        &["tcp 80", "icmp"],
    ),
    ports(
        "an endPort below the port",
        "an invalid port allows nothing",
        "[{port: 80, endPort: 79}]",
        AllowedPorts::Always(&[]),
        &["tcp 80", "tcp 79"],
    ),
];

/// A scenario that owns its texts.
struct GeneratedScenario {
    name: String,
    why: String,
    policy: String,
    pass: String,
    drop: String,
}

fn generate(direction: &str, peers: &PeerForm, ports: &PortForm) -> GeneratedScenario {
    let (section, key) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
    let entry = |key: &str, yaml: &str| if yaml.is_empty() { String::new() } else { format!("{key}: {yaml}, ") };
    let rule = format!("{{{}{}}}", entry(key, peers.yaml), entry("ports", ports.yaml));
    let (mut pass, mut drop) = (String::new(), String::new());
    let probe = |list: &mut String, peer: &str, transport: &str| {
        let (from, to) = if direction == "Ingress" { (peer, "web") } else { ("web", peer) };
        *list += &format!("{from} > {to} {transport};");
    };
    for (n, peer) in peers.allowed.iter().enumerate() {
        let allowed = ports.allowed.at(if direction == "Ingress" { "web" } else { peer });
        // All ports for the first peer, one for the others.
        let count = if n == 0 { usize::MAX } else { 1 };
        allowed.iter().take(count).for_each(|transport| probe(&mut pass, peer, transport));
        ports.denied.iter().take(count).for_each(|transport| probe(&mut drop, peer, transport));
    }
    for (n, peer) in peers.denied.iter().enumerate() {
        let allowed = ports.allowed.at(if direction == "Ingress" { "web" } else { peer });
        let count = if n == 0 { usize::MAX } else { 1 };
        allowed.iter().take(count).for_each(|transport| probe(&mut drop, peer, transport));
    }
    if pass.is_empty() && drop.is_empty() {
        probe(&mut drop, peers.denied[0], "tcp 8080");
    }
    GeneratedScenario {
        name: format!("{direction}: {}, {}", peers.name, ports.name),
        why: format!("{}; {}", peers.why, ports.why),
        policy: format!(
            "shop {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [{direction}], {section}: [{rule}]}}"
        ),
        pass,
        drop,
    }
}

fn run_all(direction: &str) {
    let scenarios: Vec<GeneratedScenario> =
        PEERS.iter().flat_map(|peers| PORTS.iter().map(|ports| generate(direction, peers, ports))).collect();
    run_scenarios(scenarios.iter().map(|generated| Scenario {
        name: &generated.name,
        why: &generated.why,
        policies: &generated.policy,
        pass: &generated.pass,
        drop: &generated.drop,
    }));
}

#[test]
fn every_form_of_peers_applies_with_every_form_of_ports_on_ingress() {
    run_all("Ingress");
}

#[test]
fn every_form_of_peers_applies_with_every_form_of_ports_on_egress() {
    run_all("Egress");
}
