//! The overlay in a real kernel: nodes are network namespaces on one bridge, and pods are namespaces linked to them.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::net::IpAddr;

use support::{
    Namespace,
    nodes::{DEFAULTS, Settings, Underlay},
};
use towpath_core::{
    model::{Family, Mac},
    names::IfName,
    overlay::{DirectRouting, LinkKind, NetOp, VxlanDevice, diff, teardown},
};
use towpath_dataplane::net::{KernelNet, Net};
use towpath_podlink::sysctl::Sysctls;

fn assert_pings(from: &Namespace, to: IpAddr, why: &str) {
    let result = from.try_sh(&format!("ping -c 1 -W 2 {to}"));
    assert!(result.is_ok(), "{why}: {result:?}");
}

#[test]
fn pods_on_three_nodes_reach_each_other_in_both_families_with_full_size_packets() {
    let underlay = Underlay::new(3);
    underlay.converge(DEFAULTS);
    let pods: Vec<_> = underlay.nodes.iter().map(|node| node.add_pod(1430)).collect();
    for (pod, node) in pods.iter().zip(&underlay.nodes) {
        for other in underlay.nodes.iter().filter(|other| other.number != node.number) {
            for family in Family::ALL {
                assert_pings(pod, other.pod_address(family), &format!("n{} to n{}", node.number, other.number));
            }
            let to = other.pod_address(Family::V4);
            pod.sh(&format!("ping -c 1 -W 2 -M do -s {} {to}", 1430 - 28));
            // From a host the source is the device's address, so that the reply comes back through the tunnel.
            assert_pings(&node.namespace, to, "host to pod");
        }
    }
    assert!(pods[0].try_sh("ping -c 1 -W 1 10.244.1.77").is_err(), "an unused address of our podCIDR does not answer");
}

#[test]
fn a_device_is_listed_like_one_of_flannel() {
    let underlay = Underlay::new(1);
    underlay.converge(DEFAULTS);
    let text = underlay.nodes[0].namespace.sh("ip -d link show flannel.1");
    for part in [
        "mtu 1430",
        "vxlan id 1 local 172.30.0.1 dev uplink srcport 0 0 dstport 8472 nolearning",
        "udpcsum noudp6zerocsumtx noudp6zerocsumrx",
        "UP",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = underlay.nodes[0].namespace.sh("ip -d link show flannel-v6.1");
    assert!(text.contains("vxlan id 1 local fd00:30::1 dev uplink srcport 0 0 dstport 8472 nolearning"), "{text}");
    let addresses = underlay.nodes[0].namespace.sh("ip addr show");
    assert!(addresses.contains("inet 10.244.1.0/32 scope global flannel.1"), "{addresses}");
    assert!(addresses.contains("inet6 fd00:244:0:1::/128 scope global"), "{addresses}");
}

#[test]
fn every_object_that_is_deleted_or_changed_by_hand_is_repaired() {
    let underlay = Underlay::new(2);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    let pod = node.add_pod(1430);
    let peers = underlay.peers(2);
    let host = node.endpoint().interface;
    let fdb = |family| underlay.nodes[1].mac(family);
    for change in [
        "ip neigh del 10.244.2.0 dev flannel.1".to_owned(),
        "ip -6 neigh del fd00:244:0:2:: dev flannel-v6.1".to_owned(),
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 nud permanent dev flannel.1".to_owned(),
        "ip neigh change 10.244.2.0 nud stale dev flannel.1".to_owned(),
        format!("bridge fdb del {} dev flannel.1 dst 172.30.0.2", fdb(Family::V4)),
        format!("bridge fdb del {} dev flannel-v6.1 dst fd00:30::2", fdb(Family::V6)),
        format!("bridge fdb replace {} dev flannel.1 dst 172.30.0.77 permanent", fdb(Family::V4)),
        "ip route del 10.244.2.0/24".to_owned(),
        "ip -6 route del fd00:244:0:2::/64".to_owned(),
        "ip route del blackhole 10.244.1.0/24".to_owned(),
        "ip -6 route del blackhole fd00:244:0:1::/64".to_owned(),
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink".to_owned(),
        format!("ip route del 10.244.1.9 dev {host}"),
        format!("ip -6 route del fd00:244:0:1::9 dev {host}"),
        "ip addr del 10.244.1.0/32 dev flannel.1".to_owned(),
        "ip addr del fd00:244:0:1::/128 dev flannel-v6.1".to_owned(),
        "ip addr add 10.9.9.9/32 dev flannel.1".to_owned(),
        "ip link set flannel.1 down".to_owned(),
        "ip link set flannel-v6.1 down".to_owned(),
        "ip link set flannel.1 address 02:00:00:00:00:98".to_owned(),
        "ip link set flannel.1 mtu 1300".to_owned(),
        "ip link del flannel.1".to_owned(),
        "ip link del flannel-v6.1".to_owned(),
        "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
        "sysctl -qw net.ipv6.conf.flannel-v6/1.accept_ra=1".to_owned(),
    ] {
        let before = node.read_back();
        node.namespace.sh(&change);
        assert_ne!(node.read_back(), before, "{change}: detected");
        assert!(!node.converge(DEFAULTS, &peers).is_empty(), "{change}: repaired");
        let mut after = node.read_back();
        // A recreated device has another ifindex; nothing else differs.
        if change.starts_with("ip link del") {
            assert_eq!(after.links.len(), before.links.len(), "{change}");
            assert_eq!(after.routes.len(), before.routes.len(), "{change}");
        } else {
            after.addresses.values_mut().for_each(|nets| nets.sort_unstable());
            assert_eq!(after, before, "{change}");
        }
    }
    underlay.nodes[1].converge(DEFAULTS, &peers);
    let _other = underlay.nodes[1].add_pod(1430);
    for family in Family::ALL {
        assert_pings(&pod, underlay.nodes[1].pod_address(family), "after all repairs");
    }
}

#[test]
fn a_device_that_cannot_be_changed_is_replaced_and_one_that_can_is_not() {
    let underlay = Underlay::new(2);
    let node = &underlay.nodes[0];
    let peers = underlay.peers(2);
    let index = || node.read_back().link(&IfName::new("flannel.1").unwrap()).map(|(index, _)| index);
    for (made, replaced, why) in [
        ("ip link add flannel.1 type vxlan id 7 dev uplink local 172.30.0.1 dstport 8472 nolearning", true, "VNI"),
        ("ip link add flannel.1 type vxlan id 1 dev uplink local 172.30.0.1 dstport 4789 nolearning", true, "port"),
        ("ip link add flannel.1 type vxlan id 1 dev uplink local 172.30.0.9 dstport 8472 nolearning", true, "address"),
        ("ip link add flannel.1 type vxlan id 1 dev uplink local 172.30.0.1 dstport 8472 learning", true, "learning"),
        ("ip link add flannel.1 type vxlan id 1 local 172.30.0.1 dstport 8472 nolearning", true, "no uplink"),
        ("ip link add flannel.1 type bridge", true, "another kind"),
        (
            "ip link add flannel.1 mtu 1300 type vxlan id 1 dev uplink local 172.30.0.1 dstport 8472 nolearning",
            false,
            "MTU, MAC, down",
        ),
    ] {
        node.namespace.sh(&format!("ip link show flannel.1 >/dev/null 2>&1 && ip link del flannel.1; {made}"));
        let before = index();
        let ops = node.converge(DEFAULTS, &peers);
        assert_eq!(index() != before, replaced, "{why}: {ops:#?}");
    }
}

#[test]
fn mtu_and_mac_change_in_place_and_the_neighbours_are_restored() {
    let underlay = Underlay::new(2);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    let peers = underlay.peers(2);
    let ops = node.converge(Settings { mtu: Some(1400), ..DEFAULTS }, &peers);
    assert!(ops.iter().all(|op| matches!(op, NetOp::SetMtu { mtu: 1400, .. })) && ops.len() == 2, "{ops:#?}");
    node.namespace.sh("ip link set flannel.1 address 02:00:00:00:00:97");
    assert!(!node.namespace.sh("ip neigh show dev flannel.1").contains("PERMANENT"), "the kernel deletes them");
    node.converge(Settings { mtu: Some(1400), ..DEFAULTS }, &peers);
    assert!(node.namespace.sh("ip neigh show dev flannel.1").contains("10.244.2.0 lladdr 02:00:00:00:04:02 PERMANENT"));
}

#[test]
fn the_entries_of_a_deleted_peer_are_deleted_and_a_new_mac_replaces_the_old_one() {
    let underlay = Underlay::new(3);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    let mut peers = underlay.peers(2);
    node.converge(DEFAULTS, &peers);
    let state = node
        .namespace
        .sh("ip route; ip -6 route; ip neigh; bridge fdb show dev flannel.1; bridge fdb show dev flannel-v6.1");
    for address in ["10.244.3.0", "fd00:244:0:3::", "172.30.0.3", "fd00:30::3"] {
        assert!(!state.contains(address), "{address} in {state}");
    }
    assert!(state.contains("10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 157 onlink"), "{state}");

    let mac: Mac = "02:00:00:00:00:aa".parse().unwrap();
    for peer in &mut peers {
        if peer.node == underlay.nodes[1].name() {
            peer.vtep_mac = mac;
        }
    }
    node.converge(DEFAULTS, &peers);
    let fdb = node.namespace.sh("bridge fdb show dev flannel.1");
    assert!(fdb.contains("02:00:00:00:00:aa dst 172.30.0.2 self permanent"), "{fdb}");
    assert!(!fdb.contains("02:00:00:00:04:02"), "{fdb}");
}

#[test]
fn a_change_of_the_vni_and_direct_routing_leave_no_old_entries() {
    let underlay = Underlay::new(2);
    underlay.converge(DEFAULTS);
    underlay.converge(Settings { vni: 7, ..DEFAULTS });
    let node = &underlay.nodes[0];
    assert!(node.namespace.try_sh("ip link show flannel.1").is_err(), "the old device is deleted");
    underlay.converge(Settings { direct: DirectRouting::Enabled, vni: 7, ..DEFAULTS });
    let state = node.namespace.sh("ip route; bridge fdb show dev flannel.7; ip neigh show dev flannel.7");
    assert!(state.contains("10.244.2.0/24 via 172.30.0.2 dev uplink proto 157"), "{state}");
    assert!(!state.contains("02:00:00:00:04:02"), "no neighbour entry and no FDB entry: {state}");
    let (a, _b) = (underlay.nodes[0].add_pod(1430), underlay.nodes[1].add_pod(1430));
    for family in Family::ALL {
        assert_pings(&a, underlay.nodes[1].pod_address(family), "without the tunnel");
    }
}

#[test]
fn unmanaged_objects_are_never_changed() {
    let underlay = Underlay::new(2);
    let node = &underlay.nodes[0];
    let foreign = "ip route add 10.99.0.0/16 via 172.30.0.2
        ip route add 10.98.0.0/16 dev uplink proto 99
        ip -6 route add fd00:99::/64 via fd00:30::2
        ip route add 10.244.2.0/24 via 172.30.0.2 metric 50
        ip neigh add 172.30.0.50 lladdr 02:00:00:00:00:50 nud permanent dev uplink
        ip link add vxlan9 type vxlan id 9 dev uplink local 172.30.0.1 dstport 4789
        ip link set vxlan9 up; bridge fdb append 02:00:00:00:00:51 dev vxlan9 dst 172.30.0.51
        ip route add 10.97.0.0/16 dev vxlan9";
    node.namespace.sh(foreign);
    // Without what the kernel changes over time, such as reference counts.
    let show = || {
        node.namespace.sh(
            "ip route; ip -6 route; ip neigh show nud permanent; bridge fdb show dev vxlan9; ip -br link show vxlan9",
        )
    };
    let before = show();
    underlay.converge(DEFAULTS);
    node.namespace.run(|| {
        let mut net = KernelNet::open(Sysctls::default()).unwrap();
        let ops = teardown(&net.read_back().unwrap());
        let failed = net.apply(&ops);
        assert!(failed.is_empty(), "{failed:#?}");
    });
    assert_eq!(show(), before, "after setup and teardown");
}

#[test]
fn a_conflicting_route_of_another_program_is_an_error_and_one_of_flannel_is_taken_over() {
    let underlay = Underlay::new(2);
    let node = &underlay.nodes[0];
    let peers = underlay.peers(2);
    node.namespace.sh("ip route add 10.244.2.0/24 via 172.30.0.2 proto bird");
    node.namespace.run(|| {
        let mut net = KernelNet::open(Sysctls::default()).unwrap();
        let have = net.read_back().unwrap();
        let failed = net.apply(&diff(&node.want(DEFAULTS, &peers, &have), &have));
        let [error] = failed.as_slice() else { panic!("{failed:#?}") };
        assert_eq!(
            error.to_string(),
            "could not add route 10.244.2.0/24 via 10.244.2.0 dev flannel.1: another program has a route to this network; remove it, or the program"
        );
    });
    assert!(node.namespace.sh("ip route").contains("10.244.2.0/24 via 172.30.0.2 dev uplink proto bird"));
    node.namespace.sh("ip route del 10.244.2.0/24; ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
    let ops = node.converge(DEFAULTS, &peers);
    assert!(matches!(ops.as_slice(), [NetOp::ReplaceRoute { .. }]), "{ops:#?}");
}

#[test]
fn a_failed_operation_stops_no_other_and_deleting_from_a_missing_link_succeeds() {
    let underlay = Underlay::new(2);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    node.namespace.run(|| {
        let link = IfName::new("gone").unwrap();
        let address = node.pod_address(Family::V4);
        let mut net = KernelNet::open(Sysctls::default()).unwrap();
        let failed = net.apply(&[
            NetOp::SetMtu { link: link.clone(), mtu: 1400 },
            NetOp::DeleteNeighbour { link: link.clone(), address },
            NetOp::DeleteLink { link: link.clone(), reason: "test".to_owned() },
            NetOp::SetMtu { link: IfName::new("flannel.1").unwrap(), mtu: 9000 },
            NetOp::SetMtu { link: IfName::new("flannel.1").unwrap(), mtu: 1399 },
        ]);
        let texts: Vec<_> = failed.iter().map(|error| format!("{error}: {}", error.source)).collect();
        assert_eq!(texts.len(), 2, "{texts:#?}");
        assert!(texts[0].starts_with("could not set the MTU of gone to 1400: there is no link gone"), "{texts:#?}");
        assert!(texts[1].starts_with("could not set the MTU of flannel.1 to 9000: does the MTU fit"), "{texts:#?}");
        let have = net.read_back().unwrap();
        assert_eq!(have.link(&IfName::new("flannel.1").unwrap()).unwrap().1.mtu, 1399, "the last one was applied");
    });
    drop(underlay.bridge);
}

#[test]
fn a_rejected_change_carries_the_kernels_text() {
    let underlay = Underlay::new(1);
    let node = &underlay.nodes[0];
    node.converge(DEFAULTS, &[]);
    node.namespace.run(|| {
        let mut net = KernelNet::open(Sysctls::default()).unwrap();
        let have = net.read_back().unwrap();
        let (_, link) = have.link(&IfName::new("flannel.1").unwrap()).unwrap();
        let LinkKind::Vxlan(tunnel) = link.kind.clone() else { panic!("{link:?}") };
        let twin = VxlanDevice {
            name: IfName::new("twin.1").unwrap(),
            tunnel,
            mtu: 1400,
            mac: node.mac(Family::V4),
            address: "10.244.9.0/32".parse().unwrap(),
        };
        let failed = net.apply(&[NetOp::CreateDevice(twin)]);
        let [error] = failed.as_slice() else { panic!("{failed:#?}") };
        let text = "rejected by the kernel (A VXLAN device with the specified VNI already exists)";
        assert_eq!(error.source.to_string(), text);
        assert!(
            error.to_string().ends_with("another VXLAN device has this VNI and port; remove it or choose another VNI")
        );
    });
}

#[test]
fn an_advertised_default_route_stays_when_forwarding_is_enabled() {
    let underlay = Underlay::new(1);
    let node = &underlay.nodes[0];
    let accept_ra = || node.namespace.sh("sysctl -n net.ipv6.conf.uplink.accept_ra").trim().to_owned();
    node.namespace.sh("sysctl -qw net.ipv6.conf.uplink.accept_ra=1");
    node.converge(DEFAULTS, &[]);
    assert_eq!(accept_ra(), "1", "no route depends on it");
    node.namespace.sh("ip -6 route add default via fd00:30::254 dev uplink proto ra");
    node.converge(DEFAULTS, &[]);
    assert_eq!(accept_ra(), "2", "accepted with forwarding enabled");
}
