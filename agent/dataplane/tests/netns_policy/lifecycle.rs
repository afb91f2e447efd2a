//! Changes of pods, namespaces and policies take effect in the table.

use serde_json::json;
use towpath_core::model::Family;
use towpath_index::{Event, ObjectChange};

use crate::{
    cluster::{endpoint, namespace, pods},
    scenario::{check, check_in, scenario},
    testbed::Testbed,
};

/// A policy that allows ingress only from pods with tier=back in namespaces with team=red.
const BACK_OF_RED: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, \
     podSelector: {matchLabels: {tier: back}}}]}]}";

/// Updates the pod of that name in the index.
fn update_pod(testbed: &mut Testbed, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let mut pod = pods().into_iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
    change(&mut pod);
    let _ =
        testbed.cluster.index.apply(Event::Pod(Box::new(ObjectChange::Applied(serde_json::from_value(pod).unwrap()))));
    testbed.apply();
}

#[test]
fn a_change_of_a_pods_labels_takes_effect() {
    let mut testbed = Testbed::new();
    testbed.cluster.add_policy("shop", "p", BACK_OF_RED);
    testbed.apply();
    check(&mut testbed, "client has tier=front", "opsweb,remote > web tcp 80", "client > web tcp 80");
    update_pod(&mut testbed, "client", |pod| pod["metadata"]["labels"]["tier"] = json!("back"));
    check(&mut testbed, "client has tier=back now", "client,opsweb > web tcp 80", "");
    update_pod(&mut testbed, "opsweb", |pod| pod["metadata"]["labels"] = json!({}));
    check(&mut testbed, "a label was removed", "client > web tcp 80", "opsweb > web tcp 80");
    update_pod(&mut testbed, "web", |pod| pod["metadata"]["labels"] = json!({ "app": "other" }));
    check(
        &mut testbed,
        "the empty podSelector selects whatever labels the destination has",
        "client > web tcp 80",
        "opsweb > web tcp 80",
    );
}

#[test]
fn a_change_of_a_namespaces_labels_takes_effect() {
    let mut testbed = Testbed::new();
    testbed.cluster.add_policy("shop", "p", BACK_OF_RED);
    let relabel = |testbed: &mut Testbed, team| {
        let object = serde_json::from_value(namespace("ops", team)).unwrap();
        let _ = testbed.cluster.index.apply(Event::Namespace(Box::new(ObjectChange::Applied(object))));
        testbed.apply();
    };
    relabel(&mut testbed, "red");
    check(&mut testbed, "red", "opsweb > web tcp 80", "client > web tcp 80");
    relabel(&mut testbed, "green");
    check(&mut testbed, "not red any more", "opsweb > opsweb tcp 80", "opsweb > web tcp 80");
}

#[test]
fn a_completed_pod_is_removed_from_all_sets_and_a_terminating_pod_is_not() {
    let mut testbed = Testbed::new();
    testbed.cluster.add_policy("shop", "p", BACK_OF_RED);
    testbed.apply();
    check(
        &mut testbed,
        "one runs, one is terminating, one is completed",
        "remote,terminating > web tcp 80",
        "completed > web tcp 80",
    );
    for phase in ["Succeeded", "Failed"] {
        update_pod(&mut testbed, "remote", |pod| pod["status"]["phase"] = json!(phase));
        check(&mut testbed, phase, "terminating > web tcp 80", "remote > web tcp 80");
        update_pod(&mut testbed, "remote", |_| ());
        check(&mut testbed, "a running pod has the address again", "remote > web tcp 80", "");
    }
}

#[test]
fn a_policy_applies_to_pods_that_match_later_until_it_is_deleted() {
    let mut testbed = Testbed::new();
    testbed.cluster.add_policy(
        "shop",
        "open",
        "{podSelector: {matchLabels: {app: late}}, ingress: [{ports: [{port: 80}]}]}",
    );
    testbed.apply();
    check(&mut testbed, "no pod has app=late yet", "client > bare tcp 80|tcp 81", "");
    update_pod(&mut testbed, "bare", |pod| pod["metadata"]["labels"] = json!({ "app": "late" }));
    check(&mut testbed, "the policy is older than the label", "client > bare tcp 80", "client > bare tcp 81");
    testbed.cluster.add_policy("shop", "more", "{podSelector: {}, ingress: [{ports: [{port: 81}]}]}");
    testbed.apply();
    check(&mut testbed, "a second policy", "client > bare tcp 80|tcp 81", "client > bare tcp 82");
    testbed.cluster.remove_policy("shop", "open");
    testbed.apply();
    check(&mut testbed, "the first policy was deleted", "client > bare tcp 81", "client > bare tcp 80");
    testbed.cluster.remove_policy("shop", "more");
    testbed.apply();
    check(&mut testbed, "the last policy was deleted", "client > bare tcp 80|tcp 81|icmp", "");
}

#[test]
fn traffic_of_an_unknown_interface_or_an_unknown_pod_is_dropped() {
    let mut testbed = Testbed::new();
    let db = endpoint("db");
    let _ = testbed.cluster.index.remove_local_endpoint(&db.interface());
    testbed.apply();
    let denied = "db > web,outside,node tcp 80|udp 53|icmp";
    check(&mut testbed, "unknown interface", "web > client tcp 80", denied);
    testbed.cluster.add_local_endpoint(db);
    testbed.apply();
    check(&mut testbed, "known interface", "db > web,outside,node tcp 80; web > db tcp 80", "");
    let pod = pods().into_iter().find(|pod| pod["metadata"]["name"] == "db").unwrap();
    let _ =
        testbed.cluster.index.apply(Event::Pod(Box::new(ObjectChange::Deleted(serde_json::from_value(pod).unwrap()))));
    testbed.apply();
    check(
        &mut testbed,
        "known interface, unknown pod",
        "node > db tcp 80",
        "db > web,outside,node tcp 80; web > db tcp 80",
    );
}

#[test]
fn an_ip_block_allows_only_its_own_family() {
    let mut testbed = Testbed::new();
    let spec = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}";
    testbed.cluster.add_policy("shop", "p", spec);
    testbed.apply();
    for (family, passes) in [(Family::V4, true), (Family::V6, false)] {
        let (pass, drop) = if passes { ("outside > web tcp 80", "") } else { ("", "outside > web tcp 80") };
        let expected = scenario("one family", "a block of one family allows nothing in the other", "", pass, drop);
        check_in(&mut testbed, &expected, &[family]);
    }
}
