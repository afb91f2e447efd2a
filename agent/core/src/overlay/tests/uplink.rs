use super::*;
use crate::overlay::uplink::{MIN_MTU, UplinkReason};

fn choose(kernel: &Kernel, spec: &InterfaceSpec, families: &[Family]) -> Result<Uplink, UplinkError> {
    choose_uplink(kernel, UplinkQuery { spec, families, prefer: &[addr("10.0.0.5")] })
}

/// Adds three links to a fresh node: `fast` without a default route, `down`, and an overlay device.
fn kernel() -> Kernel {
    let mut kernel = fresh();
    kernel.links.insert(IfIndex(3), link("fast", 9000));
    kernel.addresses.insert(IfIndex(3), vec![net("10.0.0.100/32"), net("10.0.0.4/24"), net("10.0.0.5/24")]);
    let down = Link { state: LinkState::Down, ..link("down", 1500) };
    kernel.links.insert(IfIndex(4), down);
    kernel.addresses.insert(IfIndex(4), vec![net("10.1.0.4/24")]);
    kernel.links.insert(IfIndex(5), link("flannel.1", 1450));
    kernel.addresses.insert(IfIndex(5), vec![net("10.244.99.0/32")]);
    kernel
}

#[test]
fn the_uplink_is_selected_by_spec_interface() {
    use InterfaceSpec as Spec;
    for (spec, link, address, chosen_by, why) in [
        (Spec::DefaultRoute, "uplink", "172.30.0.99", UplinkReason::DefaultRoute(Family::V4), "the default"),
        (Spec::Names(vec![name("fast")]), "fast", "10.0.0.5", UplinkReason::Name, "the InternalIP is preferred"),
        (
            Spec::Names(vec![name("none"), name("down"), name("fast")]),
            "fast",
            "10.0.0.5",
            UplinkReason::Name,
            "the first usable link",
        ),
        (
            Spec::Cidrs(vec![net("10.1.0.0/16"), net("10.0.0.0/30")]),
            "none",
            "",
            UplinkReason::Name,
            "no match, or down",
        ),
        (
            Spec::Cidrs(vec![net("10.0.0.4/32")]),
            "fast",
            "10.0.0.4",
            UplinkReason::Cidr(net("10.0.0.4/32")),
            "by network",
        ),
        (
            Spec::Address(addr("10.0.0.100")),
            "fast",
            "10.0.0.100",
            UplinkReason::Address(addr("10.0.0.100")),
            "by address",
        ),
        (
            Spec::Cidrs(vec![net("10.244.0.0/16")]),
            "none",
            "",
            UplinkReason::Name,
            "an overlay device cannot be the uplink",
        ),
    ] {
        let found = choose(&kernel(), &spec, &[Family::V4]);
        if link == "none" {
            assert!(found.is_err(), "{why}: {found:?}");
            continue;
        }
        let found = found.unwrap();
        assert_eq!((found.name.as_str(), &found.chosen_by), (link, &chosen_by), "{why}");
        assert_eq!(found.addresses[&Family::V4], addr(address), "{why}");
    }
}

#[test]
fn the_default_route_with_the_lowest_metric_wins_and_a_blackhole_does_not_count() {
    let mut kernel = kernel();
    let add = |kernel: &mut Kernel, metric, target| {
        let key = RouteKey { destination: net("0.0.0.0/0"), metric };
        kernel.routes.insert(key, Route { target, owner: RouteOwner::Other(3) });
    };
    kernel.routes.clear();
    add(&mut kernel, 1, RouteTarget::Blackhole);
    add(&mut kernel, 200, RouteTarget::Via { gateway: addr("172.30.0.254"), link: IfIndex(2) });
    add(&mut kernel, 100, RouteTarget::Link(IfIndex(3)));
    assert_eq!(choose(&kernel, &InterfaceSpec::DefaultRoute, &[Family::V4]).unwrap().name, name("fast"));
    add(&mut kernel, 50, RouteTarget::Link(IfIndex(4)));
    assert_eq!(
        choose(&kernel, &InterfaceSpec::DefaultRoute, &[Family::V4]),
        Err(UplinkError::DefaultRouteUnusable(IfIndex(4))),
        "the overlay never uses another link than the node's traffic"
    );
}

#[test]
fn without_a_default_route_the_internal_ip_decides() {
    let mut kernel = kernel();
    kernel.routes.clear();
    let found = choose(&kernel, &InterfaceSpec::DefaultRoute, &[Family::V4]).unwrap();
    assert_eq!((found.name.as_str(), found.chosen_by), ("fast", UplinkReason::NodeAddress(addr("10.0.0.5"))));
    kernel.addresses.remove(&IfIndex(3));
    assert_eq!(choose(&kernel, &InterfaceSpec::DefaultRoute, &[Family::V4]), Err(UplinkError::NoDefaultRoute));
}

#[test]
fn an_address_with_a_network_is_preferred_to_a_host_address() {
    let mut kernel = kernel();
    kernel.addresses.insert(IfIndex(3), vec![net("10.0.0.100/32"), net("10.0.0.4/24")]);
    let found = choose(&kernel, &InterfaceSpec::Names(vec![name("fast")]), &[Family::V4]).unwrap();
    assert_eq!(found.addresses[&Family::V4], addr("10.0.0.4"), "10.0.0.100/32 looks like a virtual IP");
    assert!(found.reaches(addr("10.0.0.77")) && !found.reaches(addr("10.0.1.77")));
    kernel.addresses.insert(IfIndex(3), vec![net("10.0.0.100/32")]);
    let found = choose(&kernel, &InterfaceSpec::Names(vec![name("fast")]), &[Family::V4]).unwrap();
    assert_eq!(found.addresses[&Family::V4], addr("10.0.0.100"), "better than none");
    assert!(!found.reaches(addr("10.0.0.101")), "no network is connected");
}

#[test]
fn errors_name_the_link_and_the_remedy() {
    let error = choose(&kernel(), &InterfaceSpec::Names(vec![name("fast")]), &Family::ALL).unwrap_err();
    assert_eq!(error, UplinkError::NoAddress { name: name("fast"), family: Family::V6 });
    let error = choose(&kernel(), &InterfaceSpec::Names(vec![name("eth9")]), &[Family::V4]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no link in spec.interface.names (eth9) exists and is up; usable links: lo, uplink, fast"
    );
}

#[test]
fn the_mtu_is_that_of_the_uplink_minus_the_overhead() {
    const V4: &[Family] = &[Family::V4];
    for (uplink, configured, families, expected, why) in [
        (1500, None, V4, Ok(1450), "as flannel computes it"),
        (1500, None, &Family::ALL, Ok(1430), "the larger overhead applies to both families"),
        (9000, None, V4, Ok(8950), "jumbo frames"),
        (1500, Some(1400), V4, Ok(1400), "smaller than the maximum"),
        (1500, Some(1450), V4, Ok(1450), "equal to the maximum"),
        (1500, Some(1451), V4, Err(MtuError::TooLarge { configured: 1451, largest: 1450, uplink: 1500 }), "too large"),
        (1330, None, V4, Ok(MIN_MTU), "the minimum"),
        (1329, None, V4, Err(MtuError::UplinkTooSmall { uplink: 1329, largest: 1279 }), "below the IPv6 minimum"),
        (20, None, V4, Err(MtuError::UplinkTooSmall { uplink: 20, largest: 0 }), "no underflow"),
    ] {
        assert_eq!(device_mtu(uplink, configured, families), expected, "{why}");
    }
}
