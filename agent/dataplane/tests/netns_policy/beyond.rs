//! What is beside the policies: Services, a pod's own address, the guards of the table, and errors that belong to a
//! connection.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use towpath_core::model::Family;

use crate::{
    cluster::who,
    scenario::{Scenario, prove, scenario},
    world::World,
};

/// The Service's TCP port 80 is web's 8080, which `web` calls `http`; its UDP port 53 is web's 5353.
const SERVICES: &[Scenario<'_>] = &[
    scenario("a Service", "without policy it is reached", "", "client,outside,db > service tcp 80|udp 53", ""),
    scenario(
        "the target's port",
        "ingress is decided behind the translation: on the target port",
        "shop {podSelector: {}, ingress: [{ports: [{port: 8080}]}]}",
        "client,outside > service tcp 80",
        "client > service udp 53",
    ),
    scenario(
        "the Service's port",
        "the port in front of the translation means nothing to the receiver",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]}",
        "",
        "client,outside > service tcp 80|udp 53",
    ),
    scenario(
        "the target's port by its name",
        "the name is the pod's, whatever the Service calls its own",
        "shop {podSelector: {}, ingress: [{ports: [{port: http}, {port: dns, protocol: UDP}]}]}",
        "client > service tcp 80|udp 53",
        "client > web tcp 80",
    ),
    scenario(
        "the client behind a Service",
        "the receiver sees its client's own address and labels",
        "shop {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}",
        "client > service tcp 80|udp 53",
        "lab,outside > service tcp 80|udp 53",
    ),
    scenario(
        "egress to the backend",
        "the sender's egress is decided behind the translation, too: the backend's labels and port",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: blue}}}],
            ports: [{port: 8080}]}]}",
        "client > service tcp 80; client > web tcp 8080",
        "client > service udp 53; client > web tcp 80",
    ),
    scenario(
        "egress to the Service's port",
        "in front of the translation nothing is decided",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80",
        "client > service tcp 80",
    ),
    scenario(
        "egress to the backend's port by its name",
        "the name is the backend's",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
        "client > service tcp 80",
        "client > service udp 53",
    ),
    scenario(
        "egress to the Service's address",
        "an ipBlock matches addresses as they are behind the translation",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.96.0.0/16}},
            {ipBlock: {cidr: 'fd00:96::/64'}}]}]}",
        "",
        "client > service tcp 80|udp 53",
    ),
    scenario(
        "egress to the backend's address",
        "an ipBlock matches addresses as they are behind the translation",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.1.2/32}},
            {ipBlock: {cidr: 'fd00:244:1::2/128'}}]}]}",
        "client > service tcp 80|udp 53",
        "client > db tcp 80",
    ),
    scenario(
        "a pod and itself by its Service",
        "without policy it meets itself",
        "",
        "web > service tcp 80|udp 53",
        "",
    ),
    scenario(
        "its own ingress",
        "through a Service a pod's own ingress is asked",
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
        "through a Service a pod's own egress is asked",
        "shop {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
        "client > service tcp 80",
        "web > service tcp 80|udp 53",
    ),
    scenario(
        "its own egress and ingress",
        "both must let it",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress],
            ingress: [{ports: [{port: 8080}]}], egress: [{ports: [{port: 8080}, {port: 5353, protocol: UDP}]}]}",
        "web > service tcp 80; client > service tcp 80",
        "web > service udp 53",
    ),
];

/// `forger` is the pod `client` with an address that is another pod's.
const GUARDS: &[Scenario<'_>] = &[
    scenario(
        "a forged address",
        "a pod sends from its own addresses only",
        "",
        "client > web,node,outside tcp 80",
        "forger > web,node,outside,far tcp 80|udp 53|icmp",
    ),
    scenario(
        "a forged address that is allowed",
        "no policy lets a forged address through",
        "shop {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.2.9/32}},
            {ipBlock: {cidr: 'fd00:244:2::9/128'}}]}]};
         ops {podSelector: {}, policyTypes: [Egress], egress: [{}]}",
        "",
        "forger > web tcp 80|udp 53|icmp|plain",
    ),
    scenario(
        "the overlay's port",
        "no pod puts packets into the overlay: neither at a node nor at what may be one",
        "",
        "client > far,web udp 8472; client > host udp 8473; host > node udp 8472; node > host udp 8472",
        "client,web > host,node,outside udp 8472; outside,far > node udp 8472",
    ),
    scenario(
        "the overlay's port with everything allowed",
        "no policy opens the overlay",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{}]};
         ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 8472, protocol: UDP}]}]}",
        "client > web udp 8472",
        "client > host,node,outside udp 8472",
    ),
];

#[test]
fn services_are_judged_by_what_is_behind_them() {
    prove(SERVICES.iter().copied());
}

#[test]
fn no_policy_opens_what_the_tables_guards_close() {
    prove(GUARDS.iter().copied());
}

/// Sends to a port at which nobody listens, and waits for the error of whoever refuses it.
fn is_told_of_a_closed_port(world: &World, from: &str, to: &str, family: Family) -> bool {
    const CLOSED: u16 = 9;
    let (from, to) = (who(from), who(to));
    let socket = world.home(from).run(|| {
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
fn errors_that_belong_to_a_connection_pass_whatever_the_policies() {
    let mut world = World::new();
    for (spec, from, to, why) in [
        ("{podSelector: {}, policyTypes: [Ingress]}", "web", "outside", "an error from outside to who may not receive"),
        ("{podSelector: {}, policyTypes: [Ingress]}", "web", "client", "an error of a pod to who may not receive"),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 9, protocol: UDP}]}]}",
            "client",
            "web",
            "an error of a pod that may not send, and that lets no ICMP in",
        ),
        (
            "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 9, protocol: UDP}]}]}",
            "outside",
            "web",
            "the same, to outside",
        ),
    ] {
        world.cluster.add_policy("shop", "p", spec);
        world.apply();
        for family in Family::ALL {
            assert!(is_told_of_a_closed_port(&world, from, to, family), "{family}: {why}");
        }
    }
}
