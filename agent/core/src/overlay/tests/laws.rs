//! Laws of the comparison, on clusters and disturbances at random.

use proptest::prelude::*;

use super::*;
use crate::model::host_net;

/// Something that somebody does by hand. Numbers choose what of those that are there.
#[derive(Debug, Clone)]
enum Hand {
    DropNeighbour(usize),
    DropFdb(usize),
    DropRoute(usize),
    BendNeighbour(usize),
    BendFdb(usize),
    StrangeNeighbour(u8),
    StrangeFdb(u8),
    StrangeRoute(u8),
    ForeignRoute(u8),
    StrangeAddress(u8),
    DropAddress,
    SetDown(usize),
    SetMac(u8),
    SetMtu(u8),
    DeleteDevice(usize),
    OtherKind,
    Sysctl(usize),
}

fn hand() -> impl Strategy<Value = Hand> {
    prop_oneof![
        any::<usize>().prop_map(Hand::DropNeighbour),
        any::<usize>().prop_map(Hand::DropFdb),
        any::<usize>().prop_map(Hand::DropRoute),
        any::<usize>().prop_map(Hand::BendNeighbour),
        any::<usize>().prop_map(Hand::BendFdb),
        any::<u8>().prop_map(Hand::StrangeNeighbour),
        any::<u8>().prop_map(Hand::StrangeFdb),
        (0..9u8).prop_map(Hand::StrangeRoute),
        any::<u8>().prop_map(Hand::ForeignRoute),
        any::<u8>().prop_map(Hand::StrangeAddress),
        Just(Hand::DropAddress),
        any::<usize>().prop_map(Hand::SetDown),
        any::<u8>().prop_map(Hand::SetMac),
        any::<u8>().prop_map(Hand::SetMtu),
        any::<usize>().prop_map(Hand::DeleteDevice),
        Just(Hand::OtherKind),
        any::<usize>().prop_map(Hand::Sysctl),
    ]
}

fn pick<K: Clone, V>(map: &BTreeMap<K, V>, n: usize) -> Option<K> {
    map.keys().nth(n % map.len().max(1)).cloned()
}

fn devices(kernel: &Kernel) -> BTreeMap<IfIndex, IfName> {
    let ours = kernel.links.iter().filter(|(_, link)| link.overlay_family().is_some());
    ours.map(|(index, link)| (*index, link.name.clone())).collect()
}

fn v4_device(kernel: &Kernel) -> Option<IfIndex> {
    devices(kernel).into_iter().find(|(_, name)| name.as_str().starts_with("flannel.")).map(|(index, _)| index)
}

fn change_v4(kernel: &mut Kernel, change: impl FnOnce(&mut Link)) {
    if let Some(link) = v4_device(kernel).and_then(|index| kernel.links.get_mut(&index)) {
        change(link);
    }
}

fn drop_one<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, n: usize) {
    if let Some(key) = pick(map, n) {
        map.remove(&key);
    }
}

fn bend<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, n: usize, value: V) {
    if let Some(key) = pick(map, n) {
        map.insert(key, value);
    }
}

fn disturb(kernel: &mut Kernel, hand: &Hand) {
    match *hand {
        Hand::DropNeighbour(n) => drop_one(&mut kernel.neighbours, n),
        Hand::DropFdb(n) => drop_one(&mut kernel.fdb, n),
        Hand::DropRoute(n) => drop_one(&mut kernel.routes, n),
        Hand::BendNeighbour(n) => bend(&mut kernel.neighbours, n, mac(Family::V4, 200)),
        Hand::BendFdb(n) => bend(&mut kernel.fdb, n, addr("192.0.2.200")),
        Hand::StrangeRoute(n) => add_route(kernel, pod_cidr(Family::V4, n), RouteOwner::Towpath),
        Hand::ForeignRoute(n) => add_route(kernel, net(&format!("192.168.{n}.0/24")), RouteOwner::Other(3)),
        Hand::SetMac(n) => change_v4(kernel, |link| link.mac = Some(mac(Family::V4, n))),
        Hand::SetMtu(n) => change_v4(kernel, |link| link.mtu = 1300 + u32::from(n)),
        Hand::OtherKind => change_v4(kernel, |link| link.kind = LinkKind::Other("bridge".to_owned())),
        Hand::Sysctl(n) => bend(&mut kernel.sysctls, n, 5),
        Hand::StrangeNeighbour(n) => on_v4(kernel, |kernel, index| {
            kernel.neighbours.insert((index, stranger(n)), mac(Family::V4, n));
        }),
        Hand::StrangeFdb(n) => on_v4(kernel, |kernel, index| {
            kernel.fdb.insert((index, mac(Family::V4, n)), stranger(1));
        }),
        Hand::StrangeAddress(n) => on_v4(kernel, |kernel, index| {
            kernel.addresses.entry(index).or_default().push(host_net(stranger(n)));
        }),
        Hand::DropAddress => on_v4(kernel, |kernel, index| {
            kernel.addresses.remove(&index);
        }),
        Hand::SetDown(n) => {
            if let Some(index) = pick(&devices(kernel), n) {
                set_down(kernel, index);
            }
        }
        Hand::DeleteDevice(n) => {
            if let Some((_, link)) = devices(kernel).into_iter().nth(n % 2) {
                execute(kernel, &[NetOp::DeleteLink { link, why: String::new() }]);
            }
        }
    }
}

fn stranger(n: u8) -> IpAddr {
    addr(&format!("192.0.2.{n}"))
}

fn on_v4(kernel: &mut Kernel, change: impl FnOnce(&mut Kernel, IfIndex)) {
    if let Some(index) = v4_device(kernel) {
        change(kernel, index);
    }
}

fn add_route(kernel: &mut Kernel, destination: IpNet, owner: RouteOwner) {
    let route = Route { target: RouteTarget::Link(IfIndex(2)), owner };
    kernel.routes.insert(RouteKey { destination, metric: 0 }, route);
}

/// The kernel forgets neighbours and routes of a link that is set down, but not its forwarding entries.
fn set_down(kernel: &mut Kernel, index: IfIndex) {
    if let Some(link) = kernel.links.get_mut(&index) {
        link.state = LinkState::Down;
    }
    kernel.neighbours.retain(|(at, _), _| *at != index);
    kernel.routes.retain(|_, route| route.target.link() != Some(index));
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let peers = prop::collection::btree_map(1..8u8, (any::<bool>(), any::<bool>(), any::<bool>()), 0..6);
    let settings =
        (1..3u32, any::<bool>(), 1400..1431u32, any::<bool>(), 0..3usize, prop::collection::vec(1..4u8, 0..3));
    (peers, settings).prop_map(|(peers, (vni, port, mtu, direct, families, pods))| {
        let mut cluster = Cluster { vni, port: if port { 8472 } else { 4789 }, mtu, ..Cluster::of(0) };
        cluster.direct = if direct { DirectRouting::Enabled } else { DirectRouting::Disabled };
        if let Some(family) = Family::ALL.get(families) {
            cluster.families.remove(family);
        }
        cluster.endpoints = pods.into_iter().map(endpoint).collect();
        for (n, (other_mac, other_ip, far)) in peers {
            for family in Family::ALL {
                let mut peer = peer(family, n);
                peer.vtep_mac = if other_mac { mac(family, n + 100) } else { peer.vtep_mac };
                peer.public_ip = if other_ip { public_ip(family, n + 100) } else { peer.public_ip };
                if far {
                    peer.public_ip = if family == Family::V4 { addr("198.51.100.1") } else { addr("2001:db8::1") };
                }
                cluster.peers.push(peer);
            }
        }
        cluster
    })
}

/// Compares by a way of its own what is there with what is wanted; foreign things are left out.
fn assert_holds(want: &Overlay, have: &Kernel) -> Result<(), TestCaseError> {
    let index: BTreeMap<Family, IfIndex> =
        want.devices.iter().map(|(f, device)| (*f, have.link(&device.name).expect("the device is there").0)).collect();
    // A link of another kind that has such a name by chance is not ours, once no device is to have that name.
    let tunnels = have.links.values().filter(|link| matches!(link.kind, LinkKind::Vxlan(_))).count();
    prop_assert_eq!(tunnels, want.devices.len(), "no device too many");
    let on_device = |at: &IfIndex| index.values().any(|index| index == at);
    for (family, device) in &want.devices {
        let link = &have.links[&index[family]];
        let expected = (Some(device.mac), device.mtu, LinkState::Up, LinkKind::Vxlan(device.tunnel));
        prop_assert_eq!((link.mac, link.mtu, link.state, link.kind.clone()), expected);
        prop_assert_eq!(&have.addresses[&index[family]], &vec![device.address]);
    }
    let neighbours: BTreeMap<_, _> = want.neighbours.iter().map(|(a, m)| ((index[&Family::of(*a)], *a), *m)).collect();
    let there: BTreeMap<_, _> = have.neighbours.clone().into_iter().filter(|((at, _), _)| on_device(at)).collect();
    prop_assert_eq!(there, neighbours);
    let fdb: BTreeMap<_, _> = want.fdb.iter().map(|((f, m), r)| ((index[f], *m), *r)).collect();
    let there: BTreeMap<_, _> = have.fdb.clone().into_iter().filter(|((at, _), _)| on_device(at)).collect();
    prop_assert_eq!(there, fdb);
    let is_ours = |route: &Route| route.owner == RouteOwner::Towpath;
    let ours =
        have.routes.iter().filter(|(_, route)| is_ours(route)).map(|(key, route)| (key.destination, route.target));
    let path = |net: &IpNet, path: &RoutePath| match path {
        RoutePath::Tunnel => RouteTarget::Via { gateway: net.network(), link: index[&Family::of_net(*net)] },
        RoutePath::Direct { gateway, uplink } => RouteTarget::Via { gateway: *gateway, link: *uplink },
        RoutePath::Blackhole => RouteTarget::Blackhole,
    };
    let mut routes: BTreeMap<_, _> = want.routes.iter().map(|(net, p)| (*net, path(net, p))).collect();
    let pods = want.pod_routes.iter().filter_map(|(net, name)| Some((*net, RouteTarget::Link(have.link(name)?.0))));
    routes.extend(pods);
    let strays = |net: &IpNet| have.routes.iter().any(|(k, r)| k.destination == *net && is_pod_link(have, r));
    let ours: BTreeMap<_, _> = ours.filter(|(net, _)| routes.contains_key(net) || !strays(net)).collect();
    prop_assert_eq!(ours, routes);
    for (sysctl, value) in &want.sysctls {
        prop_assert_eq!(have.sysctls.get(sysctl), Some(value));
    }
    Ok(())
}

fn is_pod_link(have: &Kernel, route: &Route) -> bool {
    route.target.link().and_then(|link| have.links.get(&link)).is_some_and(|link| link.name.is_pod())
}

fn foreign(kernel: &Kernel) -> (BTreeMap<RouteKey, Route>, Vec<IfName>) {
    let routes = kernel.routes.iter().filter(|(_, route)| route.owner != RouteOwner::Towpath);
    let links = kernel.links.values().filter(|link| link.overlay_family().is_none());
    (routes.map(|(key, route)| (*key, *route)).collect(), links.map(|link| link.name.clone()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn from_any_state_the_changes_are_legal_in_their_order_and_lead_to_what_is_wanted(
        before in cluster(), hands in prop::collection::vec(hand(), 0..12), after in cluster(),
    ) {
        let mut kernel = converged(&before.want());
        for hand in &hands {
            disturb(&mut kernel, hand);
        }
        let untouched = foreign(&kernel);
        let want = after.want();
        let ops = diff(&want, &kernel);
        execute(&mut kernel, &ops);
        assert_holds(&want, &kernel)?;
        prop_assert_eq!(diff(&want, &kernel), Vec::new(), "a second time there is nothing to do");
        prop_assert_eq!(foreign(&kernel), untouched, "what is not ours is as it was");
    }

    #[test]
    fn a_change_of_peers_alone_takes_nothing_away_before_its_successor_is_there(
        before in cluster(), after in cluster(),
    ) {
        // Same devices; only peers and how they are reached differ. IPv6 routes that change links are the exception.
        let after = Cluster { peers: after.peers, ..before.clone() };
        let kernel = converged(&before.want());
        let ops = diff(&after.want(), &kernel);
        let is_removal = |op: &NetOp| matches!(
            op,
            NetOp::DeleteRoute { .. } | NetOp::DeleteFdb { .. } | NetOp::DeleteNeighbour { .. } | NetOp::DeleteLink { .. }
        );
        let is_v6_route = |op: &NetOp| match op {
            NetOp::DeleteRoute { route } => route.destination.addr().is_ipv6(),
            NetOp::AddRoute { destination, .. } => destination.addr().is_ipv6(),
            _ => false,
        };
        let order: Vec<bool> = ops.iter().filter(|op| !is_v6_route(op)).map(is_removal).collect();
        prop_assert!(order.is_sorted(), "{:#?}", ops);
    }
}
