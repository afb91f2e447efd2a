//! ADD, DEL, CHECK, STATUS and GC with the real binary in throw-away network namespaces.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};
use support::{Behaviour, Node, Pod, addresses, wait_for_output};
use towpath_local::{Reply, Request};

const BOTH: &[&str] = &["10.244.1.0/24", "fd00:244:1::/64"];

#[test]
fn two_pods_reach_one_another_and_the_host_in_both_families() {
    let node = Node::new(BOTH);
    let agent = node.good_agent();
    let pods = [Pod::new("c1"), Pod::new("c2")];
    let results = pods.each_ref().map(|pod| {
        let result = node.add(pod);
        let (request, routes) = agent.next_request();
        let Request::Add { endpoint } = request else { panic!("{request:?}") };
        assert_eq!(endpoint.addresses, addresses(&result));
        assert_eq!((endpoint.pod.as_str(), endpoint.host_interface), (pod.name.as_str(), pod.link()));
        assert_eq!(
            endpoint.pod_uid,
            Some(format!("uid-{}", pod.name)),
            "an older pod of the same name has another UID"
        );
        for addr in addresses(&result) {
            assert!(!routes.contains(&format!("{addr} dev")), "rules come before routes: {routes}");
        }
        result
    });
    let [first, second] = results.each_ref().map(addresses);
    assert_eq!(first, ["10.244.1.2", "fd00:244:1::2"].map(|a| a.parse::<std::net::IpAddr>().unwrap()));
    for addr in second.iter().map(ToString::to_string).chain(["10.244.1.0".to_owned(), "fd00:244:1::".to_owned()]) {
        pods[0].netns.sh(&format!("ping -c 2 -i 0.05 -W 5 {addr}"));
    }
    for addr in &first {
        node.host.sh(&format!("ping -c 1 -W 5 {addr}"));
        pods[1].netns.sh(&format!("ping -c 1 -W 5 {addr}"));
    }
    let mac = results[0]["interfaces"][1]["mac"].as_str().unwrap();
    let link = pods[0].netns.sh("ip -d link show eth0");
    assert!(link.contains(mac) && link.contains("mtu 1450"), "{link}");
    let file = fs::read_to_string(node.address_dir().join("10.244.1.2")).unwrap();
    assert_eq!(file, "c1\r\neth0", "the format of host-local");
    for pod in &pods {
        node.del(pod);
    }
    node.assert_empty("both pods are deleted");
}

#[test]
fn del_succeeds_whatever_is_left_of_the_pod() {
    type Damage = (&'static str, fn(&Node, &mut Pod));
    let cases: &[Damage] = &[
        ("everything is left", |_, _| {}),
        ("the link was deleted on the host", |node, pod| {
            node.host.sh(&format!("ip link delete {}", pod.link()));
        }),
        ("the record is malformed", |node, _| {
            fs::write(node.paths.endpoints().join("c1.eth0.json"), "{").unwrap();
        }),
        ("the endpoint file is missing", |node, _| {
            fs::remove_file(node.paths.endpoints().join("c1.eth0.json")).unwrap();
        }),
        ("an address file is missing", |node, _| fs::remove_file(node.address_dir().join("10.244.1.2")).unwrap()),
        ("an address file is empty", |node, _| fs::write(node.address_dir().join("10.244.1.2"), "").unwrap()),
        ("the namespace was deleted", |_, pod| pod.netns = support::Namespace::new()),
    ];
    for (why, damage) in cases {
        let node = Node::new(BOTH);
        let agent = node.good_agent();
        let mut pod = Pod::new("c1");
        node.add(&pod);
        damage(&node, &mut pod);
        drop(agent);
        for _ in 0..2 {
            node.del(&pod);
            node.assert_empty(why);
        }
    }
}

#[test]
fn del_needs_neither_namespace_nor_arguments_and_sends_a_request_to_the_agent() {
    let node = Node::new(BOTH);
    let agent = node.good_agent();
    let pod = Pod::new("c1");
    let prev = node.add(&pod);
    agent.next_request();
    let env = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
    let conf = node.conf("0.4.0", &json!({"prevResult": prev}));
    wait_for_output(node.start(&env, &conf.to_string())).ok();
    node.assert_empty("no namespace was given");
    assert_eq!(agent.next_request().0, Request::Del { container_id: "c1".to_owned(), ifname: "eth0".to_owned() });
    let never = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c9"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/gone")];
    wait_for_output(node.start(&never, &conf.to_string())).ok();
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::new(BOTH);
    let pod = Pod::new("c1");
    assert_eq!(node.call("ADD", &pod, &json!({})).code(), 11, "the agent does not run: try again later");
    node.assert_empty("the agent does not run");

    let agent = node.agent(Behaviour::Disconnect);
    assert_eq!(node.call("ADD", &pod, &json!({})).code(), 11, "the agent was killed during the request");
    node.assert_empty("the agent was killed");

    agent.set(Behaviour::Reply(Reply::error(50, "policy is not synced", "since start")));
    let error = node.call("ADD", &pod, &json!({}));
    assert_eq!((error.code(), &error.json["msg"]), (50, &json!("policy is not synced")), "the agent's message");
    node.assert_empty("the agent replied with an error");

    agent.set(Behaviour::Reply(Reply::Ok));
    pod.netns.sh("ip link add eth0 type veth peer name other");
    assert_eq!(node.call("ADD", &pod, &json!({})).code(), 102, "the pod has an eth0");
    node.assert_empty("the pod has an eth0");
    pod.netns.sh("ip link show eth0 && ip link delete eth0");

    node.host.sh("ip link add other type veth peer name rest && ip link set other up && ip link set rest up");
    // Allocation is round-robin: five addresses were allocated and released by now.
    for n in 2..=20 {
        node.host.sh(&format!("ip route add 10.244.1.{n} dev other"));
    }
    let conflict = node.call("ADD", &pod, &json!({}));
    assert!(conflict.code() == 101 && conflict.text().contains("other"), "the other link is named: {conflict:?}");
    node.host.sh("ip link delete other");
    node.assert_empty("the address was routed elsewhere");

    fs::remove_file(node.paths.node_file()).unwrap();
    let not_ready = node.call("ADD", &pod, &json!({}));
    assert!(not_ready.code() == 11 && not_ready.text().contains("agent"), "{not_ready:?}");
    node.assert_empty("there is no node.json");
}

#[test]
fn a_second_add_of_a_container_is_rejected_and_the_first_one_still_works() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pod = Pod::new("c1");
    let result = node.add(&pod);
    assert_eq!(node.call("ADD", &pod, &json!({})).code(), 102);
    for addr in addresses(&result) {
        node.host.sh(&format!("ping -c 1 -W 5 {addr}"));
    }
    assert_eq!(node.recorded(), ["c1"]);
    assert_eq!(node.used(), addresses(&result).into_iter().collect());
}

#[test]
fn a_full_range_is_an_error_that_names_it_and_del_frees_an_address() {
    let node = Node::new(&["10.244.1.0/29"]);
    let _agent = node.good_agent();
    let pods: Vec<Pod> = (0..5).map(|n| Pod::new(&format!("c{n}"))).collect();
    let given: Vec<_> = pods.iter().flat_map(|pod| addresses(&node.add(pod))).collect();
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 5, "{given:?}");
    let late = Pod::new("late");
    let full = node.call("ADD", &late, &json!({}));
    assert_eq!(full.code(), 100);
    assert!(full.text().contains("10.244.1.0/29") && full.text().contains("5 of 5"), "{full:?}");
    assert_eq!(node.links().len(), 5, "the sixth pod has no link");
    node.del(&pods[2]);
    assert_eq!(addresses(&node.add(&late)), [given[2]]);
}

#[test]
fn eight_concurrent_adds_and_dels_do_not_interfere() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pods: Vec<Pod> = (0..8).map(|n| Pod::new(&format!("c{n}"))).collect();
    let all = |command: &str| -> Vec<Value> {
        let conf = node.conf("1.0.0", &json!({}));
        let children: Vec<_> = pods.iter().map(|pod| node.start_for(command, pod, &conf)).collect();
        children.into_iter().map(|child| wait_for_output(child).ok()).collect()
    };
    let given: BTreeSet<_> = all("ADD").iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 16, "{given:?}");
    assert_eq!(node.used(), given);
    all("DEL");
    node.assert_empty("all were deleted concurrently");
}

#[test]
fn check_detects_changes_by_hand() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pod = Pod::new("c1");
    let prev = node.add(&pod);
    let check = |prev: &Value| node.call("CHECK", &pod, &json!({"prevResult": prev}));
    assert_eq!(check(&prev).ok(), Value::Null);
    let host = |command: &str| node.host.sh(command);
    let inside = |command: &str| pod.netns.sh(command);
    let link = pod.link();
    let mac = prev["interfaces"][1]["mac"].as_str().unwrap();
    let file = node.address_dir().join("10.244.1.2");
    let neighbours = "for a in 169.254.1.1 fe80::ecee:eeff:feee:eeee; do \
        ip neighbour replace $a dev eth0 lladdr ee:ee:ee:ee:ee:ee nud permanent; done";
    type Change<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn(), &'a str);
    let cases: &[Change<'_>] = &[
        (
            "the route on the host",
            &|| drop(host(&format!("ip route delete 10.244.1.2 dev {link}"))),
            &|| drop(host(&format!("ip route add 10.244.1.2 dev {link} scope link proto 157"))),
            "10.244.1.2/32",
        ),
        (
            "the pod's MAC",
            &|| drop(inside("ip link set eth0 address 02:00:00:00:00:99")),
            // The kernel drops all neighbours of a link whose MAC changes, permanent ones too.
            &|| drop(inside(&format!("ip link set eth0 address {mac}; {neighbours}"))),
            "02:00:00:00:00:99",
        ),
        (
            "the pod's neighbour",
            &|| drop(inside("ip neighbour delete 169.254.1.1 dev eth0")),
            &|| drop(inside(neighbours)),
            "169.254.1.1",
        ),
        (
            "the MTU",
            &|| drop(inside("ip link set eth0 mtu 1400")),
            &|| drop(inside("ip link set eth0 mtu 1450")),
            "1400",
        ),
        (
            "the address file",
            &|| fs::write(&file, "c9\r\neth0").unwrap(),
            &|| fs::write(&file, "c1\r\neth0").unwrap(),
            "10.244.1.2",
        ),
    ];
    for (why, damage, repair, named) in cases {
        damage();
        let found = check(&prev);
        assert!(found.code() == 103 && found.text().contains(named), "{why}: {found:?}");
        repair();
        assert_eq!(check(&prev).ok(), Value::Null, "{why}: repaired");
    }
    let mut other = prev.clone();
    other["ips"][0]["address"] = json!("10.244.1.77/32");
    assert_eq!(check(&other).code(), 103, "prevResult has another address");
    assert_eq!(check(&json!({})).code(), 7, "prevResult has no eth0");
    node.del(&pod);
    assert_eq!(check(&prev).code(), 103, "the pod is deleted");
}

#[test]
fn status_returns_the_agents_reply() {
    let node = Node::new(BOTH);
    let status = || node.call_without_pod("STATUS", "1.1.0", &json!({}));
    assert_eq!(status().code(), 50, "no agent");
    let agent = node.good_agent();
    assert_eq!(status().ok(), Value::Null);
    assert_eq!(agent.next_request().0, Request::Status);
    agent.set(Behaviour::Reply(Reply::error(50, "the tunnel is down", "")));
    let down = status();
    assert_eq!((down.code(), &down.json["msg"]), (50, &json!("the tunnel is down")));
    agent.set(Behaviour::Reply(Reply::Ok));
    fs::remove_file(node.paths.node_file()).unwrap();
    assert_eq!(status().code(), 50, "no pod can be added without the node's state");
}

#[test]
fn gc_removes_all_attachments_that_are_not_valid_and_nothing_else() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pods = ["c1", "c2", "c3"].map(Pod::new);
    let results = pods.each_ref().map(|pod| node.add(pod));
    let kept: BTreeSet<_> = addresses(&results[1]).into_iter().collect();
    let write = |name: &str, text: &str| fs::write(node.address_dir().join(name), text).unwrap();
    write("10.244.1.100", "from-before-the-reboot\r\neth0");
    write("10.244.1.101", "");
    write("10.244.1.102", "\u{1}garbage");
    fs::write(node.paths.endpoints().join("c8.eth0.json"), "{").unwrap();
    node.host.sh("ip link add tow00000000000 type veth peer name unrecorded");

    let list = json!([{"containerID": "c2", "ifname": "eth0"}]);
    node.call_without_pod("GC", "1.1.0", &json!({"cni.dev/valid-attachments": list})).ok();
    assert_eq!(node.used(), kept);
    assert_eq!(node.recorded(), ["c2"]);
    assert_eq!(node.links(), [pods[1].link().to_string()]);
    assert!(!node.paths.endpoints().join("c8.eth0.json").exists());
    for addr in &kept {
        node.host.sh(&format!("ping -c 1 -W 5 {addr}"));
    }

    assert_eq!(node.call_without_pod("GC", "1.1.0", &json!({})).code(), 7, "without a list nothing is removed");
    assert_eq!(node.recorded(), ["c2"]);
    node.call_without_pod("GC", "1.1.0", &json!({"cni.dev/valid-attachments": null})).ok();
    node.assert_empty("no attachment is valid");
}

#[test]
fn gc_keeps_valid_pods_without_a_record() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pod = Pod::new("c1");
    let given = addresses(&node.add(&pod));
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
    for damage in [Some("{"), None] {
        let record = node.paths.endpoints().join("c1.eth0.json");
        match damage {
            Some(text) => fs::write(record, text).unwrap(),
            None => fs::remove_file(record).unwrap(),
        }
        node.call_without_pod("GC", "1.1.0", &valid).ok();
        assert_eq!(node.links(), [pod.link().to_string()]);
        assert_eq!(node.used(), given.iter().copied().collect());
    }
}

#[test]
fn an_invalid_namespace_has_its_own_error_code() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let host = node.host.path();
    let file = node.paths.node_file();
    for (netns, why) in [
        ("/run/netns/gone", "no such file"),
        (file.to_str().unwrap(), "a file"),
        (host.to_str().unwrap(), "the host's own"),
    ] {
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"),
        ];
        let error = wait_for_output(node.start(&env, &node.conf("1.0.0", &json!({})).to_string()));
        assert_eq!(error.code(), 8, "{why}: {error:?}");
        node.assert_empty(why);
    }
}
