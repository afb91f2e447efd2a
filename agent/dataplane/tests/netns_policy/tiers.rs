//! Rules that NetworkPolicy cannot express: a tier in front of it that denies, passes and logs.
//!
//! Logged and dropped packets are received from nfnetlink_log, as in the agent.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use towpath_core::{
    model::{Family, Protocol},
    policy::{
        ir::{
            Direction, NamespaceSelector, PodSelector, Policy, PolicyId, PolicyRule, RuleAction, RulePeer, RulePeers,
            RulePort, RulePorts, Tier, TierDefault,
        },
        packet_log::{GROUP, Reason, SNAPLEN, read_prefix},
    },
    selector::Selector,
};
use towpath_dataplane::nflog::{PacketHeader, PacketLog, TransportHeader};

use crate::{
    probe::{Probe, ProbeTransport},
    scenario::{check_in, probes_of, scenario},
    testbed::Testbed,
};

/// One tier for the pods of `shop`, and the expected outcomes.
struct TierCase {
    why: &'static str,
    direction: Direction,
    /// The action for a TCP port, on packets between the pods of `ops` and those of `shop`.
    rules: &'static [(RuleAction, u16)],
    pass: &'static str,
    drop: &'static str,
    logged: &'static str,
}

/// The port of the last probe, which every case logs: the kernel delivers packets in order.
const LAST: u16 = 9;

const CASES: &[TierCase] = &[
    TierCase {
        why: "a log before an allow: the packet is logged and passes",
        direction: Direction::Ingress,
        rules: &[(RuleAction::Log, 80), (RuleAction::Allow, 80), (RuleAction::Deny, 81)],
        pass: "client > web tcp 80; lab > web tcp 80|tcp 81",
        drop: "client > web tcp 81",
        logged: "client > web tcp 80",
    },
    TierCase {
        why: "a log before a deny is received twice: as logged and as dropped",
        direction: Direction::Ingress,
        rules: &[(RuleAction::Log, 80), (RuleAction::Deny, 80)],
        pass: "client > web tcp 81|udp 80; lab > web tcp 80",
        drop: "client > web,db tcp 80",
        logged: "client > web,db tcp 80",
    },
    TierCase {
        why: "a log after an allow or a deny does not match",
        direction: Direction::Ingress,
        rules: &[(RuleAction::Allow, 80), (RuleAction::Log, 80), (RuleAction::Deny, 81), (RuleAction::Log, 81)],
        pass: "client > web tcp 80",
        drop: "client > web tcp 81",
        logged: "",
    },
    TierCase {
        why: "two logs in a row; a pass continues with the next tier and skips the rules after it",
        direction: Direction::Ingress,
        rules: &[
            (RuleAction::Log, 80),
            (RuleAction::Log, 81),
            (RuleAction::Pass, 80),
            (RuleAction::Deny, 80),
            (RuleAction::Deny, 82),
            (RuleAction::Log, 82),
        ],
        pass: "client > web tcp 80|tcp 81; opsweb > db tcp 81",
        drop: "client > web tcp 82",
        logged: "client > web tcp 80|tcp 81; opsweb > db tcp 81",
    },
    TierCase {
        why: "egress",
        direction: Direction::Egress,
        rules: &[(RuleAction::Log, 80), (RuleAction::Log, 81), (RuleAction::Deny, 81)],
        pass: "web > client tcp 80|tcp 82; client > web tcp 80",
        drop: "web,db > opsweb tcp 81",
        logged: "web > client tcp 80; web,db > opsweb tcp 81",
    },
];

fn tier(case: &TierCase) -> Tier {
    let port = |port| RulePorts::Of(vec![RulePort::Numbers(Protocol::Tcp, port, port)]);
    let of = |name: &str| PodSelector {
        namespaces: NamespaceSelector::Named(name.to_owned()),
        pods: Selector::everything(),
    };
    let peers = || RulePeers::Of(vec![RulePeer::Pods(of("ops"))]);
    let rules = case.rules.iter().chain(&[(RuleAction::Log, LAST)]);
    let rules: Vec<PolicyRule> =
        rules.map(|(action, at)| PolicyRule { action: *action, peers: peers(), ports: port(*at) }).collect();
    let (ingress, egress) = match case.direction {
        Direction::Ingress => (Some(rules), None),
        Direction::Egress => (None, Some(rules)),
    };
    let policy = Policy { order: 0, subject: of("shop"), ingress, egress };
    let id = PolicyId { namespace: "shop".to_owned(), name: "first".to_owned() };
    Tier { name: "first".to_owned(), default: TierDefault::Pass, policies: OrdMap::unit(id, policy.into()) }
}

type LoggedFlow = (Reason, Direction, PacketHeader);

fn header_of(probe: &Probe) -> PacketHeader {
    let transport = match probe.transport {
        ProbeTransport::Port(protocol, port) => TransportHeader::Port(protocol, port),
        other => panic!("no rule matches {other:?}"),
    };
    PacketHeader { source: probe.from.address(probe.family), destination: probe.to.address(probe.family), transport }
}

/// Receives packets until all of `last`, which were sent last, have arrived; returns the others.
fn receive(log: &mut PacketLog, last: &BTreeSet<PacketHeader>) -> BTreeSet<LoggedFlow> {
    let mut logged = BTreeSet::new();
    let mut pending = last.clone();
    let end = Instant::now() + Duration::from_secs(10);
    while !pending.is_empty() {
        assert!(Instant::now() < end, "not received within ten seconds: {pending:?}; received {logged:?}");
        for packet in log.receive(Some(Duration::from_secs(1))).unwrap().packets {
            let (reason, direction) = read_prefix(&packet.prefix).unwrap();
            if last.contains(&packet.header) {
                pending.remove(&packet.header);
            } else {
                logged.insert((reason, direction, packet.header));
            }
        }
    }
    logged
}

#[test]
fn log_rules_have_no_verdict_and_their_packets_are_received() {
    let mut testbed = Testbed::new();
    let mut log = testbed.node.run(|| PacketLog::bind(GROUP, SNAPLEN).unwrap());
    for case in CASES {
        let TierCase { why, direction, pass, drop, .. } = *case;
        testbed.cluster.first_tier = Some(tier(case));
        testbed.apply();
        testbed.flush_conntrack();
        let logged_probes = |text: &'static str| probes_of(&scenario("logged", why, "", text, ""), &Family::ALL);
        let flows = |reason, text: &'static str| -> BTreeSet<LoggedFlow> {
            let probes = if text.is_empty() { Vec::new() } else { logged_probes(text) };
            probes.iter().map(|(probe, _)| (reason, direction, header_of(probe))).collect()
        };
        check_in(&mut testbed, &scenario("now", why, "", pass, drop), &Family::ALL);
        let (from, to) = match direction {
            Direction::Ingress => ("client", "web"),
            Direction::Egress => ("web", "client"),
        };
        let last = Family::ALL.map(|family| Probe::new(family, from, to, &format!("tcp {LAST}")));
        let _ = testbed.probe(&last.map(|probe| (probe, crate::probe::ProbeOutcome::Passed)));
        let logged = receive(&mut log, &last.iter().map(header_of).collect());
        let expected = flows(Reason::Logged, case.logged).into_iter().chain(flows(Reason::Denied, drop)).collect();
        assert_eq!(logged, expected, "{why}");
    }
}
