//! Services, and rules that no policy overrides: anti-spoofing, the overlay's port, and ICMP errors of a connection.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use towpath_core::model::Family;

use crate::{
    cluster::endpoint,
    scenario::{Scenario, run_scenarios, scenario},
    testbed::Testbed,
};

/// The Service's TCP port 80 is web's 8080, which `web` calls `http`; its UDP port 53 is web's 5353.
const SERVICES: &[Scenario<'_>] = &[
    scenario("a Service", "it is reachable without policies", "", "client,outside,db > service tcp 80|udp 53", ""),
    scenario(
        "the target's port",
        "ingress is evaluated after DNAT, on the target port",
        "shop {podSelector: {}, ingress: [{ports: [{port: 8080}]}]}",
        "client,outside > service tcp 80",
        "client > service udp 53",
    ),
    scenario(
        "the Service's port",
        "ingress does not match the port before DNAT",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]}",
        "",
        "client,outside > service tcp 80|udp 53",
    ),
    scenario(
        "the target's port by name",
        "the name is that of the pod's port, not of the Service's",
        "shop {podSelector: {}, ingress: [{ports: [{port: http}, {port: dns, protocol: UDP}]}]}",
        "client > service tcp 80|udp 53",
        "client > web tcp 80",
    ),
    scenario(
        "the client behind a Service",
        "ingress matches the client's own address and labels",
        "shop {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}",
        "client > service tcp 80|udp 53",
        "lab,outside > service tcp 80|udp 53",
    ),
    scenario(
        "egress to the backend",
        "egress is evaluated after DNAT, too: on the backend's labels and port",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: blue}}}],
            ports: [{port: 8080}]}]}",
        "client > service tcp 80; client > web tcp 8080",
        "client > service udp 53; client > web tcp 80",
    ),
    scenario(
        "egress to the Service's port",
        "egress does not match the port before DNAT",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80",
        "client > service tcp 80",
    ),
    scenario(
        "egress to the backend's port by name",
        "the name is that of the backend's port",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
        "client > service tcp 80",
        "client > service udp 53",
    ),
    scenario(
        "egress to the Service's address",
        "an ipBlock matches addresses after DNAT",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}},
            {ipBlock: {cidr: 'fd00:96::/64'}}]}]}",
        "",
        "client > service tcp 80|udp 53",
    ),
    scenario(
        "egress to the backend's address",
        "an ipBlock matches addresses after DNAT",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.1.2/32}},
            {ipBlock: {cidr: 'fd00:244:1::2/128'}}]}]}",
        "client > service tcp 80|udp 53",
        "client > db tcp 80",
    ),
    scenario(
        "a pod that reaches itself through its Service",
        "it is reachable without policies",
        "",
        "web > service tcp 80|udp 53",
        "",
    ),
    scenario(
        "its own ingress",
        "through a Service a pod's own ingress is evaluated",
        "shop {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}",
        "db > service tcp 80",
        "web > service tcp 80|udp 53",
    ),
    scenario(
        "its own ingress, by its labels",
        "it is a peer of itself",
        "shop {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
        "web > service tcp 80|udp 53",
        "db > service tcp 80",
    ),
    scenario(
        "its own egress",
        "through a Service a pod's own egress is evaluated",
        "shop {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
        "client > service tcp 80",
        "web > service tcp 80|udp 53",
    ),
    scenario(
        "its own egress and ingress",
        "both must allow it",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress],
            ingress: [{ports: [{port: 8080}]}], egress: [{ports: [{port: 8080}, {port: 5353, protocol: UDP}]}]}",
        "web > service tcp 80; client > service tcp 80",
        "web > service udp 53",
    ),
];

/// `spoofer` is the pod `client` with the address of another pod.
const BUILT_IN_RULES: &[Scenario<'_>] = &[
    scenario(
        "a spoofed address",
        "a pod sends from its own addresses only",
        "",
        "client > web,node,outside tcp 80",
        "spoofer > web,node,outside,remote tcp 80|udp 53|icmp",
    ),
    scenario(
        "a spoofed address that a policy allows",
        "no policy allows a spoofed address",
        "shop {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.2.9/32}},
            {ipBlock: {cidr: 'fd00:244:2::9/128'}}]}]};
         ops {podSelector: {}, policyTypes: [Egress], egress: [{}]}",
        "",
        "spoofer > web tcp 80|udp 53|icmp|plain",
    ),
    scenario(
        "the overlay's port",
        "no pod sends to the overlay's port of a node, or of an address that may be a node",
        "",
        "client > remote,web udp 8472; client > host udp 8473; host > node udp 8472; node > host udp 8472",
        "client,web > host,node,outside udp 8472; outside,remote > node udp 8472",
    ),
    scenario(
        "the overlay's port with everything allowed",
        "no policy allows pods to send to the overlay's port",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{}]};
         ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 8472, protocol: UDP}]}]}",
        "client > web udp 8472",
        "client > host,node,outside udp 8472",
    ),
];

#[test]
fn policies_match_the_backend_of_a_service() {
    run_scenarios(SERVICES.iter().copied());
}

#[test]
fn no_policy_allows_a_spoofed_source_or_a_pods_packets_to_the_overlay_port() {
    run_scenarios(BUILT_IN_RULES.iter().copied());
}

/// Whether the sender of a datagram to a closed port receives the ICMP error (port unreachable).
fn receives_port_unreachable(testbed: &Testbed, from: &str, to: &str, family: Family) -> bool {
    const CLOSED: u16 = 9;
    let (from, to) = (endpoint(from), endpoint(to));
    let socket = testbed.namespace_of(from).run(|| {
        let socket = UdpSocket::bind(SocketAddr::new(from.address(family), 0)).unwrap();
        socket.connect(SocketAddr::new(to.address(family), CLOSED)).unwrap();
        socket
    });
    socket.set_nonblocking(true).unwrap();
    socket.send(b"towpath").unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        match socket.recv(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
    false
}

#[test]
fn icmp_errors_of_a_connection_pass_whatever_the_policies() {
    let mut testbed = Testbed::new();
    for (spec, from, to, why) in [
        (
            "{podSelector: {}, policyTypes: [Ingress]}",
            "web",
            "outside",
            "an error from outside to a pod with denied ingress",
        ),
        (
            "{podSelector: {}, policyTypes: [Ingress]}",
            "web",
            "client",
            "an error of a pod to a pod with denied ingress",
        ),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 9, protocol: UDP}]}]}",
            "client",
            "web",
            "an error of a pod with denied egress, whose ingress allows no ICMP",
        ),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 9, protocol: UDP}]}]}",
            "outside",
            "web",
            "the same, to outside",
        ),
    ] {
        testbed.cluster.add_policy("shop", "p", spec);
        testbed.apply();
        for family in Family::ALL {
            assert!(receives_port_unreachable(&testbed, from, to, family), "{family}: {why}");
        }
    }
}
