//! The kernel's notifications: changes by others arrive, noise and our own changes do not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::time::Duration;

use support::{
    enter_new_namespace,
    nodes::{DEFAULTS, Underlay},
    sh,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::timeout,
};
use towpath_core::overlay::{NetNotification, diff};
use towpath_dataplane::net::{KernelNet, Net, NetListener};
use towpath_podlink::sysctl::Sysctls;

/// How long a notification may take; it comes within the system call that causes it.
const SOON: Duration = Duration::from_secs(5);

/// How long to listen before saying that nothing comes: earlier changes are notified already.
const SILENCE: Duration = Duration::from_millis(10);

/// A listener, and the runtime that its connections need.
struct Listener {
    inner: NetListener,
    runtime: Runtime,
}

impl Listener {
    fn open() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let inner = runtime.block_on(async { NetListener::open().unwrap() });
        Self { inner, runtime }
    }

    /// What comes next, or nothing if nothing comes in time.
    fn next(&mut self, within: Duration) -> Vec<NetNotification> {
        self.runtime.block_on(async {
            // However late this thread runs, what has arrived is received before time is up.
            for _ in 0..8 {
                yield_now().await;
            }
            timeout(within, self.inner.recv()).await.map_or_else(|_| Vec::new(), Result::unwrap)
        })
    }
}

/// Everything that is notified until it is silent.
fn all(listener: &mut Listener) -> Vec<NetNotification> {
    let mut notices = Vec::new();
    loop {
        let more = listener.next(SILENCE);
        if more.is_empty() {
            return notices;
        }
        notices.extend(more);
    }
}

#[test]
fn what_somebody_does_to_our_objects_is_notified_as_news() {
    let underlay = Underlay::new(2);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    let _pod = node.add_pod(1430);
    let host = node.endpoint().interface;
    let peers = underlay.peers(2);
    let mac = |family| underlay.nodes[1].mac(family);
    node.namespace.run(|| {
        let mut listener = Listener::open();
        let mut net = KernelNet::open(Sysctls::default()).unwrap();
        for change in [
            "ip neigh del 10.244.2.0 dev flannel.1".to_owned(),
            "ip -6 neigh del fd00:244:0:2:: dev flannel-v6.1".to_owned(),
            "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 nud permanent dev flannel.1".to_owned(),
            "ip neigh change 10.244.2.0 nud stale dev flannel.1".to_owned(),
            "ip neigh flush dev flannel.1 nud all".to_owned(),
            format!("bridge fdb del {} dev flannel.1 dst 172.30.0.2", mac(towpath_core::model::Family::V4)),
            format!("bridge fdb replace {} dev flannel.1 dst 172.30.0.77", mac(towpath_core::model::Family::V4)),
            "ip route del 10.244.2.0/24".to_owned(),
            "ip -6 route del fd00:244:0:2::/64".to_owned(),
            "ip route replace 10.244.2.0/24 via 172.30.0.9".to_owned(),
            "ip route del blackhole 10.244.1.0/24".to_owned(),
            "ip route add 10.77.0.0/24 dev uplink proto 157".to_owned(),
            format!("ip route del 10.244.1.9 dev {host}"),
            "ip addr del 10.244.1.0/32 dev flannel.1".to_owned(),
            "ip link set flannel.1 down".to_owned(),
            "ip link set flannel.1 address 02:00:00:00:00:98".to_owned(),
            "ip link set flannel.1 mtu 1300".to_owned(),
            "ip link del flannel.1".to_owned(),
            "ip link set uplink mtu 1480".to_owned(),
            "ip addr add 172.30.1.1/24 dev uplink".to_owned(),
            "ip route del default".to_owned(),
            "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
            "sysctl -qw net.ipv6.conf.all.forwarding=0".to_owned(),
        ] {
            let have = net.read_back().unwrap();
            let want = node.want(DEFAULTS, &peers, &have);
            sh(&change);
            let notices = all(&mut listener);
            assert!(notices.iter().any(|notice| !want.expects(notice, &have)), "{change}: {notices:?}");

            // Repaired by hand where the comparison would rightly leave it alone.
            sh("ip route replace default via 172.30.0.254; ip link set uplink mtu 1500
                ip route del 10.244.2.0/24 via 172.30.0.9 2>/dev/null || true");
            let have = net.read_back().unwrap();
            let failed = net.apply(&diff(&node.want(DEFAULTS, &peers, &have), &have));
            assert!(failed.is_empty(), "{change}: {failed:#?}");
            all(&mut listener);
        }
    });
}

#[test]
fn a_peer_that_comes_and_goes_by_our_own_hand_is_no_news() {
    let underlay = Underlay::new(3);
    let node = &underlay.nodes[0];
    node.converge(DEFAULTS, &underlay.peers(2));
    node.namespace.run(|| {
        let mut listener = Listener::open();
        for peers in [underlay.peers(3), underlay.peers(2)] {
            node.converge(DEFAULTS, &peers);
            let have = KernelNet::open(Sysctls::default()).unwrap().read_back().unwrap();
            let want = node.want(DEFAULTS, &peers, &have);
            let notices = all(&mut listener);
            assert!(notices.len() >= 6, "three entries in two families: {notices:?}");
            let news: Vec<_> = notices.iter().filter(|notice| !want.expects(notice, &have)).collect();
            assert!(news.is_empty(), "{news:?}");
        }
    });
}

#[test]
fn pods_other_programs_routes_and_repetitions_are_not_notified() {
    let underlay = Underlay::new(1);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    node.namespace.run(|| {
        let mut listener = Listener::open();
        let _pod = node.add_pod(1430);
        let have = KernelNet::open(Sysctls::default()).unwrap().read_back().unwrap();
        let want = node.want(DEFAULTS, &[], &have);
        let notices = all(&mut listener);
        assert_eq!(notices.len(), 2, "the two routes of the pod, and nothing of its link: {notices:?}");
        assert!(notices.iter().all(|notice| want.expects(notice, &have)), "{notices:?}");
        sh("ip route add 192.0.2.0/24 dev uplink; ip route del 192.0.2.0/24
            ip neigh add 172.30.0.50 lladdr 02:00:00:00:00:50 dev uplink; ip neigh del 172.30.0.50 dev uplink
            ip addr change 172.30.0.1/24 dev uplink; ip link set uplink up; ip link set uplink txqueuelen 777");
        assert_eq!(all(&mut listener), []);
    });
}

#[test]
fn lost_notifications_are_reported_as_lost_and_it_goes_on() {
    enter_new_namespace();
    let mut listener = Listener::open();
    sh("ip link add x type bridge; ip link set x up
        seq 1 15000 | awk '{ printf \"route add 10.%d.%d.0/24 dev x proto 157\\n\", $1 / 250, $1 % 250 }' | ip -b -
        ip link add y type bridge");
    let mut received = 0;
    loop {
        let notices = listener.next(SOON);
        assert!(!notices.is_empty(), "none was lost, {received} were received");
        if notices.contains(&NetNotification::Overrun) {
            break;
        }
        received += notices.len();
    }
    all(&mut listener);
    sh("ip link del y");
    assert!(all(&mut listener).contains(&NetNotification::Links), "it knows the link from reading again");
}
