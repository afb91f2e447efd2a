//! Pod links in the kernel: a test is a host, in a network namespace of its own, with pods in others.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::net::IpAddr;

use support::{Namespace, enter_new_namespace, sh, try_sh};
use towpath_core::names::IfName;
use towpath_podlink::{
    DeleteOutcome, PodLink, PodLinkError, PodLinkSpec,
    netns::{Netns, NetnsError},
};

fn spec(pod: &str, addresses: &[&str]) -> PodLinkSpec {
    PodLinkSpec {
        host: IfName::of_pod("default", pod),
        pod: IfName::new("eth0").unwrap(),
        addresses: addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect(),
        mtu: 1450,
    }
}

fn create(namespace: &Namespace, spec: &PodLinkSpec) -> PodLink {
    let netns = Netns::open(&namespace.path()).unwrap();
    let link = PodLink::create(&netns, spec).unwrap();
    link.connect(spec).unwrap();
    link
}

#[test]
fn two_pods_and_the_host_reach_each_other_in_both_families() {
    enter_new_namespace();
    sh("ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo");
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let (a, b) = (Namespace::new(), Namespace::new());
    create(&a, &spec("a", &["10.244.0.2", "fd00:244::2"]));
    create(&b, &spec("b", &["10.244.0.3", "fd00:244::3"]));
    for target in ["10.244.0.3", "192.0.2.1", "fd00:244::3", "2001:db8::1"] {
        a.sh(&format!("ping -c 1 -W 2 {target}"));
    }
    sh("ping -c 1 -W 2 10.244.0.2; ping -c 1 -W 2 fd00:244::2");
}

#[test]
fn a_pods_link_is_what_canal_makes_and_has_the_neighbour_that_canal_lacks() {
    enter_new_namespace();
    let pod = Namespace::new();
    let spec = spec("a", &["10.244.0.2", "fd00:244::2"]);
    let link = create(&pod, &spec);
    let host = spec.host.as_str();
    assert!(sh(&format!("ip link show {host}")).contains("mtu 1450"), "the device's MTU on the host's end");
    assert!(sh(&format!("ip link show {host}")).contains("ee:ee:ee:ee:ee:ee"));
    assert!(pod.sh("ip link show eth0").contains(&link.pod_mac.to_string()));
    assert!(pod.sh("ip link show eth0").contains("mtu 1450"), "and in the pod");
    assert!(pod.sh("ip -4 addr show eth0").contains("inet 10.244.0.2/32 scope global eth0"));
    assert_eq!(
        pod.sh("ip -4 route").lines().map(str::trim).collect::<Vec<_>>(),
        ["default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 scope link"]
    );
    assert!(pod.sh("ip -6 route show default").contains("via fe80::ecee:eeff:feee:eeee dev eth0"));
    assert!(pod.sh("ip neigh show nud permanent").contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"));
    assert!(pod.sh("ip -6 neigh show nud permanent").contains("fe80::ecee:eeff:feee:eeee"));
    assert!(sh("ip route show proto 157").contains(&format!("10.244.0.2 dev {host} scope link")));
    assert!(sh("ip -6 route show proto 157").contains(&format!("fd00:244::2 dev {host}")));
    for (key, value) in [
        ("ipv4", "forwarding=1 proxy_arp=1 rp_filter=1"),
        ("ipv6", "forwarding=1 proxy_ndp=1 accept_ra=0 accept_dad=0"),
    ] {
        for pair in value.split(' ') {
            let (name, value) = pair.split_once('=').unwrap();
            assert_eq!(sh(&format!("cat /proc/sys/net/{key}/conf/{host}/{name}")).trim(), value, "{key} {name}");
        }
    }
}

#[test]
fn check_finds_whatever_was_changed_by_hand() {
    let host = IfName::of_pod("default", "a");
    let pod = |command: &str| format!("pod {command}");
    for (change, found) in [
        (pod("ip addr del 10.244.0.2/32 dev eth0"), "address 10.244.0.2 of eth0 in the pod"),
        (pod("ip -6 addr del fd00:244::2/128 dev eth0"), "address fd00:244::2"),
        (pod("ip route del default"), "route 0.0.0.0/0 in the pod"),
        (pod("ip route del 169.254.1.1"), "route 169.254.1.1/32 in the pod"),
        (pod("ip -6 route del default"), "route ::/0 in the pod"),
        (pod("ip neigh del 169.254.1.1 dev eth0"), "neighbour 169.254.1.1 in the pod"),
        (pod("ip link set eth0 address 02:00:00:00:00:01"), "MAC of eth0"),
        (pod("ip link set eth0 mtu 1400"), "MTU of eth0"),
        (pod("ip link set eth0 down"), "state of eth0"),
        (format!("ip route del 10.244.0.2/32 dev {host}"), "route 10.244.0.2/32 on the host"),
        (format!("ip -6 route del fd00:244::2/128 dev {host}"), "route fd00:244::2/128 on the host"),
        (format!("ip link set {host} address 02:00:00:00:00:02"), "MAC of tow"),
        (format!("ip link del {host}"), "on the host should be present but is missing"),
    ] {
        let namespace = Namespace::new();
        Namespace::new().run(|| {
            let spec = spec("a", &["10.244.0.2", "fd00:244::2"]);
            let link = create(&namespace, &spec);
            let netns = Netns::open(&namespace.path()).unwrap();
            PodLink::check(&netns, &spec, link.pod_mac).expect("nothing was changed yet");
            match change.strip_prefix("pod ") {
                Some(command) => namespace.sh(command),
                None => sh(&change),
            };
            let error = PodLink::check(&netns, &spec, link.pod_mac).expect_err(&change);
            assert!(error.to_string().contains(found), "{change}: {error}");
        });
    }
}

#[test]
fn an_address_that_another_link_has_is_refused_with_that_links_name() {
    enter_new_namespace();
    let (a, b) = (Namespace::new(), Namespace::new());
    create(&a, &spec("a", &["10.244.0.2", "fd00:244::2"]));
    for address in ["10.244.0.2", "fd00:244::2"] {
        let spec = spec("b", &[address]);
        let link = PodLink::create(&Netns::open(&b.path()).unwrap(), &spec).unwrap();
        let error = link.connect(&spec).unwrap_err();
        let first = IfName::of_pod("default", "a");
        assert!(matches!(&error, PodLinkError::Conflict { other, .. } if *other == first.as_str()), "{error}");
        assert!(error.to_string().contains(address) && error.to_string().contains(first.as_str()), "{error}");
        assert_eq!(PodLink::delete(&spec.host).unwrap(), DeleteOutcome::Deleted);
    }
}

#[test]
fn a_failed_creation_leaves_nothing_and_touches_nothing_of_before() {
    enter_new_namespace();
    let pod = Namespace::new();
    let spec_a = spec("a", &["10.244.0.2"]);
    create(&pod, &spec_a);
    let netns = Netns::open(&pod.path()).unwrap();

    let error = PodLink::create(&netns, &spec_a).unwrap_err();
    assert!(matches!(&error, PodLinkError::HostExists { name } if *name == spec_a.host), "{error}");
    let spec_b = spec("b", &["10.244.0.3"]);
    let error = PodLink::create(&netns, &spec_b).unwrap_err();
    assert!(matches!(&error, PodLinkError::PodExists { .. }), "eth0 is taken: {error}");
    assert!(try_sh(&format!("ip link show {}", spec_b.host)).is_err(), "nothing is left of the second");
    assert!(sh(&format!("ip link show {}", spec_a.host)).contains("UP"), "the first is as it was");

    let mut bad = spec("c", &["10.244.0.4"]);
    bad.pod = IfName::new("eth1").unwrap();
    bad.addresses.push("ff02::1".parse().unwrap());
    let error = PodLink::create(&netns, &bad).unwrap_err();
    assert!(matches!(error, PodLinkError::Pod { .. }), "{error}");
    assert!(pod.try_sh("ip link show eth1").is_err(), "undone after the pair was made");
}

#[test]
fn a_deletion_may_be_repeated_and_takes_the_routes_with_it() {
    enter_new_namespace();
    let pod = Namespace::new();
    let spec = spec("a", &["10.244.0.2"]);
    let link = create(&pod, &spec);
    link.connect(&spec).expect("routing again is no error");
    assert_eq!(PodLink::delete(&spec.host).unwrap(), DeleteOutcome::Deleted);
    assert_eq!(PodLink::delete(&spec.host).unwrap(), DeleteOutcome::NotFound);
    assert_eq!(sh("ip route show proto 157"), "");
    assert!(pod.try_sh("ip link show eth0").is_err());
}

#[test]
fn a_pods_namespace_must_be_one_and_not_the_hosts() {
    enter_new_namespace();
    let ours = Namespace::current();
    assert!(matches!(Netns::open(&ours.path()), Err(NetnsError::SameAsOurs { .. })));
    assert!(matches!(Netns::open("/proc/self/status".as_ref()), Err(NetnsError::NotANamespace { .. })));
    assert!(matches!(Netns::open("/var/run/netns/there-is-none".as_ref()), Err(NetnsError::Open { .. })));
}
