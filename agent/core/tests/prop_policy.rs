//! The law that policy rests on: whatever the cluster and the packet, the compiled table decides as the evaluator does.
//!
//! `PROPTEST_CASES=100000` tries more clusters (each with some hundred packets); the seed of a failing run is in its
//! output, and `PROPTEST_RNG_SEED=<seed>` repeats it.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

#[path = "support/cluster.rs"]
mod cluster;

use std::{collections::BTreeSet, net::IpAddr};

use cluster::{Cluster, clusters};
use imbl::OrdSet;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use towpath_core::{
    connection::{AffectedPods, Connection, Reevaluation},
    model::{Family, PodId, Protocol},
    names::IfName,
    policy::{
        compile::compile,
        eval::{Flow, FlowEndpoint, FlowTransport, eval},
        ir::Direction,
        packet_log::{DenyLog, Reason, read_prefix},
    },
    ruleset::{self, Element, Hook, Outcome, Ruleset, Value},
    table::{Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};

/// One end of a packet, with the interface that it uses on this node.
#[derive(Debug, Clone)]
struct End {
    party: FlowEndpoint,
    interface: IfName,
}

/// Every address of the cluster as seen from this node: its own pods, others' pods, and outside.
fn ends(cluster: &Cluster, family: Family) -> Vec<End> {
    let mut ends: Vec<End> = cluster
        .endpoints
        .values()
        .flat_map(|e| e.addresses.iter().map(move |a| (*a, e)))
        .filter(|(a, _)| Family::of(*a) == family)
        .map(|(address, e)| End {
            party: FlowEndpoint { address, pod: Some(e.pod.clone()) },
            interface: e.interface.clone(),
        })
        .collect();
    let uplink = IfName::new("eth0").unwrap();
    let remote = |address| End { party: FlowEndpoint { address, pod: None }, interface: uplink.clone() };
    let known: BTreeSet<IpAddr> = ends.iter().map(|e| e.party.address).collect();
    let pods = cluster.snapshot.pods.values().flat_map(|p| &p.addresses).copied();
    let addresses: BTreeSet<IpAddr> = pods.chain(cluster::outside()).filter(|a| Family::of(*a) == family).collect();
    ends.extend(addresses.difference(&known).map(|a| remote(*a)));
    ends
}

fn transports() -> Vec<FlowTransport> {
    let mut transports = vec![FlowTransport::Other(1), FlowTransport::Other(47)];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        transports.extend(cluster::PORTS.map(|port| FlowTransport::Port(protocol, port)));
    }
    transports
}

fn compiled(cluster: &Cluster) -> Ruleset {
    table(TableInput {
        endpoints: &cluster.endpoints,
        cluster_pod_cidrs: &["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        node_pod_cidrs: &["10.0.0.0/28".parse().unwrap(), "fd00::/124".parse().unwrap()],
        node_addresses: &OrdSet::unit("172.30.0.1".parse().unwrap()),
        vxlan_port: 8472,
        masquerade: Masquerade::Disabled,
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: PolicyEnforcement::Enforce(compile(&cluster.snapshot, &cluster.endpoints, DenyLog::Enabled)),
    })
}

/// The kernel refuses a set with overlapping intervals, and with it the whole transaction.
fn overlaps(rules: &Ruleset) -> bool {
    let meet = |a: &Value, b: &Value| match (a, b) {
        (Value::Net(a), Value::Net(b)) => a.contains(b) || b.contains(a),
        (Value::Net(net), Value::Addr(addr)) | (Value::Addr(addr), Value::Net(net)) => net.contains(addr),
        (Value::PortRange(a, b), Value::PortRange(c, d)) => a <= d && c <= b,
        (Value::PortRange(a, b), Value::Port(c)) | (Value::Port(c), Value::PortRange(a, b)) => (a..=b).contains(&c),
        (a, b) => a == b,
    };
    rules.sets.values().any(|set| {
        let elements: Vec<_> = set.elements.iter().collect();
        let meets =
            |(n, a): (usize, &&Element)| elements[..n].iter().any(|b| a.iter().zip(*b).all(|(a, b)| meet(a, b)));
        elements.iter().enumerate().any(meets)
    })
}

const fn on_the_wire(transport: FlowTransport) -> ruleset::Transport {
    match transport {
        FlowTransport::Port(protocol, destination) => {
            ruleset::Transport::Ports { protocol: protocol.number(), destination }
        }
        FlowTransport::Other(number) => ruleset::Transport::Other(number),
    }
}

fn connection(from: &End, to: &End, transport: FlowTransport) -> Connection {
    Connection { from: from.party.address, to: to.party.address, transport: on_the_wire(transport) }
}

fn in_this_node(from: &End, to: &End, transport: FlowTransport) -> ruleset::Packet {
    ruleset::Packet {
        in_interface: Some(from.interface.clone()),
        out_interface: Some(to.interface.clone()),
        source: from.party.address,
        destination: to.party.address,
        transport: on_the_wire(transport),
        state: None,
        mark: 0,
    }
}

/// The directions in which rules log the packet.
fn logged(rules: &Ruleset, packet: &ruleset::Packet) -> BTreeSet<Direction> {
    let logs = rules.logs(Hook::Forward, packet).expect("every name is defined");
    let told = logs.iter().map(|log| read_prefix(log.prefix).expect("all logs are policies'"));
    told.filter(|(reason, _)| *reason == Reason::Logged).map(|(_, direction)| direction).collect()
}

/// Packets that two strangers exchange through this node are none of its business.
fn concerns_this_node(from: &End, to: &End) -> bool {
    from.party.pod.is_some() || to.party.pod.is_some()
}

fn check(cluster: &Cluster) -> Result<usize, TestCaseError> {
    let rules = compiled(cluster);
    prop_assert!(!overlaps(&rules), "overlapping intervals in {:#?}", rules.sets);
    let nowhere = BTreeSet::new();
    let review =
        Reevaluation::new(&rules, cluster.endpoints.values().map(|endpoint| &**endpoint), &nowhere, &AffectedPods::All);
    let mut packets = 0;
    for family in Family::ALL {
        let ends = ends(cluster, family);
        for from in &ends {
            for to in ends.iter().filter(|to| concerns_this_node(from, to)) {
                for transport in transports() {
                    let packet = Flow { from: from.party.clone(), to: to.party.clone(), transport };
                    let verdict = eval(&cluster.snapshot, &packet);
                    let here = in_this_node(from, to, transport);
                    let passed = rules.interpret(Hook::Forward, &here).expect("every name is defined");
                    let passed = passed == Outcome::Accepted;
                    prop_assert_eq!(passed, verdict.allows(), "{:?}: evaluator says {:?}", packet, verdict);
                    // What the sender's end drops does not get to the receiver's.
                    let ends = [(Direction::Egress, &verdict.egress), (Direction::Ingress, &verdict.ingress)];
                    let met = ends.iter().take(if verdict.egress.outcome.allows() { 2 } else { 1 });
                    let expected = met.filter(|(_, trail)| !trail.logged_by.is_empty()).map(|(at, _)| *at).collect();
                    prop_assert_eq!(logged(&rules, &here), expected, "{:?} logged: {:?}", packet, verdict);
                    packets += 1;
                    let denied = review.denied_at(&connection(from, to, transport)).expect("every name is defined");
                    let expected = match (verdict.egress.outcome.allows(), verdict.ingress.outcome.allows()) {
                        (false, _) => Some(Direction::Egress),
                        (true, false) => Some(Direction::Ingress),
                        (true, true) => None,
                    };
                    prop_assert_eq!(denied, expected, "{:?} under way: evaluator says {:?}", packet, verdict);
                }
            }
        }
    }
    Ok(packets)
}

#[test]
fn the_compiled_table_decides_every_packet_as_the_evaluator_does() {
    let mut config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    if let Some(cases) = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()) {
        config.cases = cases;
    }
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(new_seed());
    }
    println!("clusters: {}, seed: {:?}", config.cases, config.rng_seed);
    let packets = std::cell::Cell::new(0);
    let outcome = TestRunner::new(config).run(&clusters(), |cluster| {
        packets.set(packets.get() + check(&cluster)?);
        Ok(())
    });
    println!("packets: {}", packets.get());
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    assert!(packets.get() >= 10_000, "too few packets to mean anything: {}", packets.get());
}

/// Another seed for every run.
fn new_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

#[test]
fn pods_of_other_nodes_are_elements_of_sets_and_nothing_else() {
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let check = |mut cluster: Cluster| {
        let before = compile(&cluster.snapshot, &cluster.endpoints, DenyLog::Enabled);
        let local: BTreeSet<PodId> = cluster.endpoints.values().map(|e| e.pod.clone()).collect();
        cluster.snapshot.pods = cluster.snapshot.pods.into_iter().filter(|(id, _)| local.contains(id)).collect();
        let after = compile(&cluster.snapshot, &cluster.endpoints, DenyLog::Enabled);
        prop_assert_eq!(before.chains, after.chains);
        prop_assert_eq!((before.ingress, before.egress), (after.ingress, after.egress));
        let (before, after): (Vec<_>, Vec<_>) = (before.sets.keys().collect(), after.sets.keys().collect());
        prop_assert_eq!(before, after);
        Ok(())
    };
    if let Err(failure) = runner.run(&clusters(), check) {
        panic!("{failure}");
    }
}
