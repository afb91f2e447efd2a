//! Rules that Kubernetes' own kind cannot say: tiers in front of it that deny, pass on and log.
//!
//! Logged packets are received from the kernel as the agent receives them, beside dropped ones.

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
    probe::{Carries, Probe},
    scenario::{check_in, probes_of, scenario},
    world::World,
};

/// One tier for the pods of `shop`, and what becomes of packets.
struct Case {
    why: &'static str,
    direction: Direction,
    /// What is done with a TCP port, of packets that the pods of `ops` exchange with those of `shop`.
    rules: &'static [(RuleAction, u16)],
    pass: &'static str,
    drop: &'static str,
    logged: &'static str,
}

/// Logged in every case, after everything else: the kernel sends packets in order.
const LAST: u16 = 9;

const CASES: &[Case] = &[
    Case {
        why: "what logs in front of an allow",
        direction: Direction::Ingress,
        rules: &[(RuleAction::Log, 80), (RuleAction::Allow, 80), (RuleAction::Deny, 81)],
        pass: "client > web tcp 80; lab > web tcp 80|tcp 81",
        drop: "client > web tcp 81",
        logged: "client > web tcp 80",
    },
    Case {
        why: "a log before a deny is received twice: as logged and as dropped",
        direction: Direction::Ingress,
        rules: &[(RuleAction::Log, 80), (RuleAction::Deny, 80)],
        pass: "client > web tcp 81|udp 80; lab > web tcp 80",
        drop: "client > web,db tcp 80",
        logged: "client > web,db tcp 80",
    },
    Case {
        why: "behind a decision nothing is logged",
        direction: Direction::Ingress,
        rules: &[(RuleAction::Allow, 80), (RuleAction::Log, 80), (RuleAction::Deny, 81), (RuleAction::Log, 81)],
        pass: "client > web tcp 80",
        drop: "client > web tcp 81",
        logged: "",
    },
    Case {
        why: "two that log stand together; a pass goes on with the next tier and leaves out what is behind it",
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
    Case {
        why: "what a pod sends",
        direction: Direction::Egress,
        rules: &[(RuleAction::Log, 80), (RuleAction::Log, 81), (RuleAction::Deny, 81)],
        pass: "web > client tcp 80|tcp 82; client > web tcp 80",
        drop: "web,db > opsweb tcp 81",
        logged: "web > client tcp 80; web,db > opsweb tcp 81",
    },
];

fn tier(case: &Case) -> Tier {
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

fn head(probe: &Probe) -> PacketHeader {
    let transport = match probe.carries {
        Carries::Port(protocol, port) => TransportHeader::Port(protocol, port),
        other => panic!("{other:?} is in no rule"),
    };
    PacketHeader { source: probe.from.address(probe.family), destination: probe.to.address(probe.family), transport }
}

/// Receives packets until one of these, which are sent last.
fn receive(log: &mut PacketLog, last: &BTreeSet<PacketHeader>) -> BTreeSet<LoggedFlow> {
    let mut logged = BTreeSet::new();
    let mut to_come = last.clone();
    let end = Instant::now() + Duration::from_secs(10);
    while !to_come.is_empty() {
        assert!(Instant::now() < end, "not received within ten seconds: {to_come:?}; but {logged:?}");
        for packet in log.receive(Some(Duration::from_secs(1))).unwrap().packets {
            let (reason, direction) = read_prefix(&packet.prefix).unwrap();
            if last.contains(&packet.header) {
                to_come.remove(&packet.header);
            } else {
                logged.insert((reason, direction, packet.header));
            }
        }
    }
    logged
}

#[test]
fn rules_that_log_decide_nothing_and_the_kernel_tells_of_their_packets() {
    let mut world = World::new();
    let mut log = world.node.run(|| PacketLog::bind(GROUP, SNAPLEN).unwrap());
    for case in CASES {
        let Case { why, direction, pass, drop, .. } = *case;
        world.cluster.first_tier = Some(tier(case));
        world.apply();
        world.forget_connections();
        let logged_flows = |text: &'static str| probes_of(&scenario("logged", why, "", text, ""), &Family::ALL);
        let heads = |reason, text: &'static str| -> BTreeSet<LoggedFlow> {
            let probes = if text.is_empty() { Vec::new() } else { logged_flows(text) };
            probes.iter().map(|(probe, _)| (reason, direction, head(probe))).collect()
        };
        check_in(&mut world, &scenario("now", why, "", pass, drop), &Family::ALL);
        let (from, to) = match direction {
            Direction::Ingress => ("client", "web"),
            Direction::Egress => ("web", "client"),
        };
        let last = Family::ALL.map(|family| Probe::new(family, from, to, &format!("tcp {LAST}")));
        let _ = world.probe(&last.map(|probe| (probe, crate::probe::Fate::Passed)));
        let logged = receive(&mut log, &last.iter().map(head).collect());
        let expected = heads(Reason::Logged, case.logged).into_iter().chain(heads(Reason::Denied, drop)).collect();
        assert_eq!(logged, expected, "{why}");
    }
}
