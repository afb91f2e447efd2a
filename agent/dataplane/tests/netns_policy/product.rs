//! Every form of peers with every form of ports, in both directions, for the pod `web`.
//!
//! A form says by itself whom or what it lets through; what a pair of forms lets through follows: the peer must be one
//! of the first, and the packet one of the second.

use crate::scenario::{Scenario, prove};

/// A way to write `from` or `to`.
struct PeerForm {
    name: &'static str,
    why: &'static str,
    /// The list, or nothing where the key is missing.
    yaml: &'static str,
    /// Whom it lets through.
    of: &'static [&'static str],
    /// Whom it does not.
    not: &'static [&'static str],
}

/// A way to write `ports`.
struct PortForm {
    name: &'static str,
    why: &'static str,
    /// The list, or nothing where the key is missing.
    yaml: &'static str,
    opens: Opens,
    /// What it never lets through.
    not: &'static [&'static str],
}

/// What a form of ports lets through.
enum Opens {
    /// This, to whomever.
    Always(&'static [&'static str]),
    /// What the destination's containers call so: the destination, and its port.
    Named(&'static [(&'static str, &'static str)]),
}

impl Opens {
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
    of: &'static [&'static str],
    not: &'static [&'static str],
) -> PeerForm {
    PeerForm { name, why, yaml, of, not }
}

const fn ports(
    name: &'static str,
    why: &'static str,
    yaml: &'static str,
    opens: Opens,
    not: &'static [&'static str],
) -> PortForm {
    PortForm { name, why, yaml, opens, not }
}

const PEERS: &[PeerForm] = &[
    peers("a missing list", "no list is any peer, outside included", "", &["db", "client", "outside", "host"], &[]),
    peers("an empty list", "an empty list is any peer, outside included", "[]", &["bare", "far", "stranger"], &[]),
    peers(
        "a podSelector",
        "alone it is about the policy's namespace",
        "[{podSelector: {matchLabels: {tier: back}}}]",
        &["db"],
        &["bare", "opsweb", "far", "outside"],
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
        "alone it is about all pods there, completed ones no longer",
        "[{namespaceSelector: {matchLabels: {team: red}}}]",
        &["client", "opsweb", "far", "leaving"],
        &["db", "lab", "done", "outside"],
    ),
    peers(
        "the empty namespaceSelector",
        "all pods of all namespaces; neither nodes, with their hostNetwork pods, nor outside",
        "[{namespaceSelector: {}}]",
        &["db", "lab", "far", "leaving"],
        &["outside", "host", "done"],
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
        "an address range, outside of the cluster",
        "[{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8::/64'}}]",
        &["outside", "excepted"],
        &["stranger", "db", "far"],
    ),
    peers(
        "an ipBlock with an exception",
        "the range less what is excepted",
        "[{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.128/25]}},
          {ipBlock: {cidr: '2001:db8::/64', except: ['2001:db8::8000/113']}}]",
        &["outside"],
        &["excepted", "stranger", "client"],
    ),
    peers(
        "everywhere but for an exception",
        "a range of everything has pods and nodes in it, too",
        "[{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/24]}},
          {ipBlock: {cidr: '::/0', except: ['2001:db8:f::/48']}}]",
        &["outside", "db", "far", "host"],
        &["stranger"],
    ),
    peers(
        "an ipBlock of pods",
        "it matches addresses, whoever has them",
        "[{ipBlock: {cidr: 10.244.1.0/24}}, {ipBlock: {cidr: 'fd00:244:1::/64'}}]",
        &["db", "client", "lab"],
        &["far", "outside"],
    ),
    peers(
        "an exception that another item allows",
        "an exception is part of its item only",
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
        "a range that is none",
        "what cannot be parsed matches nothing",
        "[{ipBlock: {cidr: everywhere}}]",
        &[],
        &["db", "outside", "host"],
    ),
    peers(
        "an exception that is none",
        "a block whose exception cannot be parsed matches nothing: it could let in what must be left out",
        "[{ipBlock: {cidr: 0.0.0.0/0, except: [here]}}, {ipBlock: {cidr: '::/0', except: [here]}}]",
        &[],
        &["db", "outside"],
    ),
    peers(
        "a bad item beside a good one",
        "the rest of the rule counts",
        "[{ipBlock: {cidr: everywhere}}, {podSelector: {matchLabels: {app: db}}}]",
        &["db"],
        &["outside", "client"],
    ),
    peers("an empty item", "a peer that says nothing matches nothing", "[{}]", &[], &["db", "outside"]),
    peers(
        "In",
        "labels of the peer: one of the values",
        "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: In, values: [back]}]}}]",
        &["db", "opsweb", "far"],
        &["bare", "client", "lab"],
    ),
    peers(
        "NotIn",
        "holds where the label is absent",
        "[{namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back]}]}}]",
        &["bare", "client", "lab"],
        &["db", "far", "outside"],
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
        "the expressions hold for labels of namespaces, too",
        "[{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]",
        &["lab"],
        &["db", "client", "far"],
    ),
];

const PORTS: &[PortForm] = &[
    ports(
        "no ports",
        "any port and any protocol, those without ports too",
        "",
        Opens::Always(&["tcp 8080", "udp 53", "sctp 7", "icmp", "plain"]),
        &[],
    ),
    ports(
        "an empty list of ports",
        "any port and any protocol",
        "[]",
        Opens::Always(&["tcp 81", "udp 5353", "icmp"]),
        &[],
    ),
    ports(
        "a number",
        "TCP is the default",
        "[{port: 8080}]",
        Opens::Always(&["tcp 8080"]),
        &["tcp 8081", "udp 8080", "sctp 8080", "icmp", "plain"],
    ),
    ports(
        "a number of UDP",
        "the protocol counts",
        "[{port: 53, protocol: UDP}]",
        Opens::Always(&["udp 53"]),
        &["tcp 53", "udp 54", "icmp"],
    ),
    ports(
        "a number of SCTP",
        "the third protocol with ports",
        "[{port: 3868, protocol: SCTP}]",
        Opens::Always(&["sctp 3868"]),
        &["tcp 3868", "sctp 3869"],
    ),
    ports(
        "a range",
        "both ends belong to it",
        "[{port: 7000, endPort: 7010}]",
        Opens::Always(&["tcp 7000", "tcp 7005", "tcp 7010"]),
        &["tcp 6999", "tcp 7011", "udp 7005"],
    ),
    ports(
        "a range of UDP",
        "ranges have a protocol, too",
        "[{port: 7000, endPort: 7010, protocol: UDP}]",
        Opens::Always(&["udp 7000", "udp 7010"]),
        &["udp 6999", "udp 7011", "tcp 7005"],
    ),
    ports(
        "a range of SCTP",
        "ranges have a protocol, too",
        "[{port: 7000, endPort: 7010, protocol: SCTP}]",
        Opens::Always(&["sctp 7000", "sctp 7010"]),
        &["sctp 7011", "tcp 7005"],
    ),
    ports(
        "a range of one",
        "it is that port",
        "[{port: 7000, endPort: 7000}]",
        Opens::Always(&["tcp 7000"]),
        &["tcp 6999", "tcp 7001"],
    ),
    ports(
        "a protocol alone",
        "all of its ports",
        "[{protocol: UDP}]",
        Opens::Always(&["udp 1", "udp 19999"]),
        &["tcp 1", "icmp", "plain"],
    ),
    ports(
        "a name",
        "each destination pod's own port of that name, and nobody else's",
        "[{port: http}]",
        Opens::Named(&[
            ("web", "tcp 8080"),
            ("db", "tcp 8081"),
            ("client", "tcp 8082"),
            ("opsweb", "tcp 80"),
            ("far", "tcp 8083"),
        ]),
        &["tcp 9999", "udp 8080", "icmp"],
    ),
    ports(
        "a name of UDP",
        "the protocol belongs to the name",
        "[{port: dns, protocol: UDP}]",
        Opens::Named(&[("web", "udp 5353"), ("db", "udp 5301")]),
        &["tcp 5353", "udp 53"],
    ),
    ports(
        "a name of SCTP",
        "the protocol belongs to the name",
        "[{port: signal, protocol: SCTP}]",
        Opens::Named(&[("web", "sctp 3868")]),
        &["tcp 3868", "sctp 3869"],
    ),
    ports(
        "an init container's name",
        "its ports count",
        "[{port: setup}]",
        Opens::Named(&[("web", "tcp 9000")]),
        &["tcp 9001"],
    ),
    ports(
        "a name of another protocol",
        "a name is nothing in a protocol in which nobody has it",
        "[{port: dns}]",
        Opens::Always(&[]),
        &["tcp 5353", "udp 5353", "udp 5301"],
    ),
    ports(
        "a name that nobody has",
        "it opens nothing",
        "[{port: nowhere}]",
        Opens::Always(&[]),
        &["tcp 8080", "udp 53", "icmp"],
    ),
    ports(
        "several ports",
        "they are alternatives",
        "[{port: 80}, {port: 53, protocol: UDP}, {port: 7000, endPort: 7010}, {port: 5, protocol: SCTP}]",
        Opens::Always(&["tcp 80", "udp 53", "tcp 7003", "sctp 5"]),
        &["udp 80", "tcp 53", "sctp 80", "icmp"],
    ),
    ports(
        "a protocol that is none of the three",
        "what cannot be understood opens nothing",
        "[{port: 80, protocol: ICMP}]",
        Opens::Always(&[]),
        &["tcp 80", "icmp"],
    ),
    ports(
        "a range that runs backwards",
        "what cannot be understood opens nothing",
        "[{port: 80, endPort: 79}]",
        Opens::Always(&[]),
        &["tcp 80", "tcp 79"],
    ),
];

/// A scenario with its own texts.
struct Made {
    name: String,
    why: String,
    policy: String,
    pass: String,
    drop: String,
}

fn make(direction: &str, peers: &PeerForm, ports: &PortForm) -> Made {
    let (section, key) = if direction == "Ingress" { ("ingress", "from") } else { ("egress", "to") };
    let entry = |key: &str, yaml: &str| if yaml.is_empty() { String::new() } else { format!("{key}: {yaml}, ") };
    let rule = format!("{{{}{}}}", entry(key, peers.yaml), entry("ports", ports.yaml));
    let (mut pass, mut drop) = (String::new(), String::new());
    let ask = |list: &mut String, peer: &str, carries: &str| {
        let (from, to) = if direction == "Ingress" { (peer, "web") } else { ("web", peer) };
        *list += &format!("{from} > {to} {carries};");
    };
    for (n, peer) in peers.of.iter().enumerate() {
        let opens = ports.opens.at(if direction == "Ingress" { "web" } else { peer });
        // All of it for one peer, something of it for the others.
        let some = if n == 0 { usize::MAX } else { 1 };
        opens.iter().take(some).for_each(|carries| ask(&mut pass, peer, carries));
        ports.not.iter().take(some).for_each(|carries| ask(&mut drop, peer, carries));
    }
    for (n, peer) in peers.not.iter().enumerate() {
        let opens = ports.opens.at(if direction == "Ingress" { "web" } else { peer });
        let some = if n == 0 { usize::MAX } else { 1 };
        opens.iter().take(some).for_each(|carries| ask(&mut drop, peer, carries));
    }
    if pass.is_empty() && drop.is_empty() {
        ask(&mut drop, peers.not[0], "tcp 8080");
    }
    Made {
        name: format!("{direction}: {}, {}", peers.name, ports.name),
        why: format!("{}; {}", peers.why, ports.why),
        policy: format!(
            "shop {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [{direction}], {section}: [{rule}]}}"
        ),
        pass,
        drop,
    }
}

fn all(direction: &str) {
    let made: Vec<Made> =
        PEERS.iter().flat_map(|peers| PORTS.iter().map(|ports| make(direction, peers, ports))).collect();
    prove(made.iter().map(|made| Scenario {
        name: &made.name,
        why: &made.why,
        policies: &made.policy,
        pass: &made.pass,
        drop: &made.drop,
    }));
}

#[test]
fn every_form_of_peers_with_every_form_of_ports_into_a_pod() {
    all("Ingress");
}

#[test]
fn every_form_of_peers_with_every_form_of_ports_out_of_a_pod() {
    all("Egress");
}
