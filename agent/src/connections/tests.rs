use towpath_core::{
    model::Labels,
    policy::ir::{NamespaceSelector, PodKind, PodSelector, Policy, PolicyId, Tier, TierDefault},
    ruleset::Transport as Carried,
    selector::Selector,
};

use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// For the pod `a/web`, which a policy isolates in one direction.
fn order(direction: Direction) -> Order {
    let id = PodId { namespace: "a".to_owned(), name: "web".to_owned() };
    let pod = Pod {
        labels: Labels::new(),
        addresses: BTreeSet::from([address("10.244.1.2")]),
        named_ports: BTreeSet::new(),
        kind: PodKind::Endpoint,
        node: None,
    };
    let subject = PodSelector { namespaces: NamespaceSelector::Named("a".to_owned()), pods: Selector::everything() };
    let rules = |of: Direction| (of == direction).then(Vec::new);
    let policy = Policy { order: 0, subject, ingress: rules(Direction::Ingress), egress: rules(Direction::Egress) };
    let name = PolicyId { namespace: "a".to_owned(), name: "p".to_owned() };
    let policies = OrdMap::unit(name, Arc::new(policy));
    let mut snapshot = Snapshot::default();
    snapshot.namespaces.insert("a".to_owned(), Arc::default());
    snapshot.pods.insert(id.clone(), Arc::new(pod));
    snapshot.tiers.push(Tier { name: "t".to_owned(), default: TierDefault::Deny, policies });
    let interface = IfName::of_pod("a", "web");
    let web = Endpoint { pod: id, interface: interface.clone(), addresses: vec![address("10.244.1.2")] };
    Order {
        table: Ruleset::default(),
        endpoints: OrdMap::unit(interface, Arc::new(web)),
        node: BTreeSet::new(),
        snapshot,
        touched: AffectedPods::All,
    }
}

#[test]
fn of_many_that_are_cut_some_are_named_with_the_policy_and_all_are_counted() {
    let [ingress, egress] = Direction::ALL;
    for (direction, from, to, cause) in [
        (ingress, "10.244.2.9", "10.244.1.2", "ingress isolated by NetworkPolicy a/p, and no rule allows it"),
        (egress, "10.244.1.2", "10.244.2.9", "egress isolated by NetworkPolicy a/p, and no rule allows it"),
    ] {
        let to_port = |destination| Connection {
            from: address(from),
            to: address(to),
            transport: Carried::Ports { protocol: 6, destination },
        };
        let cut = (80..85).map(|port| (to_port(port), direction)).collect();
        let cuts = order(direction).describe(&Reviewed { cut, still_cut: 2, restored: 1 });
        let examples: Vec<String> =
            (80..83).map(|port| format!("{from} to {to}, protocol 6, port {port}: {cause}")).collect();
        assert_eq!(cuts, Cuts { cut: 5, held: 7, restored: 1, examples, took: Duration::ZERO });
    }
}

#[test]
fn addresses_that_come_together_are_cleared_in_one_walk() {
    let (clears, orders) = channel();
    let of = |last: u8| Addresses::Of([IpAddr::from([10, 244, 1, last])].into());
    let vacant = Addresses::Vacant { within: vec!["10.244.1.0/24".parse().unwrap()], taken: BTreeSet::new() };
    for addresses in [of(2), vacant.clone(), of(3)] {
        clears.send(Clear { addresses, urgency: Urgency::Soon }).unwrap();
    }
    drop(clears);
    let both = Addresses::Of([2, 3].map(|last| IpAddr::from([10, 244, 1, last])).into());
    assert_eq!(gather(&orders), Some(vec![vacant, both]));
    assert_eq!(gather(&orders), None, "nobody asks any more");
}
