//! What happens while something else is under way: the outside has done what it was asked for, and not told yet.

use towpath_core::overlay::{IfIndex, Link, LinkKind, LinkState};

use super::*;

fn overrun() -> Input {
    Input::Notice(Notice::Net(vec![overlay::NetNotification::Overrun]))
}

fn link(name: IfName) -> Link {
    Link { name, mac: None, mtu: 1450, state: LinkState::Up, kind: LinkKind::Other("veth".to_owned()) }
}

#[test]
fn of_a_pod_that_comes_or_goes_while_the_files_are_read_the_plugin_knows_more() {
    let mut world = World::settled();
    world.hear([pod_event("a"), pod_event("b")]);
    drop(world.add_pod("a", "10.244.1.2"));
    world.hear([overrun()]);
    world.hold();
    world.pass(GATHER);
    world.remove_pod("a", "10.244.1.2");
    let mut answer = world.add_pod("b", "10.244.1.3");
    world.release();
    assert_eq!(answer.try_recv().unwrap(), Reply::Ok);
    let pods: Vec<&str> = world.node.index.endpoints().values().map(|endpoint| endpoint.pod.name.as_str()).collect();
    assert_eq!(pods, ["b"]);
}

#[test]
fn what_the_cluster_wants_otherwise_meanwhile_is_no_drift() {
    let mut world = World::settled();
    world.reach.net.kernel.fdb.clear();
    world.hear([overrun()]);
    world.hold();
    world.pass(GATHER);
    world.hear([node_event(peer("n3", 3))]);
    world.release();
    assert_eq!((world.reach.net.kernel.fdb.len(), world.node.drift.repairs), (2, 0), "read, and then wanted otherwise");

    world.reach.nft.table = ruleset::fake::FakeTable::default();
    world.hear([overrun()]);
    world.hold();
    world.hear([Input::Notice(Notice::Table)]);
    world.pass(GATHER);
    world.tell();
    world.hear([node_event(peer("n4", 4))]);
    world.release();
    assert_eq!((world.reach.net.kernel.fdb.len(), world.node.drift.repairs), (3, 0), "between two readings");
}

#[test]
fn a_route_to_a_pod_that_is_being_made_is_no_repair_and_one_that_is_lost_later_is() {
    let mut world = World::settled();
    world.hear([pod_event("a")]);
    drop(world.add_pod("a", "10.244.1.2"));
    world.reach.net.kernel.links.insert(IfIndex(9), link(IfName::of_pod("default", "a")));
    for (repairs, why) in [(0, "the plugin may be about to"), (1, "it was there long since")] {
        let routes = world.reach.net.kernel.routes.len();
        world.hear([overrun()]);
        world.pass(GATHER);
        assert_eq!((world.reach.net.kernel.routes.len(), world.node.drift.repairs), (routes + 1, repairs), "{why}");
        world.reach.net.kernel.routes.retain(|key, _| key.destination.to_string() != "10.244.1.2/32");
    }
}

#[test]
fn a_device_has_the_number_that_the_kernel_gives_it() {
    let mut world = World::new();
    world.hold();
    world.hear(cluster());
    world.tell();
    world.reach.net.kernel.links.insert(IfIndex(7), link(IfName::new("other0").unwrap()));
    world.release();
    assert_eq!(world.node.net.have.as_ref(), Some(&world.reach.net.kernel), "read back, not guessed");
    assert_eq!(world.truth("Ready").0, "True");
}

#[test]
fn our_own_doing_is_no_news_and_what_undoes_it_is() {
    let mut world = World::settled();
    let told = |mac| {
        let neighbour = overlay::NetNotification::Neighbour { address: "10.244.2.0".parse().unwrap(), mac };
        Input::Notice(Notice::Net(vec![neighbour]))
    };
    let before = world.node.wake_at();
    world.hear([told(Some(Mac([2, 0, 0, 0, 1, 2])))]);
    assert_eq!(world.node.wake_at(), before);
    world.hear([told(None)]);
    assert_eq!(world.node.wake_at(), Some(world.now.instant + GATHER));
}
