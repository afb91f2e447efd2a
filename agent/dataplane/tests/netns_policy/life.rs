//! The table follows the life of pods, namespaces and policies: tested with packets.

use serde_json::json;
use towpath_core::model::Family;
use towpath_index::{Event, ObjectChange};

use crate::{
    cluster::{namespace, pods, who},
    scenario::{check, check_in, scenario},
    world::World,
};

/// A policy that lets pods with tier=back of namespaces with team=red in, and nobody else.
const BACK_OF_RED: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, \
     podSelector: {matchLabels: {tier: back}}}]}]}";

/// Updates the pod of that name in the index.
fn change_pod(world: &mut World, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let mut pod = pods().into_iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
    change(&mut pod);
    let _ =
        world.cluster.index.apply(Event::Pod(Box::new(ObjectChange::Applied(serde_json::from_value(pod).unwrap()))));
    world.apply();
}

#[test]
fn a_pods_labels_count_as_they_are_now() {
    let mut world = World::new();
    world.cluster.add_policy("shop", "p", BACK_OF_RED);
    world.apply();
    check(&mut world, "client is in front", "opsweb,far > web tcp 80", "client > web tcp 80");
    change_pod(&mut world, "client", |pod| pod["metadata"]["labels"]["tier"] = json!("back"));
    check(&mut world, "client has moved to the back", "client,opsweb > web tcp 80", "");
    change_pod(&mut world, "opsweb", |pod| pod["metadata"]["labels"] = json!({}));
    check(&mut world, "a label was removed", "client > web tcp 80", "opsweb > web tcp 80");
    change_pod(&mut world, "web", |pod| pod["metadata"]["labels"] = json!({ "app": "other" }));
    check(&mut world, "the receiver's own labels are selected by all", "client > web tcp 80", "opsweb > web tcp 80");
}

#[test]
fn a_namespaces_labels_count_as_they_are_now() {
    let mut world = World::new();
    world.cluster.add_policy("shop", "p", BACK_OF_RED);
    let relabel = |world: &mut World, team| {
        let object = serde_json::from_value(namespace("ops", team)).unwrap();
        let _ = world.cluster.index.apply(Event::Namespace(Box::new(ObjectChange::Applied(object))));
        world.apply();
    };
    relabel(&mut world, "red");
    check(&mut world, "red", "opsweb > web tcp 80", "client > web tcp 80");
    relabel(&mut world, "green");
    check(&mut world, "red no longer", "opsweb > opsweb tcp 80", "opsweb > web tcp 80");
}

#[test]
fn a_pod_that_has_run_to_its_end_leaves_all_sets_and_one_that_is_ending_does_not() {
    let mut world = World::new();
    world.cluster.add_policy("shop", "p", BACK_OF_RED);
    world.apply();
    check(&mut world, "one runs, one is ending, one has ended", "far,leaving > web tcp 80", "done > web tcp 80");
    for phase in ["Succeeded", "Failed"] {
        change_pod(&mut world, "far", |pod| pod["status"]["phase"] = json!(phase));
        check(&mut world, phase, "leaving > web tcp 80", "far > web tcp 80");
        change_pod(&mut world, "far", |_| ());
        check(&mut world, "the address runs again", "far > web tcp 80", "");
    }
}

#[test]
fn a_policy_counts_before_its_pods_are_there_and_no_longer_when_it_is_gone() {
    let mut world = World::new();
    world.cluster.add_policy(
        "shop",
        "open",
        "{podSelector: {matchLabels: {app: late}}, ingress: [{ports: [{port: 80}]}]}",
    );
    world.apply();
    check(&mut world, "nobody is late yet", "client > bare tcp 80|tcp 81", "");
    change_pod(&mut world, "bare", |pod| pod["metadata"]["labels"] = json!({ "app": "late" }));
    check(&mut world, "the policy was there first", "client > bare tcp 80", "client > bare tcp 81");
    world.cluster.add_policy("shop", "more", "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}");
    world.apply();
    check(&mut world, "one more", "client > bare tcp 80|tcp 81", "client > bare tcp 82");
    world.cluster.remove_policy("shop", "open");
    world.apply();
    check(&mut world, "one less", "client > bare tcp 81", "client > bare tcp 80");
    world.cluster.remove_policy("shop", "more");
    world.apply();
    check(&mut world, "the last policy was deleted", "client > bare tcp 80|tcp 81|icmp", "");
}

#[test]
fn an_interface_that_nobody_knows_is_closed_and_a_pod_that_nobody_knows_too() {
    let mut world = World::new();
    let db = who("db");
    let _ = world.cluster.index.remove_local_endpoint(&db.interface());
    world.apply();
    let closed = "db > web,outside,node tcp 80|udp 53|icmp";
    check(&mut world, "the interface is not known", "web > client tcp 80", closed);
    world.cluster.know(db);
    world.apply();
    check(&mut world, "it is", "db > web,outside,node tcp 80; web > db tcp 80", "");
    let pod = pods().into_iter().find(|pod| pod["metadata"]["name"] == "db").unwrap();
    let _ =
        world.cluster.index.apply(Event::Pod(Box::new(ObjectChange::Deleted(serde_json::from_value(pod).unwrap()))));
    world.apply();
    check(
        &mut world,
        "the interface is, the pod is not",
        "node > db tcp 80",
        "db > web,outside,node tcp 80; web > db tcp 80",
    );
}

#[test]
fn each_family_is_for_itself() {
    let mut world = World::new();
    let spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}";
    world.cluster.add_policy("shop", "p", spec);
    world.apply();
    for (family, passes) in [(Family::V4, true), (Family::V6, false)] {
        let (pass, drop) = if passes { ("outside > web tcp 80", "") } else { ("", "outside > web tcp 80") };
        let asked = scenario("one family", "a block of one family opens nothing in the other", "", pass, drop);
        check_in(&mut world, &asked, &[family]);
    }
}
