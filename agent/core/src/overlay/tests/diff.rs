use super::*;

fn kinds(ops: &[NetOp]) -> Vec<&'static str> {
    let mut kinds: Vec<_> = ops
        .iter()
        .map(|op| match op {
            NetOp::DeleteLink { .. } => "delete link",
            NetOp::CreateDevice(_) => "device",
            NetOp::SetMtu { .. } => "mtu",
            NetOp::SetMac { .. } => "mac",
            NetOp::SetUp { .. } => "up",
            NetOp::SetSysctl { .. } => "sysctl",
            NetOp::AddAddress { .. } => "address",
            NetOp::SetNeighbour { .. } => "neighbour",
            NetOp::SetFdb { .. } => "fdb",
            NetOp::AddRoute { .. } => "route",
            NetOp::ReplaceRoute { .. } => "replace route",
            NetOp::DeleteRoute { .. } => "delete route",
            NetOp::DeleteFdb { .. } => "delete fdb",
            NetOp::DeleteNeighbour { .. } => "delete neighbour",
            NetOp::DeleteAddress { .. } => "delete address",
        })
        .collect();
    kinds.dedup();
    kinds
}

#[test]
fn objects_are_created_in_order_of_dependency_and_deleted_in_reverse() {
    let want = Cluster::of(2).want();
    assert_eq!(kinds(&diff(&want, &fresh())), ["device", "sysctl", "address", "neighbour", "fdb", "route"]);
    let mut have = converged(&want);
    assert_eq!(kinds(&diff(&Cluster::of(0).want(), &have))[..2], ["delete route", "delete fdb"], "a peer is removed");
    let ops = teardown(&have);
    assert_eq!(kinds(&ops), ["delete route", "delete link"]);
    execute(&mut have, &ops);
    let mut bare = fresh();
    bare.links.retain(|_, link| !link.name.is_pod());
    bare.sysctls.clone_from(&have.sysctls);
    assert_eq!(have, bare, "only sysctls remain, because other programs may depend on them");
}

#[test]
fn a_peer_takes_three_operations_per_family() {
    let have = converged(&Cluster::of(50).want());
    assert_eq!(diff(&Cluster::of(51).want(), &have).len(), 6);
    assert_eq!(diff(&Cluster::of(49).want(), &have).len(), 6);
}

#[test]
fn when_a_peers_mac_changes_the_new_fdb_entry_is_added_before_the_old_one_is_deleted() {
    let mut cluster = Cluster::of(1);
    let have = converged(&cluster.want());
    cluster.families.remove(&Family::V6);
    let have = {
        let mut have = have;
        let ops = diff(&cluster.want(), &have);
        execute(&mut have, &ops);
        have
    };
    cluster.peers[0].vtep_mac = mac(Family::V4, 77);
    let device = name("flannel.1");
    let (old, new, remote) = (mac(Family::V4, 1), mac(Family::V4, 77), addr("172.30.0.1"));
    assert_eq!(
        diff(&cluster.want(), &have),
        [
            NetOp::SetNeighbour { link: device.clone(), address: addr("10.244.1.0"), mac: new },
            NetOp::SetFdb { link: device.clone(), mac: new, remote },
            NetOp::DeleteFdb { link: device, mac: old, remote },
        ]
    );
}

#[test]
fn recreating_a_device_states_the_reason_and_restores_its_entries() {
    let mut cluster = Cluster::of(2);
    let have = converged(&cluster.want());
    cluster.port = 4789;
    let ops = diff(&cluster.want(), &have);
    let NetOp::DeleteLink { reason, .. } = &ops[0] else { panic!("{ops:#?}") };
    assert_eq!(reason, "port 8472 should be 4789");
    assert_eq!(
        kinds(&ops),
        ["delete link", "device", "sysctl", "address", "neighbour", "fdb", "route"],
        "the kernel deletes accept_ra with the device"
    );
}

#[test]
fn mtu_and_mac_change_in_place_and_a_new_mac_restores_all_neighbours() {
    let mut cluster = Cluster::of(2);
    let have = converged(&cluster.want());
    cluster.mtu = 1400;
    assert_eq!(kinds(&diff(&cluster.want(), &have)), ["mtu"]);
    cluster.families.get_mut(&Family::V4).unwrap().mac = mac(Family::V4, 55);
    assert_eq!(kinds(&diff(&cluster.want(), &have)), ["mtu", "mac", "mtu", "neighbour"]);
}

#[test]
fn a_pod_route_is_restored_while_its_link_exists_and_is_never_deleted() {
    let mut cluster = Cluster::of(0);
    cluster.endpoints = vec![endpoint(1), endpoint(7)];
    let have = converged(&cluster.want());
    let pods = have.routes.iter().filter(|(_, route)| matches!(route.target, RouteTarget::Link(_))).count();
    assert_eq!(pods, 2, "pod 1 in both families; pod 7 has no link");
    cluster.endpoints.clear();
    assert_eq!(diff(&cluster.want(), &have), [], "the CNI plugin deletes it with the link");
}

#[test]
fn only_our_own_routes_are_deleted() {
    let want = Cluster::of(0).want();
    let mut have = converged(&want);
    let add = |have: &mut Kernel, destination, metric, owner| {
        let key = RouteKey { destination: net(destination), metric };
        have.routes.insert(key, Route { target: RouteTarget::Link(IfIndex(2)), owner });
    };
    add(&mut have, "10.244.7.0/24", 0, RouteOwner::Other(3));
    add(&mut have, "10.244.99.0/24", 50, RouteOwner::Other(3));
    assert_eq!(diff(&want, &have), []);
    add(&mut have, "10.244.8.0/24", 0, RouteOwner::Towpath);
    add(&mut have, "10.244.99.0/24", 60, RouteOwner::Towpath);
    let ops = diff(&want, &have);
    assert!(ops.len() == 2 && kinds(&ops) == ["delete route"], "{ops:#?}");
}

#[test]
fn an_ipv6_route_that_moves_to_another_link_is_deleted_first() {
    let mut cluster = Cluster::of(1);
    let mut have = converged(&cluster.want());
    cluster.vni = 7;
    let ops = diff(&cluster.want(), &have);
    execute(&mut have, &ops);
    let moved: Vec<_> = ops.iter().filter(|op| op.to_string().contains("fd00:244:0:1::/64")).collect();
    assert!(matches!(moved.as_slice(), [NetOp::DeleteRoute { .. }, NetOp::AddRoute { .. }]), "{moved:#?}");
}

#[test]
fn an_operation_prints_what_it_does() {
    let ops = diff(&Cluster::of(1).want(), &fresh());
    let texts: Vec<_> = ops.iter().map(ToString::to_string).collect();
    for text in [
        "create device flannel.1 (VNI 1, port 8472, local 172.30.0.99, uplink ifindex 2, MTU 1430)",
        "add address 10.244.99.0/32 to flannel.1",
        "set neighbour entry 10.244.1.0 on flannel.1 to 02:00:00:00:04:01",
        "set FDB entry 02:00:00:00:04:01 on flannel.1 to 172.30.0.1",
        "add route 10.244.1.0/24 via 10.244.1.0 dev flannel.1",
        "add route 10.244.99.0/24 blackhole",
        "set sysctl ipv6/conf/flannel-v6.1/accept_ra to 0",
    ] {
        assert!(texts.iter().any(|have| have == text), "{text} in {texts:#?}");
    }
}

#[test]
fn the_most_specific_route_that_covers_a_gateway_decides_which_link_reaches_it() {
    let mut kernel = converged(&Cluster::of(1).want());
    let device = kernel.link(&name("flannel-v6.1")).unwrap().0;
    let (destination, gateway) = (net("fd00:244:0:2::/64"), addr("fd00:244:0:2::"));
    let add = NetOp::AddRoute { destination, hop: NextHop::Onlink { gateway, link: name("flannel-v6.1") } };
    for (covering, link, expected, why) in [
        ("fd00:244::/48", IfIndex(2), Err(NetOpError::GatewayOnOtherLink), "covers the gateway through another link"),
        ("fd00:244::/60", device, Ok(()), "more specific, through the same link"),
    ] {
        let key = RouteKey { destination: net(covering), metric: 1024 };
        kernel.routes.insert(key, Route { target: RouteTarget::Link(link), owner: RouteOwner::Other(3) });
        assert_eq!(kernel.clone().execute(&add), expected, "{why}");
    }
}
