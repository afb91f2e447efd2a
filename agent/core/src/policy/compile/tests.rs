use std::net::IpAddr;

use super::*;
use crate::{
    model::{Labels, PodId, Protocol},
    names::SetName,
    policy::{
        ir::{
            IpBlock, NamespaceSelector, Pod, PodKind, PodSelector, Policy, PolicyId, PolicyRule, RuleAction, RulePeer,
            RulePeers, RulePort, RulePorts, Tier,
        },
        packet_log::{self, Reason},
    },
    ruleset::{Chain, Rule, Verdict},
    selector::Selector,
};

fn all_of(namespace: &str) -> PodSelector {
    PodSelector { namespaces: NamespaceSelector::Named(namespace.to_owned()), pods: Selector::everything() }
}

fn allow(peers: RulePeers, ports: RulePorts) -> PolicyRule {
    PolicyRule { action: RuleAction::Allow, peers, ports }
}

fn port(number: u16) -> RulePorts {
    RulePorts::Of(vec![RulePort::Numbers(Protocol::Tcp, number, number)])
}

fn by_label(app: &str) -> RulePeers {
    let namespaces = NamespaceSelector::Matching(Selector::everything());
    RulePeers::Of(vec![RulePeer::Pods(PodSelector { namespaces, pods: Selector::equals("app", app) })])
}

/// Three pods in namespace `a`, all on this node, and one policy per list of ingress rules. Each policy selects all pods.
fn cluster(policies: Vec<Vec<PolicyRule>>) -> (Snapshot, OrdMap<IfName, Arc<Endpoint>>) {
    let mut snapshot = Snapshot::default();
    let mut endpoints = OrdMap::new();
    snapshot.namespaces.insert("a".to_owned(), Arc::new(Labels::new()));
    for n in 1..=3_u8 {
        let pod = PodId { namespace: "a".to_owned(), name: format!("pod{n}") };
        let address = IpAddr::from([10, 0, 0, n]);
        let interface = IfName::of_pod(&pod.namespace, &pod.name);
        let endpoint = Endpoint { pod: pod.clone(), interface: interface.clone(), addresses: vec![address] };
        endpoints.insert(interface, Arc::new(endpoint));
        snapshot.pods.insert(
            pod,
            Arc::new(Pod {
                labels: Labels::from([("app".to_owned(), n.to_string())]),
                addresses: BTreeSet::from([address]),
                named_ports: BTreeSet::new(),
                kind: PodKind::Endpoint,
                node: None,
            }),
        );
    }
    let policies = policies.into_iter().enumerate().map(|(n, rules)| {
        let id = PolicyId { namespace: "a".to_owned(), name: format!("p{n:04}") };
        (id, Arc::new(Policy { order: 0, subject: all_of("a"), ingress: Some(rules), egress: None }))
    });
    let tier = Tier { name: "t".to_owned(), default: TierDefault::Deny, policies: policies.collect() };
    snapshot.tiers.push(tier);
    (snapshot, endpoints)
}

fn only_chain(compiled: &CompiledPolicy) -> &Chain {
    let [chain] = compiled.chains.values().collect::<Vec<_>>()[..] else { panic!("{:#?}", compiled.chains) };
    chain
}

#[test]
fn pods_with_the_same_policies_share_a_chain_and_pods_without_have_none() {
    let (snapshot, endpoints) = cluster(vec![vec![allow(by_label("1"), port(80))]]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!((compiled.chains.len(), compiled.ingress.len()), (1, 3), "one chain for three pods");
    assert!(compiled.egress.is_empty(), "no policy isolates them on egress");
    assert!(compiled.ingress.values().all(|name| name.as_str().starts_with("in.")), "{:?}", compiled.ingress);
    let (snapshot, endpoints) = cluster(Vec::new());
    assert_eq!(
        compile(&snapshot, &endpoints, DenyLog::Disabled),
        CompiledPolicy::default(),
        "no policy, nothing programmed"
    );
}

#[test]
fn the_comment_of_a_chain_lists_its_policies_and_that_of_a_set_its_pods() {
    let (snapshot, endpoints) = cluster(vec![vec![allow(by_label("1"), port(80))], Vec::new()]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let comments = |compiled: &CompiledPolicy| {
        let chains = compiled.comments.chains.values().map(ToString::to_string).collect::<Vec<_>>();
        (chains, compiled.comments.sets.values().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (chains, sets) = comments(&compiled);
    assert_eq!(chains, ["ingress of a/p0000, a/p0001"]);
    assert_eq!(sets, ["peers: pods 'app' in {'1'} of namespaces all port 6/80"]);
    assert!(compiled.comments.chains.keys().eq(compiled.chains.keys()), "every chain has a comment");
    let mut unknown = snapshot;
    unknown.pods.clear();
    let (chains, _) = comments(&compile(&unknown, &endpoints, DenyLog::Disabled));
    assert!(
        chains.iter().all(|chain| chain.ends_with("of pods that the API server has not reported yet")),
        "{chains:?}"
    );
}

/// An upgrade in which a Rust type or field is renamed must not rename chains.
#[test]
fn the_name_of_a_chain_is_a_hash_of_its_comment_and_its_nft_text() {
    let (snapshot, endpoints) = cluster(vec![vec![allow(by_label("1"), port(80))]]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let (name, chain) = compiled.chains.iter().next().unwrap();
    let comment = &compiled.comments.chains[name];
    let text: String = chain.rules.iter().fold(format!("{comment}\n"), |text, rule| format!("{text}{rule}\n"));
    assert_eq!(name.as_str(), format!("in.{}", set::fingerprint(&text)));
    assert_eq!(name.as_str(), "in.e5817dc7e6b94ddf7aab", "{text}");
}

#[test]
fn a_thousand_policies_need_as_many_rules_as_one() {
    let policy = |n: u16| vec![allow(by_label(&n.to_string()), port(n)), allow(RulePeers::Any, port(n + 10_000))];
    let (snapshot, endpoints) = cluster((1..=1000).map(policy).collect());
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!(only_chain(&compiled).rules.len(), 3, "pods with ports, ports, drop: {:#?}", only_chain(&compiled));
    assert_eq!(compiled.sets.len(), 2);
}

#[test]
fn a_chain_grows_with_the_number_of_runs_only() {
    let rule = |action| PolicyRule { action, ..allow(by_label("1"), port(80)) };
    let rules = [[RuleAction::Allow; 3], [RuleAction::Deny; 3], [RuleAction::Allow; 3]]
        .concat()
        .into_iter()
        .map(rule)
        .collect();
    let (snapshot, endpoints) = cluster(vec![rules]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!(only_chain(&compiled).rules.len(), 4, "three runs and the default");
    assert_eq!(compiled.sets.len(), 1, "equal sets are shared");
}

#[test]
fn rules_after_one_that_matches_everything_are_left_out() {
    let everything = vec![
        allow(RulePeers::Any, RulePorts::Any),
        PolicyRule { action: RuleAction::Deny, ..allow(by_label("1"), RulePorts::Any) },
    ];
    let (snapshot, endpoints) = cluster(vec![everything]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!(only_chain(&compiled).rules, [Rule::verdict(Vec::new(), Verdict::Accept)]);
    assert!(compiled.sets.is_empty(), "no unused set");
}

#[test]
fn a_new_peer_pod_adds_an_element_and_changes_nothing_else() {
    let (mut snapshot, endpoints) = cluster(vec![vec![allow(by_label("9"), RulePorts::Any)]]);
    let before = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert!(before.sets.values().all(|set| set.elements.is_empty()), "the set exists before its first pod");
    let mut pod = Pod::clone(snapshot.pods.values().next().unwrap());
    pod.labels.insert("app".to_owned(), "9".to_owned());
    pod.addresses = BTreeSet::from([IpAddr::from([10, 0, 0, 9])]);
    snapshot.pods.insert(PodId { namespace: "b".to_owned(), name: "new".to_owned() }, Arc::new(pod.clone()));
    assert_eq!(
        compile(&snapshot, &endpoints, DenyLog::Disabled),
        before,
        "its namespace is not known yet, so it is not allowed"
    );
    snapshot.namespaces.insert("b".to_owned(), Arc::new(Labels::new()));
    let after = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!((&after.chains, &after.ingress), (&before.chains, &before.ingress));
    let elements: Vec<_> = after.sets.values().flat_map(|set| &set.elements).collect();
    assert_eq!(elements, [&vec![crate::ruleset::Value::Addr(IpAddr::from([10, 0, 0, 9]))]]);
}

#[test]
fn an_interface_of_an_unknown_pod_drops_everything() {
    let (mut snapshot, endpoints) = cluster(Vec::new());
    snapshot.pods.clear();
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!((compiled.ingress.len(), compiled.egress.len()), (3, 3));
    assert!(compiled.chains.values().all(|c| c.rules == [Rule::verdict(Vec::new(), Verdict::Drop)]), "{compiled:#?}");
}

#[test]
fn networks_are_merged_and_limited_to_the_families_of_the_pod() {
    let block = |net: &str| RulePeer::IpBlock(IpBlock { net: net.parse().unwrap(), except: BTreeSet::new() });
    let peers = RulePeers::Of(["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "fd00::/64"].map(block).to_vec());
    let (snapshot, endpoints) = cluster(vec![vec![allow(peers, RulePorts::Any)]]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let sets: Vec<_> = compiled.sets.values().collect();
    assert_eq!(sets.len(), 1, "the pods have no IPv6 address: {sets:#?}");
    let merged = vec![crate::ruleset::Value::Net("10.0.0.0/7".parse().unwrap())];
    assert_eq!(sets[0].elements, imbl::OrdSet::unit(merged));
}

#[test]
fn a_set_name_starts_with_the_kind_of_the_set() {
    let (snapshot, endpoints) =
        cluster(vec![vec![allow(by_label("1"), port(80)), allow(by_label("2"), RulePorts::Any)]]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let names: Vec<&str> = compiled.sets.keys().map(SetName::as_str).collect();
    assert!(names[0].starts_with("podports4.") && names[1].starts_with("pods4."), "{names:?}");
    assert!(names.iter().all(|name| name.len() < 32), "short enough to read: {names:?}");
}

#[test]
fn with_the_deny_log_each_rule_that_drops_is_preceded_by_a_log_rule() {
    let rule = |action| PolicyRule { action, ..allow(by_label("1"), port(80)) };
    let (mut snapshot, mut endpoints) = cluster(vec![vec![rule(RuleAction::Allow), rule(RuleAction::Deny)]]);
    let unknown = IfName::of_pod("a", "unknown");
    let pod = PodId { namespace: "a".to_owned(), name: "unknown".to_owned() };
    endpoints.insert(unknown.clone(), Arc::new(Endpoint { pod, interface: unknown, addresses: Vec::new() }));
    let without_log = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let with_log = compile(&snapshot, &endpoints, DenyLog::Enabled);
    assert_eq!((&without_log.sets, without_log.chains.len()), (&with_log.sets, with_log.chains.len()));
    let is_log = |rule: &&Rule| matches!(rule.action, crate::ruleset::Action::Log(_));
    assert_eq!(without_log.chains.values().flat_map(|chain| &chain.rules).find(is_log), None);
    for (name, chain) in &with_log.chains {
        let direction = if name.as_str().starts_with("in.") { Direction::Ingress } else { Direction::Egress };
        let drop = crate::ruleset::Action::Verdict(Verdict::Drop);
        let dropped = chain.rules.iter().enumerate().filter(|(_, rule)| rule.action == drop);
        let before: Vec<_> = dropped.map(|(n, rule)| (&chain.rules[n - 1], rule.matches.clone())).collect();
        assert_eq!(chain.rules.iter().filter(is_log).count(), before.len(), "one for each rule that drops");
        for (log, matches) in before {
            assert_eq!(
                *log,
                packet_log::rule(Reason::Denied, direction, matches),
                "same matches, and the direction of the chain"
            );
        }
    }
    snapshot.tiers.clear();
    let known = |(_, endpoint): &(IfName, Arc<Endpoint>)| snapshot.pods.contains_key(&endpoint.pod);
    let endpoints = endpoints.into_iter().filter(known).collect();
    assert_eq!(compile(&snapshot, &endpoints, DenyLog::Enabled), CompiledPolicy::default());
}

#[test]
fn log_rules_keep_their_position_and_give_no_verdict() {
    let rule = |action, app| PolicyRule { action, ..allow(by_label(app), RulePorts::Any) };
    let everything = PolicyRule { action: RuleAction::Log, ..allow(RulePeers::Any, RulePorts::Any) };
    let logs = [rule(RuleAction::Log, "1"), rule(RuleAction::Log, "2")];
    let rules =
        [vec![rule(RuleAction::Allow, "1")], logs.to_vec(), vec![rule(RuleAction::Deny, "1"), everything]].concat();
    let (snapshot, endpoints) = cluster(vec![rules]);
    let compiled = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let chain = only_chain(&compiled);
    let everything = packet_log::rule(Reason::Logged, Direction::Ingress, Vec::new());
    let [accept, drop] = [Verdict::Accept, Verdict::Drop].map(crate::ruleset::Action::Verdict);
    let log = everything.action.clone();
    let actions: Vec<_> = chain.rules.iter().map(|rule| &rule.action).collect();
    let why = "two Log rules share a lookup, none moves past a verdict, and a Log rule for everything is not final";
    assert_eq!(actions, [&accept, &log, &drop, &log, &drop], "{why}");
    assert_eq!(chain.rules[3], everything);
    assert!(chain.rules[1].matches != chain.rules[0].matches && !chain.rules[1].matches.is_empty(), "{chain:#?}");
}
