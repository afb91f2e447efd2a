use super::*;

#[test]
fn a_peer_adds_one_neighbour_one_fdb_entry_and_one_route() {
    let want = Cluster::of(1).want();
    assert_eq!(
        want.neighbours,
        vec![(addr("10.244.1.0"), mac(Family::V4, 1)), (addr("fd00:244:0:1::"), mac(Family::V6, 1))].into()
    );
    assert_eq!(
        want.fdb,
        vec![
            ((Family::V4, mac(Family::V4, 1)), addr("172.30.0.1")),
            ((Family::V6, mac(Family::V6, 1)), addr("fd00:30::1"))
        ]
        .into()
    );
    assert_eq!(
        want.routes,
        vec![
            (net("10.244.1.0/24"), RoutePath::Tunnel),
            (net("10.244.99.0/24"), RoutePath::Blackhole),
            (net("fd00:244:0:1::/64"), RoutePath::Tunnel),
            (net("fd00:244:0:99::/64"), RoutePath::Blackhole),
        ]
        .into()
    );
}

#[test]
fn a_device_has_flannels_name_and_the_network_address_of_the_pod_cidr() {
    let want = Cluster { vni: 7, port: 4789, ..Cluster::of(0) }.want();
    let device = &want.devices[&Family::V6];
    assert_eq!(device.name, name("flannel-v6.7"));
    assert_eq!(device.address, net("fd00:244:0:99::/128"));
    assert_eq!((device.mac, device.mtu), (mac(Family::V6, 99), 1430));
    let tunnel = device.tunnel;
    assert_eq!((tunnel.vni.value(), tunnel.port, tunnel.uplink), (7, 4789, IfIndex(2)));
    assert_eq!((tunnel.local, tunnel.learning), (addr("fd00:30::99"), Learning::Off));
    assert_eq!(want.devices[&Family::V4].name, name("flannel.7"));
}

#[test]
fn a_family_without_a_local_vtep_is_ignored_with_its_peers() {
    let mut cluster = Cluster::of(2);
    cluster.families.remove(&Family::V6);
    let want = cluster.want();
    assert_eq!(want.devices.keys().collect::<Vec<_>>(), [&Family::V4]);
    assert!(want.routes.keys().all(|net| net.addr().is_ipv4()));
    assert!(want.neighbours.len() == 2 && want.fdb.len() == 2, "{want:#?}");
    assert_eq!(want.sysctls, [(Sysctl::Forwarding(Family::V4), 1)].into(), "IPv6 forwarding is left alone");
}

#[test]
fn with_direct_routing_a_peer_on_the_uplinks_network_is_reached_without_the_tunnel() {
    let mut cluster = Cluster::of(1);
    cluster.peers.extend([NodePeer { public_ip: addr("192.0.2.9"), ..peer(Family::V4, 2) }]);
    cluster.direct = DirectRouting::Enabled;
    let want = cluster.want();
    let direct = |gateway| RoutePath::Direct { gateway: addr(gateway), uplink: IfIndex(2) };
    assert_eq!(want.routes[&net("10.244.1.0/24")], direct("172.30.0.1"));
    assert_eq!(want.routes[&net("fd00:244:0:1::/64")], direct("fd00:30::1"));
    assert_eq!(want.routes[&net("10.244.2.0/24")], RoutePath::Tunnel, "behind a router");
    assert_eq!(want.neighbours.len(), 1, "only for the peer behind a router");
    assert_eq!(want.fdb.len(), 1);
}

#[test]
fn host_bits_of_a_pod_cidr_are_ignored() {
    let mut cluster = Cluster::of(0);
    cluster.peers = vec![NodePeer { pod_cidr: net("10.244.1.7/24"), ..peer(Family::V4, 1) }];
    let want = cluster.want();
    assert_eq!(want.routes[&net("10.244.1.0/24")], RoutePath::Tunnel);
    assert!(want.neighbours.contains_key(&addr("10.244.1.0")));
}

#[test]
fn a_default_route_from_router_advertisements_survives_enabling_forwarding() {
    let router = RouteTarget::Via { gateway: addr("fe80::1"), link: IfIndex(2) };
    let mut have = fresh();
    have.sysctls.insert(Sysctl::AcceptRouterAdvertisements(name("uplink")), 1);
    let key = RouteKey { destination: net("::/0"), metric: 1024 };
    for (owner, accept_ra, why) in [
        (RouteOwner::ROUTER_ADVERTISEMENT, Some(&2), "with accept_ra=1 forwarding would delete the route"),
        (RouteOwner::Other(4), None, "a static route: accept_ra is the administrator's choice"),
    ] {
        have.routes.insert(key, Route { target: router, owner });
        let want = Cluster::of(0).want_on(&have);
        assert_eq!(want.sysctls.get(&Sysctl::AcceptRouterAdvertisements(name("uplink"))), accept_ra, "{why}");
        let ops: Vec<_> = diff(&want, &have).iter().map(ToString::to_string).collect();
        let position = |text: &str| ops.iter().position(|op| op == text);
        let accept = position("set sysctl ipv6/conf/uplink/accept_ra to 2");
        let forward = position("set sysctl ipv6/conf/all/forwarding to 1");
        assert_eq!(accept.is_some(), accept_ra.is_some());
        assert!(forward.is_some() && accept < forward, "accept_ra is set before forwarding: {ops:#?}");
    }
}
