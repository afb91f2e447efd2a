//! Recovery from a crash, a reboot and leftovers of another plugin.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::{collections::BTreeSet, fs, net::IpAddr};

use serde_json::{Value, json};
use support::{Agent, Behaviour, Node, Pod, addresses};
use towpath_local::{Reply, Request};

const BOTH: &[&str] = &["10.244.1.0/24", "fd00:244:1::/64"];

/// Kills the plugin (SIGKILL) during ADD, while it waits for the agent.
fn kill_during_add(node: &Node, pod: &Pod) -> Agent {
    let agent = node.agent(Behaviour::NoReply);
    let mut child = node.start_for("ADD", pod, &node.conf("1.0.0", &json!({})));
    assert!(matches!(agent.next_request().0, Request::Add { .. }));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        (node.used().len(), node.links().len(), node.recorded().len()),
        (2, 1, 1),
        "addresses, link and record are left"
    );
    agent.set(Behaviour::Reply(Reply::Ok));
    agent
}

#[test]
fn del_removes_all_that_a_killed_add_left() {
    let node = Node::new(BOTH);
    let pod = Pod::new("c1");
    drop(kill_during_add(&node, &pod));
    node.del(&pod);
    node.assert_empty("the plugin was killed during ADD");
}

#[test]
fn del_removes_the_addresses_of_an_add_that_was_killed_before_it_created_the_link() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pod = Pod::new("c1");
    node.add(&pod);
    // The state of a plugin killed between creating and writing the second address file.
    node.host.sh(&format!("ip link delete {}", pod.link()));
    fs::write(node.address_dir().join("fd00:244:1::2"), "").unwrap();
    let again = addresses(&node.add(&pod));
    assert_eq!(again.len(), 2, "the same container can be added again");
    assert_eq!(node.used(), again.into_iter().collect(), "and the first addresses are released");
    node.del(&pod);
    node.assert_empty("deleted");
}

#[test]
fn the_next_container_of_a_pod_replaces_one_whose_add_was_killed() {
    let node = Node::new(BOTH);
    let killed = Pod::new("c1");
    let _agent = kill_during_add(&node, &killed);
    let mut next = Pod::new("c2");
    next.name.clone_from(&killed.name);
    let given = addresses(&node.add(&next));
    assert_eq!(node.recorded(), ["c2"]);
    assert_eq!(node.used(), given.iter().copied().collect());

    node.del(&killed);
    assert_eq!(node.recorded(), ["c2"], "a late DEL of the first container");
    for addr in given {
        node.host.sh(&format!("ping -c 1 -W 5 {addr}"));
    }
    node.del(&next);
    node.assert_empty("both are deleted");
}

#[test]
fn add_fails_at_once_and_leaves_nothing_when_the_agent_is_killed() {
    let node = Node::new(BOTH);
    let pod = Pod::new("c1");
    let agent = node.agent(Behaviour::Disconnect);
    let failed = node.call("ADD", &pod, &json!({}));
    assert!(failed.code() == 11 && failed.text().contains("agent"), "{failed:?}");
    node.assert_empty("the agent was killed");
    agent.set(Behaviour::Reply(Reply::Ok));
    node.add(&pod);
}

/// A /29 whose address files are all of containers before a reboot, without records and routes.
fn full_after_a_reboot() -> Node {
    let node = Node::new(&["10.244.1.0/29"]);
    fs::create_dir_all(node.address_dir()).unwrap();
    for n in 2..=6 {
        write(&node, n, &format!("before-{n}\r\neth0"));
    }
    node
}

fn write(node: &Node, n: u8, text: &str) {
    fs::write(node.address_dir().join(format!("10.244.1.{n}")), text).unwrap();
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 244, 1, n])
}

#[test]
fn address_files_from_before_a_reboot_are_removed_when_the_range_is_full() {
    let node = full_after_a_reboot();
    let _agent = node.good_agent();
    let pod = Pod::new("c1");
    let given = addresses(&node.add(&pod));
    assert_eq!(node.used(), given.into_iter().collect(), "no container had the others");
}

#[test]
fn running_pods_of_another_plugin_keep_their_addresses() {
    let node = full_after_a_reboot();
    let _agent = node.good_agent();
    node.host
        .sh("ip link add cali1 type veth peer name c1 && ip link set cali1 up && ip route add 10.244.1.4 dev cali1");
    let (first, second) = (Pod::new("c1"), Pod::new("c2"));
    assert_eq!(addresses(&node.add(&first)), [ip(2)]);
    assert_eq!(addresses(&node.add(&second)), [ip(3)]);
    assert_eq!(node.used(), BTreeSet::from([ip(2), ip(3), ip(4)]), "one is routed, two are new, two were unused");

    let other = Pod { id: "before-4".to_owned(), ..Pod::new("canal") };
    other.netns.sh("ip link add eth0 type veth peer name x");
    node.del(&other);
    assert!(!node.used().contains(&ip(4)), "DEL releases its address");
    assert!(other.netns.try_sh("ip link show eth0").is_err(), "and removes its interface");
}

#[test]
fn the_address_of_a_malformed_file_is_never_allocated_and_is_named_when_the_range_is_full() {
    let node = full_after_a_reboot();
    let _agent = node.good_agent();
    write(&node, 3, "\u{1}\u{2}garbage");
    write(&node, 4, "");
    let given: BTreeSet<_> =
        (0..4).map(|n| Pod::new(&format!("c{n}"))).flat_map(|pod| addresses(&node.add(&pod))).collect();
    assert_eq!(
        given,
        BTreeSet::from([ip(2), ip(4), ip(5), ip(6)]),
        "all but that of the malformed file; an empty file is unused"
    );
    let full = node.call("ADD", &Pod::new("late"), &json!({}));
    assert!(full.code() == 100 && full.text().contains("10.244.1.3"), "{full:?}");
    assert!(
        fs::read_to_string(node.address_dir().join("10.244.1.3")).unwrap().contains("garbage"),
        "the file is unchanged"
    );
}

#[test]
fn malformed_state_of_the_node_is_an_error_that_names_the_file() {
    type Case = (fn(&Node) -> std::path::PathBuf, &'static str);
    let cases: [Case; 3] = [
        (|node| node.paths.node_file(), "node.json"),
        (|node| node.paths.endpoints(), "endpoints"),
        (|node| node.paths.data().to_owned(), "k8s-pod-network"),
    ];
    for (path, named) in cases {
        let node = Node::new(BOTH);
        let _agent = node.good_agent();
        fs::write(path(&node), "neither JSON nor a directory").unwrap();
        let failed = node.call("ADD", &Pod::new("c1"), &json!({}));
        assert!(failed.code() == 5 && failed.text().contains(named), "{failed:?}");
        assert_eq!(node.links(), Vec::<String>::new());
    }
}

#[test]
fn another_interface_of_the_same_pod_is_rejected_and_the_first_one_still_works() {
    let node = Node::new(BOTH);
    let _agent = node.good_agent();
    let pod = Pod::new("c1");
    let given = addresses(&node.add(&pod));
    let netns = pod.netns_path();
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "net1"),
        ("CNI_NETNS", netns.as_str()),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-c1"),
    ];
    let second = support::wait_for_output(
        node.start(&env, &node.conf("1.0.0", &Value::Object(serde_json::Map::new())).to_string()),
    );
    assert!(second.code() == 102 && second.text().contains("eth0"), "{second:?}");
    assert_eq!(node.used(), given.iter().copied().collect());
    for addr in given {
        node.host.sh(&format!("ping -c 1 -W 5 {addr}"));
    }
}
