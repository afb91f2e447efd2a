//! rtnetlink notifications: changes by others are reported as drift, our own changes and irrelevant ones are not.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

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

/// The longest wait for a notification; the kernel sends it within the system call that causes it.
const SOON: Duration = Duration::from_secs(5);

/// How long to listen before assuming that no notification follows: those of earlier changes are queued already.
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

    /// The next notifications; empty if none arrives in time.
    fn next(&mut self, within: Duration) -> Vec<NetNotification> {
        self.runtime.block_on(async {
            // Receive what is queued before the timeout, however late this thread runs.
            for _ in 0..8 {
                yield_now().await;
            }
            timeout(within, self.inner.recv()).await.map_or_else(|_| Vec::new(), Result::unwrap)
        })
    }
}

/// All notifications until none follows.
fn all(listener: &mut Listener) -> Vec<NetNotification> {
    let mut notifications = Vec::new();
    loop {
        let more = listener.next(SILENCE);
        if more.is_empty() {
            return notifications;
        }
        notifications.extend(more);
    }
}

#[test]
fn every_change_of_our_objects_by_others_is_drift() {
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
            let notifications = all(&mut listener);
            assert!(
                notifications.iter().any(|notification| !want.expects(notification, &have)),
                "{change}: {notifications:?}"
            );

            // Undo by hand what the diff does not cover.
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
fn our_own_changes_of_a_peer_are_expected() {
    let underlay = Underlay::new(3);
    let node = &underlay.nodes[0];
    node.converge(DEFAULTS, &underlay.peers(2));
    node.namespace.run(|| {
        let mut listener = Listener::open();
        for peers in [underlay.peers(3), underlay.peers(2)] {
            node.converge(DEFAULTS, &peers);
            let have = KernelNet::open(Sysctls::default()).unwrap().read_back().unwrap();
            let want = node.want(DEFAULTS, &peers, &have);
            let notifications = all(&mut listener);
            assert!(notifications.len() >= 6, "three entries in two families: {notifications:?}");
            let drift: Vec<_> =
                notifications.iter().filter(|notification| !want.expects(notification, &have)).collect();
            assert!(drift.is_empty(), "{drift:?}");
        }
    });
}

#[test]
fn links_of_pods_routes_of_other_programs_and_repetitions_are_not_reported() {
    let underlay = Underlay::new(1);
    underlay.converge(DEFAULTS);
    let node = &underlay.nodes[0];
    node.namespace.run(|| {
        let mut listener = Listener::open();
        let _pod = node.add_pod(1430);
        let have = KernelNet::open(Sysctls::default()).unwrap().read_back().unwrap();
        let want = node.want(DEFAULTS, &[], &have);
        let notifications = all(&mut listener);
        assert_eq!(notifications.len(), 2, "the two routes of the pod, and nothing of its link: {notifications:?}");
        assert!(notifications.iter().all(|notification| want.expects(notification, &have)), "{notifications:?}");
        sh("ip route add 192.0.2.0/24 dev uplink; ip route del 192.0.2.0/24
            ip neigh add 172.30.0.50 lladdr 02:00:00:00:00:50 dev uplink; ip neigh del 172.30.0.50 dev uplink
            ip addr change 172.30.0.1/24 dev uplink; ip link set uplink up; ip link set uplink txqueuelen 777");
        assert_eq!(all(&mut listener), []);
    });
}

#[test]
fn lost_notifications_are_reported_as_an_overrun_and_the_listener_continues() {
    enter_new_namespace();
    let mut listener = Listener::open();
    sh("ip link add x type bridge; ip link set x up
        seq 1 15000 | awk '{ printf \"route add 10.%d.%d.0/24 dev x proto 157\\n\", $1 / 250, $1 % 250 }' | ip -b -
        ip link add y type bridge");
    let mut received = 0;
    loop {
        let notifications = listener.next(SOON);
        assert!(!notifications.is_empty(), "none was lost, {received} were received");
        if notifications.contains(&NetNotification::Overrun) {
            break;
        }
        received += notifications.len();
    }
    all(&mut listener);
    sh("ip link del y");
    assert!(all(&mut listener).contains(&NetNotification::Links), "the listener has read the links again");
}
