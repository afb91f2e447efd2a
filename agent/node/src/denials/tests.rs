//! Packets in, reports out; a test sets the time.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::OrdMap;

use towpath_core::{
    model::{Endpoint, Labels, Protocol},
    names::IfName,
    policy::{
        compile::Compiler,
        eval::RuleId,
        ir::{
            IpBlock, NamespaceSelector, Pod, PodKind, PodSelector, Policy, PolicyId, PolicyRule, RuleAction, RulePeer,
            RulePeers, RulePort, RulePorts, Snapshot, Tier, TierDefault,
        },
        packet_log::DenyLog,
    },
    selector::Selector,
};

use super::{throttle::PERIOD, *};
use crate::explain::{LoggedBy, Payload, PodLookup};

const WEB: &str = "10.0.0.1";
const CLIENT: &str = "10.0.0.2";
const OUTSIDE: &str = "192.0.2.1";
const NODE: &str = "192.0.2.2";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod_id(name: &str) -> PodId {
    PodId { namespace: "a".to_owned(), name: name.to_owned() }
}

fn policy_id(name: &str) -> PolicyId {
    PolicyId { namespace: "a".to_owned(), name: name.to_owned() }
}

/// The pods `a/web`, which is on this node, and `a/client`, which is not, and `a/proxy`, which has its node's network;
/// no policy.
struct Cluster {
    endpoints: OrdMap<IfName, Arc<Endpoint>>,
    snapshot: Snapshot,
    compiler: Compiler,
}

impl Cluster {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.namespaces.insert("a".to_owned(), Arc::default());
        for (name, at, kind) in [
            ("web", WEB, PodKind::Endpoint),
            ("client", CLIENT, PodKind::Endpoint),
            ("proxy", NODE, PodKind::HostNetwork),
        ] {
            let pod = Pod {
                labels: Labels::new(),
                addresses: BTreeSet::from([address(at)]),
                named_ports: BTreeSet::new(),
                kind,
                node: None,
            };
            snapshot.pods.insert(pod_id(name), Arc::new(pod));
        }
        let tier = Tier { name: "t".to_owned(), default: TierDefault::Deny, policies: OrdMap::new() };
        snapshot.tiers.push(tier);
        let interface = IfName::of_pod("a", "web");
        let web = Endpoint { pod: pod_id("web"), interface: interface.clone(), addresses: vec![address(WEB)] };
        let endpoints = OrdMap::unit(interface, Arc::new(web));
        let mut compiler = Compiler::new(DenyLog::Enabled);
        compiler.update(&snapshot, &endpoints);
        Self { endpoints, snapshot, compiler }
    }

    /// A policy for all pods of the namespace, in both directions, with these rules.
    fn with(mut self, name: &str, rules: &[PolicyRule]) -> Self {
        let subject =
            PodSelector { namespaces: NamespaceSelector::Named("a".to_owned()), pods: Selector::everything() };
        let policy = Policy { order: 0, subject, ingress: Some(rules.to_vec()), egress: Some(rules.to_vec()) };
        self.snapshot.tiers[0].policies.insert(policy_id(name), Arc::new(policy));
        self
    }

    fn view(&self) -> Option<PolicyView<'_>> {
        Some(PolicyView {
            endpoints: &self.endpoints,
            snapshot: &self.snapshot,
            lookup: PodLookup::Compiled(&self.compiler),
        })
    }
}

fn rule(action: RuleAction, net: &str, port: u16) -> PolicyRule {
    let block = RulePeer::IpBlock(IpBlock { net: net.parse().unwrap(), except: BTreeSet::new() });
    let ports = RulePorts::Of(vec![RulePort::Numbers(Protocol::Tcp, port, port)]);
    PolicyRule { action, peers: RulePeers::Of(vec![block]), ports }
}

/// A packet that was dropped.
fn packet(direction: Direction, source: &str, destination: &str, port: u16) -> PacketRecord {
    record(Reason::Denied, direction, [source, destination], port)
}

/// All pods of a namespace.
fn all_of(namespace: &str) -> RulePeer {
    let namespaces = NamespaceSelector::Named(namespace.to_owned());
    RulePeer::Pods(PodSelector { namespaces, pods: Selector::everything() })
}

fn record(reason: Reason, direction: Direction, [source, destination]: [&str; 2], port: u16) -> PacketRecord {
    let payload = Payload::Port(Protocol::Tcp, port);
    PacketRecord {
        reason,
        direction,
        tuple: PacketTuple { source: address(source), destination: address(destination), payload },
    }
}

fn batch(packets: Vec<PacketRecord>) -> PacketBatch {
    PacketBatch { packets, lost: 0 }
}

/// One packet from the client to the pod's port.
fn knock(port: u16) -> PacketBatch {
    batch(vec![packet(Direction::Ingress, CLIENT, WEB, port)])
}

fn isolated(by: &[&str], more: usize) -> DenialCause {
    DenialCause::Isolated { by: by.iter().map(|name| policy_id(name)).collect(), more }
}

#[test]
fn a_report_names_pod_peer_and_the_policy_that_decided() {
    use RuleAction::{Allow, Deny};
    let elsewhere = rule(Allow, "198.51.100.0/24", 80);
    let [ingress, egress] = Direction::ALL;
    let in_80 = packet(ingress, CLIENT, WEB, 80);
    let of_pods = PolicyRule { peers: RulePeers::Of(vec![all_of("a")]), ..rule(Allow, "10.0.0.0/8", 80) };
    for (cluster, packet, peer, cause, why) in [
        (
            Cluster::new().with("p", std::slice::from_ref(&elsewhere)).with("q", &[]),
            in_80,
            Some("client"),
            isolated(&["p", "q"], 0),
            "isolated by two, whose rules are about others",
        ),
        (Cluster::new().with("p", &[]), packet(egress, WEB, OUTSIDE, 443), None, isolated(&["p"], 0), "it is outside"),
        (
            Cluster::new().with("p", &[]),
            packet(egress, WEB, NODE, 443),
            None,
            isolated(&["p"], 0),
            "a node is no pod, whichever pods share its address",
        ),
        (
            Cluster::new().with("p", &[elsewhere, rule(Deny, "10.0.0.0/8", 80)]),
            in_80,
            Some("client"),
            DenialCause::Rule { policy: policy_id("p"), rule: 1 },
            "a rule that denies",
        ),
        (Cluster::new(), in_80, Some("client"), DenialCause::AllowedNow, "the policy has gone meanwhile"),
        (
            Cluster::new().with("p", &[rule(Allow, "10.0.0.0/8", 80)]),
            in_80,
            Some("client"),
            DenialCause::AllowedNow,
            "a rule that allows has come meanwhile",
        ),
        (
            Cluster::new().with("p", &[of_pods]),
            packet(ingress, CLIENT, WEB, 80),
            Some("client"),
            DenialCause::AllowedNow,
            "a rule about the peer's pod",
        ),
        (
            Cluster::new().with("p", &[]),
            packet(ingress, WEB, WEB, 80),
            Some("web"),
            isolated(&["p"], 0),
            "the pod itself, through a Service",
        ),
        (
            ["p", "q", "r", "s", "t"].iter().fold(Cluster::new(), |cluster, name| cluster.with(name, &[])),
            packet(ingress, OUTSIDE, WEB, 80),
            None,
            isolated(&["p", "q", "r"], 2),
            "more than need be named",
        ),
    ] {
        let now = Instant::now();
        let found = DenialLog::new(now).take(now, &batch(vec![packet]), cluster.view());
        let [PacketLine::First(denial, 1)] = found.denied.as_slice() else { panic!("{why}: {found:?}") };
        assert_eq!((&denial.pod, &denial.cause), (&pod_id("web"), &cause), "{why}");
        assert_eq!(denial.peer.pod, peer.map(pod_id), "{why}");
        let events = usize::from(cause != DenialCause::AllowedNow);
        assert_eq!(found.events.len(), events, "{why}: no policy is blamed in vain");
    }
}

#[test]
fn the_cause_is_the_same_whether_pods_are_looked_up_or_walked_over() {
    let of_pods = PolicyRule { peers: RulePeers::Of(vec![all_of("a")]), ..rule(RuleAction::Allow, "10.0.0.0/8", 80) };
    let cluster = Cluster::new().with("p", &[of_pods]);
    let compiled = cluster.view().unwrap();
    let walked = PolicyView { lookup: PodLookup::Walk, ..compiled };
    let mut causes = BTreeSet::new();
    for direction in Direction::ALL {
        for peer in [CLIENT, WEB, NODE, OUTSIDE] {
            for port in [80, 81] {
                let (source, destination) = match direction {
                    Direction::Ingress => (peer, WEB),
                    Direction::Egress => (WEB, peer),
                };
                let PacketRecord { tuple, .. } = packet(direction, source, destination, port);
                let denial: Option<Denial> = explain(compiled, direction, tuple);
                assert_eq!(explain(walked, direction, tuple), denial, "{direction}, {peer}, {port}");
                causes.extend(denial.map(|denial| denial.cause));
            }
        }
    }
    assert_eq!(causes, [isolated(&["p"], 0), DenialCause::AllowedNow].into());
}

#[test]
fn a_pod_that_is_not_known_is_reported_as_unknown() {
    let now = Instant::now();
    let mut cluster = Cluster::new().with("p", &[]);
    cluster.snapshot.pods.remove(&pod_id("web"));
    let found = DenialLog::new(now).take(now, &knock(80), cluster.view());
    assert!(
        matches!(&found.denied[..], [PacketLine::First(Denial { cause: DenialCause::UnknownPod, .. }, 1)]),
        "{found:?}"
    );
    cluster.endpoints.clear();
    assert_eq!(
        DenialLog::new(now).take(now, &knock(80), cluster.view()),
        DenialReport::default(),
        "its interface is gone"
    );
    let before = DenialLog::new(now).take(now, &knock(80), None);
    assert_eq!(before, DenialReport { lost: 1, ..DenialReport::default() }, "the cluster is not known yet");
    let overrun = PacketBatch { packets: Vec::new(), lost: 7 };
    let found = DenialLog::new(now).take(now, &overrun, Cluster::new().with("p", &[]).view());
    assert_eq!(found, DenialReport { lost: 7, ..DenialReport::default() }, "the kernel had no room for them");
}

#[test]
fn a_denial_is_logged_once_and_then_once_a_minute_while_it_continues() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = DenialLog::new(start);
    let three = batch(vec![packet(Direction::Ingress, CLIENT, WEB, 80); 3]);
    assert!(matches!(denials.take(start, &three, cluster.view()).denied[..], [PacketLine::First(_, 3)]));
    let again = denials.take(start, &three, cluster.view());
    assert!(again.denied.is_empty() && again.events.is_empty(), "{again:?}");
    assert_eq!(again.counts.values().collect::<Vec<_>>(), [&3], "but counted");
    assert!(
        matches!(denials.take(start, &knock(81), cluster.view()).denied[..], [PacketLine::First(_, 1)]),
        "another port"
    );
    let minute = denials.wake_at().unwrap();
    assert_eq!(minute - start, PERIOD);
    assert_eq!(denials.tick(minute - Duration::from_secs(1)), DenialReport::default());
    let report = denials.tick(minute);
    assert!(
        matches!(&report.denied[..], [PacketLine::Continued(denial, 3)] if denial.payload == Payload::Port(Protocol::Tcp, 80))
    );
    assert_eq!(denials.tick(minute + PERIOD), DenialReport::default(), "nothing went on");
    let later = minute + MEMORY;
    assert_eq!(denials.tick(later), DenialReport::default());
    assert_eq!(denials.wake_at(), None, "all is forgotten");
    assert!(
        matches!(denials.take(later, &knock(80), cluster.view()).denied[..], [PacketLine::First(_, 1)]),
        "as if new"
    );
}

#[test]
fn a_pod_has_one_event_of_a_cause_in_ten_minutes() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = DenialLog::new(start);
    let mut events = |seconds: u64, batch: &PacketBatch| {
        let found = denials.take(start + Duration::from_secs(seconds), batch, cluster.view());
        found.events.len()
    };
    let outwards = batch(vec![packet(Direction::Egress, WEB, OUTSIDE, 80)]);
    for (seconds, batch, count, why) in [
        (0, &knock(80), 1, "the first"),
        (1, &knock(81), 0, "another port, the same cause"),
        (2, &outwards, 1, "the other direction"),
        (599, &knock(82), 0, "not yet"),
        (600, &knock(80), 1, "ten minutes later"),
    ] {
        assert_eq!(events(seconds, batch), count, "{why}");
    }
}

#[test]
fn whatever_comes_what_is_kept_and_written_is_bounded_and_nothing_is_uncounted() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = DenialLog::new(start);
    let (mut lines, mut named, mut others, mut counted, mut lost) = (0, 0, 0, 0, 0);
    let mut add = |found: DenialReport| {
        for line in &found.denied {
            lines += 1;
            match line {
                PacketLine::First(_, packets) | PacketLine::Continued(_, packets) => named += packets,
                PacketLine::Suppressed(packets) => others += packets,
            }
        }
        counted += found.counts.values().sum::<u64>();
        lost += found.lost;
    };
    // Two packets to each of ten ports each tenth of a second, for ten minutes; a port has its turn twice.
    let mut now = start;
    for turn in 0..6000_u32 {
        now += Duration::from_millis(100);
        let ports = (0..10).map(|n| u16::try_from(turn / 2 * 10 + n).unwrap());
        let packets = ports.flat_map(|port| vec![packet(Direction::Ingress, CLIENT, WEB, port); 2]).collect();
        add(denials.take(now, &batch(packets), cluster.view()));
        add(denials.tick(now));
        assert!(denials.denied.remembered() <= MAX_KINDS && denials.events.len() <= MAX_KINDS);
    }
    add(denials.tick(now + PERIOD));
    assert_eq!(counted + lost, 120_000, "each packet is counted, or counted as not looked at");
    assert_eq!(named + others, counted, "and logged, by its kind or not");
    // A hundred at once, five a second in eleven minutes, and one a minute for all that have none.
    assert!((100..=100 + 660 * 5 + 11).contains(&lines), "{lines} lines");
    assert!(lost > 0 && others > 0, "or the test is too gentle");
}

#[test]
fn policies_beyond_a_hundred_series_are_counted_as_one() {
    let now = Instant::now();
    let mut denials = DenialLog::new(now);
    let mut counts: BTreeMap<DenialSeries, u64> = BTreeMap::new();
    let mut events = 0;
    for n in 0..150 {
        let name = format!("p{n:03}");
        let cluster = Cluster::new().with(&name, &[]);
        let at = now + Duration::from_secs(n);
        let found = denials.take(at, &knock(80), cluster.view());
        events += found.events.len();
        for (series, packets) in found.counts {
            *counts.entry(series).or_default() += packets;
        }
    }
    assert_eq!((counts.len(), counts.values().sum::<u64>()), (97, 150));
    assert_eq!(events, 10 + 149 / 6, "ten at once, and one each six seconds");
    denials.tick(now + Duration::from_secs(150) + MEMORY);
    assert!(denials.events.is_empty(), "forgotten when they say nothing any more");
    let other = counts.iter().find(|(series, _)| series.policy == "other").unwrap();
    assert_eq!((other.0.namespace.as_str(), *other.1), ("", 54));
    let cluster = Cluster::new();
    let unblamed = DenialLog::new(now).take(now, &knock(80), cluster.view()).counts;
    let series = DenialSeries { namespace: String::new(), policy: String::new(), direction: "ingress".to_owned() };
    assert_eq!(unblamed, BTreeMap::from([(series, 1)]), "no policy is the cause");
}

#[test]
fn what_a_rule_logs_is_reported_with_the_rules_and_is_no_denial() {
    use RuleAction::{Deny, Log};
    let logs = |count| vec![rule(Log, "10.0.0.0/8", 80); count];
    let by = |rules: &[(&str, usize)], more| {
        let rules = rules.iter().map(|(policy, rule)| RuleId { policy: policy_id(policy), rule: *rule });
        LoggedBy { rules: rules.collect(), more }
    };
    let elsewhere = rule(Log, "198.51.100.0/24", 80);
    let deny = rule(Deny, "10.0.0.0/8", 80);
    for (cluster, expected, text, why) in [
        (
            Cluster::new().with("p", &[elsewhere, logs(1)[0].clone(), deny]).with("q", &logs(1)),
            by(&[("p", 1)], 0),
            "rule 1 of policy a/p",
            "not the one about others, and not the one behind the decision",
        ),
        (
            Cluster::new().with("p", &logs(2)).with("q", &logs(3)),
            by(&[("p", 0), ("p", 1), ("q", 0)], 2),
            "rule 0 of policy a/p, rule 1 of policy a/p, rule 0 of policy a/q and 2 more",
            "more than need be named",
        ),
        (
            Cluster::new().with("p", &[]),
            by(&[], 0),
            "no rule any more: the policies have changed since",
            "the rule has gone meanwhile",
        ),
    ] {
        let now = Instant::now();
        let mut denials = DenialLog::new(now);
        let packets = vec![record(Reason::Logged, Direction::Ingress, [CLIENT, WEB], 80); 2];
        let found = denials.take(now, &batch(packets), cluster.view());
        let [PacketLine::First(packet, 2)] = &found.logged[..] else { panic!("{why}: {found:?}") };
        assert_eq!((&packet.pod, &packet.cause), (&pod_id("web"), &expected), "{why}");
        assert_eq!((packet.peer.pod.clone(), packet.direction), (Some(pod_id("client")), Direction::Ingress));
        assert_eq!(packet.cause.to_string(), text, "{why}");
        assert_eq!(found, DenialReport { logged: found.logged.clone(), ..DenialReport::default() }, "{why}: no denial");
    }
}

#[test]
fn what_rules_log_is_logged_again_each_minute_and_hides_no_denial() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = DenialLog::new(start);
    let logged = |port| record(Reason::Logged, Direction::Ingress, [CLIENT, WEB], port);
    let flood = denials.take(start, &batch((1..=300).map(logged).collect()), cluster.view());
    assert_eq!((flood.logged.len(), flood.lost), (100, 200), "what is above the bound is counted");
    let denied = denials.take(start, &knock(80), cluster.view());
    assert!(matches!(denied.denied[..], [PacketLine::First(_, 1)]), "{denied:?}");
    let later = start + Duration::from_secs(1);
    assert!(denials.take(later, &batch(vec![logged(1); 3]), cluster.view()).logged.is_empty());
    let minute = denials.wake_at().unwrap();
    assert_eq!(minute, start + PERIOD);
    let report = denials.tick(minute);
    assert!(
        matches!(&report.logged[..], [PacketLine::Continued(packet, 3)] if packet.payload == Payload::Port(Protocol::Tcp, 1))
    );
    assert!(report.denied.is_empty(), "nothing is denied any more: {report:?}");
}
