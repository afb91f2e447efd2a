//! What happens while an effect is executed, and before its result arrives.

use towpath_core::overlay::{IfIndex, Link, LinkKind, LinkState};

use super::*;

fn overrun() -> Input {
    Input::Notification(KernelNotification::Network(vec![overlay::NetNotification::Overrun]))
}

fn link(name: IfName) -> Link {
    Link { name, mac: None, mtu: 1450, state: LinkState::Up, kind: LinkKind::Other("veth".to_owned()) }
}

#[test]
fn a_pod_that_is_added_or_deleted_while_the_files_are_read_is_as_the_plugin_says() {
    let mut world = World::settled();
    world.feed([pod_event("a"), pod_event("b")]);
    world.add_pod("a", "10.244.1.2");
    world.feed([overrun()]);
    world.hold();
    world.pass(GATHER);
    world.remove_pod("a", "10.244.1.2");
    let answer = world.add_pod("b", "10.244.1.3");
    world.release();
    assert_eq!(world.reply(answer).unwrap(), CniReply::Ok);
    let pods: Vec<&str> = world.node.index.endpoints().values().map(|endpoint| endpoint.pod.name.as_str()).collect();
    assert_eq!(pods, ["b"]);
}

#[test]
fn a_difference_is_no_drift_when_the_cluster_has_changed_meanwhile() {
    let mut world = World::settled();
    world.kernel.network.fdb.clear();
    world.feed([overrun()]);
    world.hold();
    world.pass(GATHER);
    world.feed([node_event(peer("n3", 3))]);
    world.release();
    assert_eq!(
        (world.kernel.network.fdb.len(), world.node.status.drift.repairs),
        (2, 0),
        "read, and then wanted differently"
    );

    world.kernel.table = ruleset::fake::FakeTable::default();
    world.feed([overrun()]);
    world.hold();
    world.feed([Input::Notification(KernelNotification::Table)]);
    world.pass(GATHER);
    world.deliver();
    world.feed([node_event(peer("n4", 4))]);
    world.release();
    assert_eq!((world.kernel.network.fdb.len(), world.node.status.drift.repairs), (3, 0), "between two readings");
}

#[test]
fn a_route_to_a_pod_that_is_being_made_is_no_repair_and_one_that_is_lost_later_is() {
    let mut world = World::settled();
    world.feed([pod_event("a")]);
    world.add_pod("a", "10.244.1.2");
    world.kernel.network.links.insert(IfIndex(9), link(IfName::of_pod("default", "a")));
    for (repairs, why) in [(0, "the plugin may be about to"), (1, "it was there long since")] {
        let routes = world.kernel.network.routes.len();
        world.feed([overrun()]);
        world.pass(GATHER);
        assert_eq!(
            (world.kernel.network.routes.len(), world.node.status.drift.repairs),
            (routes + 1, repairs),
            "{why}"
        );
        world.kernel.network.routes.retain(|key, _| key.destination.to_string() != "10.244.1.2/32");
    }
}

#[test]
fn a_device_has_the_ifindex_that_the_kernel_gives_it() {
    let mut world = World::new();
    world.hold();
    world.feed(cluster());
    world.deliver();
    world.kernel.network.links.insert(IfIndex(7), link(IfName::new("other0").unwrap()));
    world.release();
    assert_eq!(world.node.kernel.have(), Some(&world.kernel.network), "read back, not guessed");
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn a_notification_of_our_own_change_is_expected_and_one_that_undoes_it_is_not() {
    let mut world = World::settled();
    let notification = |mac| {
        let neighbour = overlay::NetNotification::Neighbour { address: "10.244.2.0".parse().unwrap(), mac };
        Input::Notification(KernelNotification::Network(vec![neighbour]))
    };
    let before = world.node.wake_at();
    world.feed([notification(Some(Mac([2, 0, 0, 0, 1, 2])))]);
    assert_eq!(world.node.wake_at(), before);
    world.feed([notification(None)]);
    assert_eq!(world.node.wake_at(), Some(world.now.monotonic + GATHER));
}
