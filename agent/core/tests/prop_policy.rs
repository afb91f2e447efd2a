//! The central property of policy: for every cluster and packet, the compiled table and the evaluator agree.
//!
//! `PROPTEST_CASES=100000` tests more clusters, each with some hundred packets. A failing run prints its seed;
//! `PROPTEST_RNG_SEED=<seed>` repeats it.

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

/// Source or destination of a packet, with its interface on this node.
#[derive(Debug, Clone)]
struct PacketEndpoint {
    endpoint: FlowEndpoint,
    interface: IfName,
}

/// Every address as seen from this node: its own pods, pods of other nodes, and outside the cluster.
fn packet_endpoints(cluster: &Cluster, family: Family) -> Vec<PacketEndpoint> {
    let mut endpoints: Vec<PacketEndpoint> = cluster
        .endpoints
        .values()
        .flat_map(|e| e.addresses.iter().map(move |a| (*a, e)))
        .filter(|(a, _)| Family::of(*a) == family)
        .map(|(address, e)| PacketEndpoint {
            endpoint: FlowEndpoint { address, pod: Some(e.pod.clone()) },
            interface: e.interface.clone(),
        })
        .collect();
    let uplink = IfName::new("eth0").unwrap();
    let remote = |address| PacketEndpoint { endpoint: FlowEndpoint { address, pod: None }, interface: uplink.clone() };
    let local: BTreeSet<IpAddr> = endpoints.iter().map(|e| e.endpoint.address).collect();
    let pods = cluster.snapshot.pods.values().flat_map(|p| &p.addresses).copied();
    let addresses: BTreeSet<IpAddr> = pods.chain(cluster::outside()).filter(|a| Family::of(*a) == family).collect();
    endpoints.extend(addresses.difference(&local).map(|a| remote(*a)));
    endpoints
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

/// Whether a set contains overlapping intervals. The kernel would reject the whole transaction.
fn has_overlaps(rules: &Ruleset) -> bool {
    let overlap = |a: &Value, b: &Value| match (a, b) {
        (Value::Net(a), Value::Net(b)) => a.contains(b) || b.contains(a),
        (Value::Net(net), Value::Addr(addr)) | (Value::Addr(addr), Value::Net(net)) => net.contains(addr),
        (Value::PortRange(a, b), Value::PortRange(c, d)) => a <= d && c <= b,
        (Value::PortRange(a, b), Value::Port(c)) | (Value::Port(c), Value::PortRange(a, b)) => (a..=b).contains(&c),
        (a, b) => a == b,
    };
    rules.sets.values().any(|set| {
        let elements: Vec<_> = set.elements.iter().collect();
        let overlaps =
            |(n, a): (usize, &&Element)| elements[..n].iter().any(|b| a.iter().zip(*b).all(|(a, b)| overlap(a, b)));
        elements.iter().enumerate().any(overlaps)
    })
}

const fn packet_transport(transport: FlowTransport) -> ruleset::Transport {
    match transport {
        FlowTransport::Port(protocol, destination) => {
            ruleset::Transport::Ports { protocol: protocol.number(), destination }
        }
        FlowTransport::Other(number) => ruleset::Transport::Other(number),
    }
}

fn connection(from: &PacketEndpoint, to: &PacketEndpoint, transport: FlowTransport) -> Connection {
    Connection { from: from.endpoint.address, to: to.endpoint.address, transport: packet_transport(transport) }
}

/// The packet as the forward hook of this node sees it.
fn forwarded_packet(from: &PacketEndpoint, to: &PacketEndpoint, transport: FlowTransport) -> ruleset::Packet {
    ruleset::Packet {
        in_interface: Some(from.interface.clone()),
        out_interface: Some(to.interface.clone()),
        source: from.endpoint.address,
        destination: to.endpoint.address,
        transport: packet_transport(transport),
        state: None,
        mark: 0,
    }
}

/// The directions in which rules log the packet.
fn logged(rules: &Ruleset, packet: &ruleset::Packet) -> BTreeSet<Direction> {
    let logs = rules.logs(Hook::Forward, packet).expect("every reference is defined");
    let prefixes = logs.iter().map(|log| read_prefix(log.prefix).expect("every log rule belongs to a policy"));
    prefixes.filter(|(reason, _)| *reason == Reason::Logged).map(|(_, direction)| direction).collect()
}

/// Whether this node enforces policy for the packet: one endpoint is a pod of this node.
fn concerns_this_node(from: &PacketEndpoint, to: &PacketEndpoint) -> bool {
    from.endpoint.pod.is_some() || to.endpoint.pod.is_some()
}

fn check(cluster: &Cluster) -> Result<usize, TestCaseError> {
    let rules = compiled(cluster);
    prop_assert!(!has_overlaps(&rules), "overlapping intervals in {:#?}", rules.sets);
    let no_addresses = BTreeSet::new();
    let pods = cluster.endpoints.values().map(|endpoint| &**endpoint);
    let reevaluation = Reevaluation::new(&rules, pods, &no_addresses, &AffectedPods::All);
    let mut packets = 0;
    for family in Family::ALL {
        let endpoints = packet_endpoints(cluster, family);
        for from in &endpoints {
            for to in endpoints.iter().filter(|to| concerns_this_node(from, to)) {
                for transport in transports() {
                    let flow = Flow { from: from.endpoint.clone(), to: to.endpoint.clone(), transport };
                    let verdict = eval(&cluster.snapshot, &flow);
                    let packet = forwarded_packet(from, to, transport);
                    let outcome = rules.interpret(Hook::Forward, &packet).expect("every reference is defined");
                    let accepted = outcome == Outcome::Accepted;
                    prop_assert_eq!(accepted, verdict.allows(), "{:?}: evaluator returned {:?}", flow, verdict);
                    // A packet that egress policy drops does not reach ingress policy.
                    let traces = [(Direction::Egress, &verdict.egress), (Direction::Ingress, &verdict.ingress)];
                    let reached = traces.iter().take(if verdict.egress.outcome.allows() { 2 } else { 1 });
                    let expected =
                        reached.filter(|(_, trace)| !trace.logged_by.is_empty()).map(|(at, _)| *at).collect();
                    prop_assert_eq!(logged(&rules, &packet), expected, "{:?} logged: {:?}", flow, verdict);
                    packets += 1;
                    let connection = connection(from, to, transport);
                    let denied = reevaluation.denied_at(&connection).expect("every reference is defined");
                    let expected = match (verdict.egress.outcome.allows(), verdict.ingress.outcome.allows()) {
                        (false, _) => Some(Direction::Egress),
                        (true, false) => Some(Direction::Ingress),
                        (true, true) => None,
                    };
                    prop_assert_eq!(denied, expected, "{:?} established: evaluator returned {:?}", flow, verdict);
                }
            }
        }
    }
    Ok(packets)
}

#[test]
fn the_compiled_table_and_the_evaluator_agree_on_every_packet() {
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
    assert!(packets.get() >= 10_000, "too few packets: {}", packets.get());
}

/// A random seed.
fn new_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

#[test]
fn pods_of_other_nodes_only_change_set_elements() {
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
