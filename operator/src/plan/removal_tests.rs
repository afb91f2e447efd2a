//! Deletion: Orphan, Teardown, and the bound.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};

use super::*;

/// The network runs, and then its NetworkConfig is deleted, `seconds` before now.
fn deleted(spec: &Value, seconds: i64) -> World {
    let mut world = running(spec);
    edit(&mut world, |config| {
        config.metadata.deletion_timestamp = Some(Time(now() - SignedDuration::from_secs(seconds)));
    });
    world
}

fn nodes_are_clean(world: &mut World) {
    for node in ["n0", "n1"] {
        world.reports.apply(table::Step::Gone(node.to_owned()));
    }
}

#[test]
fn an_orphan_is_left_running_and_a_new_network_config_finds_it_in_shape() {
    let mut world = deleted(&json!({"deletionPolicy": "Orphan"}), 1);
    let plan = plan_of(&world);
    assert_eq!((plan.finalizer, words(&plan)), (FinalizerStep::Remove, vec![]));
    assert_eq!(told(&plan), [NoticeReason::Orphaned]);

    world.configs.apply(table::Step::Set("default".to_owned(), Box::new(config(&json!({})))));
    let adoption = plan_of(&world);
    assert_eq!((adoption.finalizer, words(&adoption)), (FinalizerStep::Add, vec![]), "nothing is rolled out anew");
}

#[test]
fn a_teardown_waits_until_every_node_is_clean_and_then_removes_everything() {
    let mut world = deleted(&json!({"deletionPolicy": "Teardown"}), 1);
    let start = plan_of(&world);
    assert_eq!((start.finalizer, words(&start)), (FinalizerStep::Keep, vec!["apply DaemonSet".to_owned()]));
    assert_eq!(told(&start), [NoticeReason::TeardownStarted]);
    carry_out(&mut world, &start);
    assert_eq!(condition(&world, ConfigCondition::Reconciling).unwrap().1, "TearingDown");

    assert!(plan_of(&world).steps.is_empty(), "both NetworkNodes are there still");
    nodes_are_clean(&mut world);
    let end = plan_of(&world);
    assert_eq!(words(&end), ["delete DaemonSet", "delete ConfigMap"]);
    assert_eq!((end.finalizer, told(&end)), (FinalizerStep::Remove, vec![NoticeReason::TeardownComplete]));
}

#[test]
fn a_node_that_has_not_reported_yet_is_not_taken_for_a_clean_one() {
    let mut world = deleted(&json!({"deletionPolicy": "Teardown"}), 1);
    nodes_are_clean(&mut world);
    let plan = plan_of(&world);
    assert_eq!((plan.finalizer, words(&plan)), (FinalizerStep::Keep, vec!["apply DaemonSet".to_owned()]));
    carry_out(&mut world, &plan);
    let mut set = world.daemon_sets.get(names::AGENT).unwrap().clone();
    set.status.as_mut().unwrap().number_available = None;
    world.daemon_sets.apply(table::Step::Set(names::AGENT.to_owned(), set));
    assert_eq!(plan_of(&world).finalizer, FinalizerStep::Keep, "one agent is still at work");
}

#[test]
fn a_teardown_ends_when_its_time_is_over_and_names_the_rest() {
    let mut world = deleted(&json!({"deletionPolicy": "Teardown"}), 119);
    world.reports.apply(table::Step::Gone("n0".to_owned()));
    let waiting = plan_of(&world);
    assert_eq!(waiting.again_at, Some(now() + SignedDuration::from_secs(1)), "looks again at the bound");

    let mut world = deleted(&json!({"deletionPolicy": "Teardown"}), 120);
    world.reports.apply(table::Step::Gone("n0".to_owned()));
    let end = plan_of(&world);
    assert_eq!((end.finalizer, told(&end)), (FinalizerStep::Remove, vec![NoticeReason::TeardownIncomplete]));
    assert!(end.notices[0].note.contains("n1") && !end.notices[0].note.contains("n0"), "{}", end.notices[0].note);
}

#[test]
fn an_unmanaged_network_is_orphaned_whatever_the_policy() {
    let mut world = deleted(&json!({"deletionPolicy": "Teardown"}), 1);
    edit(&mut world, |config| config.spec.management_state = ManagementState::Unmanaged);
    assert_eq!(told(&plan_of(&world)), [NoticeReason::Orphaned]);
}

#[test]
fn a_teardown_of_what_was_never_rolled_out_is_over_at_once() {
    let mut world = cluster(&json!({"deletionPolicy": "Teardown", "podCIDRs": ["10.9.0.0/16"]}));
    let first = plan_of(&world);
    carry_out(&mut world, &first);
    edit(&mut world, |config| config.metadata.deletion_timestamp = Some(Time(now())));
    let plan = plan_of(&world);
    assert_eq!((plan.finalizer, words(&plan)), (FinalizerStep::Remove, vec![]));
}
