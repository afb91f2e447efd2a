//! Packets in, findings out; time stands where a test puts it.

use std::{collections::BTreeSet, net::IpAddr};

use towpath_core::{
    model::{Labels, Protocol},
    policy::{
        eval::RuleId,
        ir::{
            IpBlock, NamespaceSelector, Pod, PodKind, PodSelector, Policy, PolicyId, PolicyRule, RuleAction, RulePeer,
            RulePeers, RulePort, RulePorts, Tier, TierDefault,
        },
        packet_log::{DenyLog, prefix},
    },
    selector::Selector,
};
use towpath_dataplane::nflog::{Carried, Logged};

use super::{telling::PERIOD, *};

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

    fn view(&self) -> Option<View<'_>> {
        Some(View { endpoints: &self.endpoints, snapshot: &self.snapshot, compiler: &self.compiler })
    }
}

fn rule(action: RuleAction, net: &str, port: u16) -> PolicyRule {
    let block = RulePeer::IpBlock(IpBlock { net: net.parse().unwrap(), except: BTreeSet::new() });
    let ports = RulePorts::Of(vec![RulePort::Numbers(Protocol::Tcp, port, port)]);
    PolicyRule { action, peers: RulePeers::Of(vec![block]), ports }
}

/// A packet that was dropped.
fn packet(direction: Direction, source: &str, destination: &str, port: u16) -> Logged {
    told(Reason::Denied, direction, [source, destination], port)
}

/// All pods of a namespace.
fn all_of(namespace: &str) -> RulePeer {
    let namespaces = NamespaceSelector::Named(namespace.to_owned());
    RulePeer::Pods(PodSelector { namespaces, pods: Selector::everything() })
}

fn told(reason: Reason, direction: Direction, [source, destination]: [&str; 2], port: u16) -> Logged {
    let carried = Carried::Port(Protocol::Tcp, port);
    let head = Head { source: address(source), destination: address(destination), carried };
    Logged { prefix: prefix(reason, direction).to_owned(), head }
}

fn batch(packets: Vec<Logged>) -> Batch {
    Batch { packets, lost: 0 }
}

/// One packet from the client to the pod's port.
fn knock(port: u16) -> Batch {
    batch(vec![packet(Direction::Ingress, CLIENT, WEB, port)])
}

fn isolated(by: &[&str], more: usize) -> Cause {
    Cause::Isolated { by: by.iter().map(|name| policy_id(name)).collect(), more }
}

#[test]
fn what_is_told_names_pod_peer_and_the_policy_that_decided() {
    use RuleAction::{Allow, Deny};
    let elsewhere = rule(Allow, "198.51.100.0/24", 80);
    let [ingress, egress] = Direction::ALL;
    let in_80 = packet(ingress, CLIENT, WEB, 80);
    for (cluster, packet, peer, cause, why) in [
        (
            Cluster::new().with("p", std::slice::from_ref(&elsewhere)).with("q", &[]),
            in_80.clone(),
            Some("client"),
            isolated(&["p", "q"], 0),
            "isolated by two, whose rules are about others",
        ),
        (
            Cluster::new().with("p", &[]),
            packet(egress, WEB, OUTSIDE, 443),
            None,
            isolated(&["p"], 0),
            "the peer is outside",
        ),
        (
            Cluster::new().with("p", &[]),
            packet(egress, WEB, NODE, 443),
            None,
            isolated(&["p"], 0),
            "a node is no pod, whichever pods share its address",
        ),
        (
            Cluster::new().with("p", &[elsewhere, rule(Deny, "10.0.0.0/8", 80)]),
            in_80.clone(),
            Some("client"),
            Cause::Rule { policy: policy_id("p"), rule: 1 },
            "a rule that denies",
        ),
        (Cluster::new(), in_80.clone(), Some("client"), Cause::AllowedNow, "the policy has gone meanwhile"),
        (
            Cluster::new().with("p", &[rule(Allow, "10.0.0.0/8", 80)]),
            in_80,
            Some("client"),
            Cause::AllowedNow,
            "a rule that allows has come meanwhile",
        ),
        (
            Cluster::new()
                .with("p", &[PolicyRule { peers: RulePeers::Of(vec![all_of("a")]), ..rule(Allow, "10.0.0.0/8", 80) }]),
            packet(ingress, CLIENT, WEB, 80),
            Some("client"),
            Cause::AllowedNow,
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
        let found = Denials::new(now).take(now, &batch(vec![packet]), cluster.view());
        let [Line::First(denial, 1)] = found.lines.as_slice() else { panic!("{why}: {found:?}") };
        assert_eq!((&denial.pod, &denial.cause), (&pod_id("web"), &cause), "{why}");
        assert_eq!(denial.peer.pod, peer.map(pod_id), "{why}");
        assert_eq!(found.events.len(), usize::from(cause != Cause::AllowedNow), "{why}: nobody is blamed in vain");
    }
}

#[test]
fn of_a_pod_that_is_not_known_it_is_said_that_it_is_not() {
    let now = Instant::now();
    let mut cluster = Cluster::new().with("p", &[]);
    cluster.snapshot.pods.remove(&pod_id("web"));
    let found = Denials::new(now).take(now, &knock(80), cluster.view());
    assert!(matches!(&found.lines[..], [Line::First(Denial { cause: Cause::UnknownPod, .. }, 1)]), "{found:?}");
    cluster.endpoints.clear();
    assert_eq!(Denials::new(now).take(now, &knock(80), cluster.view()), Findings::default(), "its interface is gone");
    let before = Denials::new(now).take(now, &knock(80), None);
    assert_eq!(before, Findings { lost: 1, ..Findings::default() }, "the cluster is not known yet");
    let mut odd = knock(80);
    odd.packets[0].prefix = "ufw".to_owned();
    odd.lost = 7;
    let found = Denials::new(now).take(now, &odd, Cluster::new().with("p", &[]).view());
    assert_eq!(found, Findings { lost: 7, ..Findings::default() }, "another's rule, in our group");
}

#[test]
fn a_denial_is_told_of_once_and_then_once_a_minute_while_it_goes_on() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = Denials::new(start);
    let three = batch(vec![packet(Direction::Ingress, CLIENT, WEB, 80); 3]);
    assert!(matches!(denials.take(start, &three, cluster.view()).lines[..], [Line::First(_, 3)]));
    let again = denials.take(start, &three, cluster.view());
    assert!(again.lines.is_empty() && again.events.is_empty(), "{again:?}");
    assert_eq!(again.counts.values().collect::<Vec<_>>(), [&3], "but counted");
    assert!(matches!(denials.take(start, &knock(81), cluster.view()).lines[..], [Line::First(_, 1)]), "another port");
    let minute = denials.wake_at().unwrap();
    assert_eq!(minute - start, PERIOD);
    assert_eq!(denials.tick(minute - Duration::from_secs(1)), Findings::default());
    let told = denials.tick(minute);
    assert!(matches!(&told.lines[..], [Line::Again(denial, 3)] if denial.carried == Carried::Port(Protocol::Tcp, 80)));
    assert_eq!(denials.tick(minute + PERIOD), Findings::default(), "nothing went on");
    let later = minute + MEMORY;
    assert_eq!(denials.tick(later), Findings::default());
    assert_eq!(denials.wake_at(), None, "all is forgotten");
    assert!(matches!(denials.take(later, &knock(80), cluster.view()).lines[..], [Line::First(_, 1)]), "as if new");
}

#[test]
fn a_pod_has_one_event_of_a_cause_in_ten_minutes() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = Denials::new(start);
    let mut events = |seconds: u64, batch: &Batch| {
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
    let mut denials = Denials::new(start);
    let (mut lines, mut named, mut others, mut counted, mut lost) = (0, 0, 0, 0, 0);
    let mut add = |found: Findings| {
        for line in &found.lines {
            lines += 1;
            match line {
                Line::First(_, packets) | Line::Again(_, packets) => named += packets,
                Line::Others(packets) => others += packets,
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
        assert!(denials.denied.remembered() <= MOST && denials.events.len() <= MOST);
    }
    add(denials.tick(now + PERIOD));
    assert_eq!(counted + lost, 120_000, "each packet is counted, or counted as not looked at");
    assert_eq!(named + others, counted, "and told of, by its kind or not");
    // A hundred at once, five a second in eleven minutes, and one a minute for all that have none.
    assert!((100..=100 + 660 * 5 + 11).contains(&lines), "{lines} lines");
    assert!(lost > 0 && others > 0, "or the test is too gentle");
}

#[test]
fn policies_beyond_a_hundred_series_are_counted_as_one() {
    let now = Instant::now();
    let mut denials = Denials::new(now);
    let mut counts: BTreeMap<Series, u64> = BTreeMap::new();
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
    let unblamed = Denials::new(now).take(now, &knock(80), cluster.view()).counts;
    let series = Series { namespace: String::new(), policy: String::new(), direction: "ingress".to_owned() };
    assert_eq!(unblamed, BTreeMap::from([(series, 1)]), "no policy is the cause");
}

#[test]
fn what_a_rule_logs_is_told_of_with_the_rules_and_is_no_denial() {
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
        let mut denials = Denials::new(now);
        let packets = vec![told(Reason::Logged, Direction::Ingress, [CLIENT, WEB], 80); 2];
        let found = denials.take(now, &batch(packets), cluster.view());
        let [Line::First(sighting, 2)] = &found.logged[..] else { panic!("{why}: {found:?}") };
        assert_eq!((&sighting.pod, &sighting.cause), (&pod_id("web"), &expected), "{why}");
        assert_eq!((sighting.peer.pod.clone(), sighting.direction), (Some(pod_id("client")), Direction::Ingress));
        assert_eq!(sighting.cause.to_string(), text, "{why}");
        assert_eq!(found, Findings { logged: found.logged.clone(), ..Findings::default() }, "{why}: no denial");
    }
}

#[test]
fn what_rules_log_is_told_of_again_each_minute_and_hides_no_denial() {
    let start = Instant::now();
    let cluster = Cluster::new().with("p", &[]);
    let mut denials = Denials::new(start);
    let logged = |port| told(Reason::Logged, Direction::Ingress, [CLIENT, WEB], port);
    let flood = denials.take(start, &batch((1..=300).map(logged).collect()), cluster.view());
    assert_eq!((flood.logged.len(), flood.lost), (100, 200), "what is above the bound is counted");
    let denied = denials.take(start, &knock(80), cluster.view());
    assert!(matches!(denied.lines[..], [Line::First(_, 1)]), "{denied:?}");
    let later = start + Duration::from_secs(1);
    assert!(denials.take(later, &batch(vec![logged(1); 3]), cluster.view()).logged.is_empty());
    let minute = denials.wake_at().unwrap();
    assert_eq!(minute, start + PERIOD);
    let told = denials.tick(minute);
    assert!(
        matches!(&told.logged[..], [Line::Again(sighting, 3)] if sighting.carried == Carried::Port(Protocol::Tcp, 1))
    );
    assert!(told.lines.is_empty(), "nothing was denied any more: {told:?}");
}
