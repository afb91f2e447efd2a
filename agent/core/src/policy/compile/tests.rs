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

fn labelled(app: &str) -> RulePeers {
    let namespaces = NamespaceSelector::Matching(Selector::everything());
    RulePeers::Of(vec![RulePeer::Pods(PodSelector { namespaces, pods: Selector::equals("app", app) })])
}

/// Three pods in namespace `a`, all on this node, and one policy per list of ingress rules, for all of them.
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

fn only_chain(part: &CompiledPolicy) -> &Chain {
    let [chain] = part.chains.values().collect::<Vec<_>>()[..] else { panic!("{:#?}", part.chains) };
    chain
}

#[test]
fn pods_with_the_same_policies_share_a_chain_and_pods_without_have_none() {
    let (snapshot, endpoints) = cluster(vec![vec![allow(labelled("1"), port(80))]]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!((part.chains.len(), part.ingress.len()), (1, 3), "one chain for three pods");
    assert!(part.egress.is_empty(), "nothing isolates them there");
    assert!(part.ingress.values().all(|name| name.as_str().starts_with("in.")), "{:?}", part.ingress);
    let (snapshot, endpoints) = cluster(Vec::new());
    assert_eq!(
        compile(&snapshot, &endpoints, DenyLog::Disabled),
        CompiledPolicy::default(),
        "no policy, nothing programmed"
    );
}

#[test]
fn a_chain_says_whose_policies_it_is_and_a_set_which_pods_it_holds() {
    let (snapshot, endpoints) = cluster(vec![vec![allow(labelled("1"), port(80))], Vec::new()]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let comments = |part: &CompiledPolicy| {
        let chains = part.comments.chains.values().map(ToString::to_string).collect::<Vec<_>>();
        (chains, part.comments.sets.values().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (chains, sets) = comments(&part);
    assert_eq!(chains, ["ingress of a/p0000, a/p0001"]);
    assert_eq!(sets, ["peers: pods 'app' in {'1'} of namespaces all port 6/80"]);
    assert!(part.comments.chains.keys().eq(part.chains.keys()), "every chain has one");
    let mut unknown = snapshot;
    unknown.pods.clear();
    let (chains, _) = comments(&compile(&unknown, &endpoints, DenyLog::Disabled));
    assert!(
        chains.iter().all(|chain| chain.ends_with("of pods that the API server has not reported yet")),
        "{chains:?}"
    );
}

/// An upgrade must not rename chains because a type or a field of ours has another name.
#[test]
fn a_chains_name_is_the_hash_of_its_nft_text_and_its_comment() {
    let (snapshot, endpoints) = cluster(vec![vec![allow(labelled("1"), port(80))]]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let (name, chain) = part.chains.iter().next().unwrap();
    let comment = &part.comments.chains[name];
    let text: String = chain.rules.iter().fold(format!("{comment}\n"), |text, rule| format!("{text}{rule}\n"));
    assert_eq!(name.as_str(), format!("in.{}", set::fingerprint(&text)));
    assert_eq!(name.as_str(), "in.e5817dc7e6b94ddf7aab", "{text}");
}

#[test]
fn a_thousand_policies_cost_a_packet_what_one_does() {
    let policy = |n: u16| vec![allow(labelled(&n.to_string()), port(n)), allow(RulePeers::Any, port(n + 10_000))];
    let (snapshot, endpoints) = cluster((1..=1000).map(policy).collect());
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!(only_chain(&part).rules.len(), 3, "pods with ports, ports, drop: {:#?}", only_chain(&part));
    assert_eq!(part.sets.len(), 2);
}

#[test]
fn a_chain_grows_with_the_alternations_of_action_only() {
    let rule = |action| PolicyRule { action, ..allow(labelled("1"), port(80)) };
    let rules = [[RuleAction::Allow; 3], [RuleAction::Deny; 3], [RuleAction::Allow; 3]]
        .concat()
        .into_iter()
        .map(rule)
        .collect();
    let (snapshot, endpoints) = cluster(vec![rules]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!(only_chain(&part).rules.len(), 4, "three runs and the default");
    assert_eq!(part.sets.len(), 1, "equal content is one set");
}

#[test]
fn behind_a_rule_for_everything_there_is_nothing() {
    let everything = vec![
        allow(RulePeers::Any, RulePorts::Any),
        PolicyRule { action: RuleAction::Deny, ..allow(labelled("1"), RulePorts::Any) },
    ];
    let (snapshot, endpoints) = cluster(vec![everything]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!(only_chain(&part).rules, [Rule::verdict(Vec::new(), Verdict::Accept)]);
    assert!(part.sets.is_empty(), "no set that nobody looks into");
}

#[test]
fn a_pod_that_comes_is_an_element_and_nothing_else() {
    let (mut snapshot, endpoints) = cluster(vec![vec![allow(labelled("9"), RulePorts::Any)]]);
    let before = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert!(before.sets.values().all(|set| set.elements.is_empty()), "the set is there before its first pod");
    let mut pod = Pod::clone(snapshot.pods.values().next().unwrap());
    pod.labels.insert("app".to_owned(), "9".to_owned());
    pod.addresses = BTreeSet::from([IpAddr::from([10, 0, 0, 9])]);
    snapshot.pods.insert(PodId { namespace: "b".to_owned(), name: "new".to_owned() }, Arc::new(pod.clone()));
    assert_eq!(
        compile(&snapshot, &endpoints, DenyLog::Disabled),
        before,
        "its namespace is not known yet: it is not let in"
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
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    assert_eq!((part.ingress.len(), part.egress.len()), (3, 3));
    assert!(part.chains.values().all(|c| c.rules == [Rule::verdict(Vec::new(), Verdict::Drop)]), "{part:#?}");
}

#[test]
fn networks_are_merged_and_only_of_families_that_the_pod_has() {
    let block = |net: &str| RulePeer::IpBlock(IpBlock { net: net.parse().unwrap(), except: BTreeSet::new() });
    let peers = RulePeers::Of(["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "fd00::/64"].map(block).to_vec());
    let (snapshot, endpoints) = cluster(vec![vec![allow(peers, RulePorts::Any)]]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let sets: Vec<_> = part.sets.values().collect();
    assert_eq!(sets.len(), 1, "the pods have no IPv6 address: {sets:#?}");
    let merged = vec![crate::ruleset::Value::Net("10.0.0.0/7".parse().unwrap())];
    assert_eq!(sets[0].elements, imbl::OrdSet::unit(merged));
}

#[test]
fn names_say_what_is_in_a_set_and_meet_none_of_the_tables_own() {
    let (snapshot, endpoints) =
        cluster(vec![vec![allow(labelled("1"), port(80)), allow(labelled("2"), RulePorts::Any)]]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let names: Vec<&str> = part.sets.keys().map(SetName::as_str).collect();
    assert!(names[0].starts_with("podports4.") && names[1].starts_with("pods4."), "{names:?}");
    assert!(names.iter().all(|name| name.len() < 32), "short enough for people: {names:?}");
}

#[test]
fn what_is_dropped_is_told_of_before_and_nothing_else_is() {
    let rule = |action| PolicyRule { action, ..allow(labelled("1"), port(80)) };
    let (mut snapshot, mut endpoints) = cluster(vec![vec![rule(RuleAction::Allow), rule(RuleAction::Deny)]]);
    let stranger = IfName::of_pod("a", "stranger");
    let pod = PodId { namespace: "a".to_owned(), name: "stranger".to_owned() };
    endpoints.insert(stranger.clone(), Arc::new(Endpoint { pod, interface: stranger, addresses: Vec::new() }));
    let silent = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let telling = compile(&snapshot, &endpoints, DenyLog::Enabled);
    assert_eq!((&silent.sets, silent.chains.len()), (&telling.sets, telling.chains.len()));
    let is_log = |rule: &&Rule| matches!(rule.action, crate::ruleset::Action::Log(_));
    assert_eq!(silent.chains.values().flat_map(|chain| &chain.rules).find(is_log), None);
    for (name, chain) in &telling.chains {
        let direction = if name.as_str().starts_with("in.") { Direction::Ingress } else { Direction::Egress };
        let drop = crate::ruleset::Action::Verdict(Verdict::Drop);
        let dropped = chain.rules.iter().enumerate().filter(|(_, rule)| rule.action == drop);
        let before: Vec<_> = dropped.map(|(n, rule)| (&chain.rules[n - 1], rule.matches.clone())).collect();
        assert_eq!(chain.rules.iter().filter(is_log).count(), before.len(), "one for each that drops");
        for (log, matches) in before {
            assert_eq!(
                *log,
                packet_log::rule(Reason::Denied, direction, matches),
                "the same packets, and this direction"
            );
        }
    }
    snapshot.tiers.clear();
    let known = |(_, endpoint): &(IfName, Arc<Endpoint>)| snapshot.pods.contains_key(&endpoint.pod);
    let endpoints = endpoints.into_iter().filter(known).collect();
    assert_eq!(compile(&snapshot, &endpoints, DenyLog::Enabled), CompiledPolicy::default());
}

#[test]
fn what_a_rule_logs_is_told_of_where_it_stands_and_goes_on() {
    let rule = |action, app| PolicyRule { action, ..allow(labelled(app), RulePorts::Any) };
    let everything = PolicyRule { action: RuleAction::Log, ..allow(RulePeers::Any, RulePorts::Any) };
    let logs = [rule(RuleAction::Log, "1"), rule(RuleAction::Log, "2")];
    let rules =
        [vec![rule(RuleAction::Allow, "1")], logs.to_vec(), vec![rule(RuleAction::Deny, "1"), everything]].concat();
    let (snapshot, endpoints) = cluster(vec![rules]);
    let part = compile(&snapshot, &endpoints, DenyLog::Disabled);
    let chain = only_chain(&part);
    let everything = packet_log::rule(Reason::Logged, Direction::Ingress, Vec::new());
    let [accept, drop] = [Verdict::Accept, Verdict::Drop].map(crate::ruleset::Action::Verdict);
    let tell = everything.action.clone();
    let actions: Vec<_> = chain.rules.iter().map(|rule| &rule.action).collect();
    let why = "two that log are one lookup, none moves across a decision, and behind one for everything it goes on";
    assert_eq!(actions, [&accept, &tell, &drop, &tell, &drop], "{why}");
    assert_eq!(chain.rules[3], everything);
    assert!(chain.rules[1].matches != chain.rules[0].matches && !chain.rules[1].matches.is_empty(), "{chain:#?}");
}
