//! Deletion: Orphan, Teardown, and the bound.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};

use super::*;

/// The network runs, and then its NetworkConfig is deleted, `seconds` before now.
fn deleted(spec: &Value, seconds: i64) -> ClusterState {
    let mut cluster = running(spec);
    edit(&mut cluster, |config| {
        config.metadata.deletion_timestamp = Some(Time(now() - SignedDuration::from_secs(seconds)));
    });
    cluster
}

fn nodes_are_clean(cluster: &mut ClusterState) {
    for node in ["n0", "n1"] {
        cluster.reports.apply(ObjectEvent::Deleted(node.to_owned()));
    }
}

#[test]
fn an_orphan_keeps_running_and_a_new_network_config_takes_it_over_without_a_rollout() {
    let mut cluster = deleted(&json!({"deletionPolicy": "Orphan"}), 1);
    let plan = plan_of(&cluster);
    assert_eq!((plan.finalizer, writes(&plan)), (FinalizerChange::Remove, vec![]));
    assert_eq!(emitted(&plan), [EventReason::Orphaned]);

    cluster.configs.apply(ObjectEvent::Applied("default".to_owned(), Box::new(config(&json!({})))));
    let adoption = plan_of(&cluster);
    assert_eq!((adoption.finalizer, writes(&adoption)), (FinalizerChange::Add, vec![]), "nothing is rolled out again");
}

#[test]
fn a_teardown_waits_until_every_node_is_clean_and_then_removes_everything() {
    let mut cluster = deleted(&json!({"deletionPolicy": "Teardown"}), 1);
    let start = plan_of(&cluster);
    assert_eq!((start.finalizer, writes(&start)), (FinalizerChange::Keep, vec!["apply DaemonSet".to_owned()]));
    assert_eq!(emitted(&start), [EventReason::TeardownStarted]);
    execute(&mut cluster, &start);
    assert_eq!(condition(&cluster, ConfigCondition::Reconciling).unwrap().1, "TearingDown");

    assert!(plan_of(&cluster).writes.is_empty(), "both NetworkNodes are there still");
    nodes_are_clean(&mut cluster);
    let end = plan_of(&cluster);
    assert_eq!(writes(&end), ["delete DaemonSet", "delete ConfigMap"]);
    assert_eq!((end.finalizer, emitted(&end)), (FinalizerChange::Remove, vec![EventReason::TeardownComplete]));
}

#[test]
fn a_node_without_a_report_is_not_clean_until_its_agent_is_available() {
    let mut cluster = deleted(&json!({"deletionPolicy": "Teardown"}), 1);
    nodes_are_clean(&mut cluster);
    let plan = plan_of(&cluster);
    assert_eq!((plan.finalizer, writes(&plan)), (FinalizerChange::Keep, vec!["apply DaemonSet".to_owned()]));
    execute(&mut cluster, &plan);
    let mut set = cluster.daemon_sets.get(names::AGENT).unwrap().clone();
    set.status.as_mut().unwrap().number_available = None;
    cluster.daemon_sets.apply(ObjectEvent::Applied(names::AGENT.to_owned(), set));
    assert_eq!(plan_of(&cluster).finalizer, FinalizerChange::Keep, "one agent is still at work");
}

#[test]
fn a_teardown_ends_at_its_bound_and_names_the_remaining_nodes() {
    let mut cluster = deleted(&json!({"deletionPolicy": "Teardown"}), 119);
    cluster.reports.apply(ObjectEvent::Deleted("n0".to_owned()));
    let waiting = plan_of(&cluster);
    assert_eq!(waiting.replan_at, Some(now() + SignedDuration::from_secs(1)), "plans again at the bound");

    let mut cluster = deleted(&json!({"deletionPolicy": "Teardown"}), 120);
    cluster.reports.apply(ObjectEvent::Deleted("n0".to_owned()));
    let end = plan_of(&cluster);
    assert_eq!((end.finalizer, emitted(&end)), (FinalizerChange::Remove, vec![EventReason::TeardownIncomplete]));
    assert!(end.events[0].note.contains("n1") && !end.events[0].note.contains("n0"), "{}", end.events[0].note);
}

#[test]
fn an_unmanaged_network_is_orphaned_whatever_the_policy() {
    let mut cluster = deleted(&json!({"deletionPolicy": "Teardown"}), 1);
    edit(&mut cluster, |config| config.spec.management_state = ManagementState::Unmanaged);
    assert_eq!(emitted(&plan_of(&cluster)), [EventReason::Orphaned]);
}

#[test]
fn a_teardown_without_a_rollout_is_complete_at_once() {
    let mut cluster = new_cluster(&json!({"deletionPolicy": "Teardown", "podCIDRs": ["10.9.0.0/16"]}));
    let first = plan_of(&cluster);
    execute(&mut cluster, &first);
    edit(&mut cluster, |config| config.metadata.deletion_timestamp = Some(Time(now())));
    let plan = plan_of(&cluster);
    assert_eq!((plan.finalizer, writes(&plan)), (FinalizerChange::Remove, vec![]));
}
