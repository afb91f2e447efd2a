//! Properties of [`diff()`] over random clusters and random drift.

use proptest::prelude::*;

use super::*;
use crate::model::host_net;

/// One drift of the kernel state. A `usize` selects one of the existing objects, a `u8` parametrizes a new one.
#[derive(Debug, Clone)]
enum Drift {
    DeleteNeighbour(usize),
    DeleteFdb(usize),
    DeleteRoute(usize),
    ChangeNeighbour(usize),
    ChangeFdb(usize),
    AddNeighbour(u8),
    AddFdb(u8),
    /// With our protocol number.
    AddOwnRoute(u8),
    AddOtherRoute(u8),
    AddAddress(u8),
    DeleteAddresses,
    SetDown(usize),
    SetMac(u8),
    SetMtu(u8),
    DeleteDevice(usize),
    ChangeKind,
    ChangeSysctl(usize),
}

fn drift() -> impl Strategy<Value = Drift> {
    prop_oneof![
        any::<usize>().prop_map(Drift::DeleteNeighbour),
        any::<usize>().prop_map(Drift::DeleteFdb),
        any::<usize>().prop_map(Drift::DeleteRoute),
        any::<usize>().prop_map(Drift::ChangeNeighbour),
        any::<usize>().prop_map(Drift::ChangeFdb),
        any::<u8>().prop_map(Drift::AddNeighbour),
        any::<u8>().prop_map(Drift::AddFdb),
        (0..9u8).prop_map(Drift::AddOwnRoute),
        any::<u8>().prop_map(Drift::AddOtherRoute),
        any::<u8>().prop_map(Drift::AddAddress),
        Just(Drift::DeleteAddresses),
        any::<usize>().prop_map(Drift::SetDown),
        any::<u8>().prop_map(Drift::SetMac),
        any::<u8>().prop_map(Drift::SetMtu),
        any::<usize>().prop_map(Drift::DeleteDevice),
        Just(Drift::ChangeKind),
        any::<usize>().prop_map(Drift::ChangeSysctl),
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

fn remove_one<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, n: usize) {
    if let Some(key) = pick(map, n) {
        map.remove(&key);
    }
}

fn replace_one<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, n: usize, value: V) {
    if let Some(key) = pick(map, n) {
        map.insert(key, value);
    }
}

fn apply_drift(kernel: &mut Kernel, drift: &Drift) {
    match *drift {
        Drift::DeleteNeighbour(n) => remove_one(&mut kernel.neighbours, n),
        Drift::DeleteFdb(n) => remove_one(&mut kernel.fdb, n),
        Drift::DeleteRoute(n) => remove_one(&mut kernel.routes, n),
        Drift::ChangeNeighbour(n) => replace_one(&mut kernel.neighbours, n, mac(Family::V4, 200)),
        Drift::ChangeFdb(n) => replace_one(&mut kernel.fdb, n, addr("192.0.2.200")),
        Drift::AddOwnRoute(n) => add_route(kernel, pod_cidr(Family::V4, n), RouteOwner::Towpath),
        Drift::AddOtherRoute(n) => add_route(kernel, net(&format!("192.168.{n}.0/24")), RouteOwner::Other(3)),
        Drift::SetMac(n) => change_v4(kernel, |link| link.mac = Some(mac(Family::V4, n))),
        Drift::SetMtu(n) => change_v4(kernel, |link| link.mtu = 1300 + u32::from(n)),
        Drift::ChangeKind => change_v4(kernel, |link| link.kind = LinkKind::Other("bridge".to_owned())),
        Drift::ChangeSysctl(n) => replace_one(&mut kernel.sysctls, n, 5),
        Drift::AddNeighbour(n) => on_v4(kernel, |kernel, index| {
            kernel.neighbours.insert((index, unknown_address(n)), mac(Family::V4, n));
        }),
        Drift::AddFdb(n) => on_v4(kernel, |kernel, index| {
            kernel.fdb.insert((index, mac(Family::V4, n)), unknown_address(1));
        }),
        Drift::AddAddress(n) => on_v4(kernel, |kernel, index| {
            kernel.addresses.entry(index).or_default().push(host_net(unknown_address(n)));
        }),
        Drift::DeleteAddresses => on_v4(kernel, |kernel, index| {
            kernel.addresses.remove(&index);
        }),
        Drift::SetDown(n) => {
            if let Some(index) = pick(&devices(kernel), n) {
                set_down(kernel, index);
            }
        }
        Drift::DeleteDevice(n) => {
            if let Some((_, link)) = devices(kernel).into_iter().nth(n % 2) {
                execute(kernel, &[NetOp::DeleteLink { link, reason: String::new() }]);
            }
        }
    }
}

fn unknown_address(n: u8) -> IpAddr {
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

/// The kernel flushes the neighbours and routes of a link that is set down, but not its FDB entries.
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

/// Checks that the kernel state matches the overlay, independently of [`diff()`]. Ignores unmanaged objects.
fn assert_matches(want: &Overlay, have: &Kernel) -> Result<(), TestCaseError> {
    let index: BTreeMap<Family, IfIndex> =
        want.devices.iter().map(|(f, device)| (*f, have.link(&device.name).expect("the device exists").0)).collect();
    // A link of another kind that has an overlay's name is not ours, unless a wanted device needs the name.
    let tunnels = have.links.values().filter(|link| matches!(link.kind, LinkKind::Vxlan(_))).count();
    prop_assert_eq!(tunnels, want.devices.len(), "no unwanted device remains");
    let on_device = |at: &IfIndex| index.values().any(|index| index == at);
    for (family, device) in &want.devices {
        let link = &have.links[&index[family]];
        let expected = (Some(device.mac), device.mtu, LinkState::Up, LinkKind::Vxlan(device.tunnel));
        prop_assert_eq!((link.mac, link.mtu, link.state, link.kind.clone()), expected);
        prop_assert_eq!(&have.addresses[&index[family]], &vec![device.address]);
    }
    let neighbours: BTreeMap<_, _> = want.neighbours.iter().map(|(a, m)| ((index[&Family::of(*a)], *a), *m)).collect();
    let installed: BTreeMap<_, _> = have.neighbours.clone().into_iter().filter(|((on, _), _)| on_device(on)).collect();
    prop_assert_eq!(installed, neighbours);
    let fdb: BTreeMap<_, _> = want.fdb.iter().map(|((f, m), r)| ((index[f], *m), *r)).collect();
    let installed: BTreeMap<_, _> = have.fdb.clone().into_iter().filter(|((on, _), _)| on_device(on)).collect();
    prop_assert_eq!(installed, fdb);
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
    let leads_to_pod = |net: &IpNet| have.routes.iter().any(|(k, r)| k.destination == *net && is_pod_link(have, r));
    let ours: BTreeMap<_, _> = ours.filter(|(net, _)| routes.contains_key(net) || !leads_to_pod(net)).collect();
    prop_assert_eq!(ours, routes);
    for (sysctl, value) in &want.sysctls {
        prop_assert_eq!(have.sysctls.get(sysctl), Some(value));
    }
    Ok(())
}

fn is_pod_link(have: &Kernel, route: &Route) -> bool {
    route.target.link().and_then(|link| have.links.get(&link)).is_some_and(|link| link.name.is_pod())
}

fn unmanaged(kernel: &Kernel) -> (BTreeMap<RouteKey, Route>, Vec<IfName>) {
    let routes = kernel.routes.iter().filter(|(_, route)| route.owner != RouteOwner::Towpath);
    let links = kernel.links.values().filter(|link| link.overlay_family().is_none());
    (routes.map(|(key, route)| (*key, *route)).collect(), links.map(|link| link.name.clone()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn from_any_state_the_operations_are_accepted_in_order_and_lead_to_the_desired_state(
        before in cluster(), drifts in prop::collection::vec(drift(), 0..12), after in cluster(),
    ) {
        let mut kernel = converged(&before.want());
        for drift in &drifts {
            apply_drift(&mut kernel, drift);
        }
        let unmanaged_before = unmanaged(&kernel);
        let want = after.want();
        let ops = diff(&want, &kernel);
        execute(&mut kernel, &ops);
        assert_matches(&want, &kernel)?;
        prop_assert_eq!(diff(&want, &kernel), Vec::new(), "a second diff is empty");
        prop_assert_eq!(unmanaged(&kernel), unmanaged_before, "unmanaged objects are unchanged");
    }

    #[test]
    fn when_only_peers_change_nothing_is_deleted_before_its_replacement_exists(
        before in cluster(), after in cluster(),
    ) {
        // The devices stay the same. IPv6 routes that move to another link are the exception.
        let after = Cluster { peers: after.peers, ..before.clone() };
        let kernel = converged(&before.want());
        let ops = diff(&after.want(), &kernel);
        let is_deletion = |op: &NetOp| matches!(
            op,
            NetOp::DeleteRoute { .. } | NetOp::DeleteFdb { .. } | NetOp::DeleteNeighbour { .. } | NetOp::DeleteLink { .. }
        );
        let is_v6_route = |op: &NetOp| match op {
            NetOp::DeleteRoute { route } => route.destination.addr().is_ipv6(),
            NetOp::AddRoute { destination, .. } => destination.addr().is_ipv6(),
            _ => false,
        };
        let order: Vec<bool> = ops.iter().filter(|op| !is_v6_route(op)).map(is_deletion).collect();
        prop_assert!(order.is_sorted(), "{:#?}", ops);
    }
}
