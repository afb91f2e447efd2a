//! Cluster states in, plans out. Each plan is executed on the state as the API server would, and the result planned again.

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap};
use serde_json::{Value, json};
use towpath_crds::condition::{ConfigCondition, find};

use super::*;
use crate::{
    events::EventReason,
    facts::{PodFacts, PodHealth},
    store::{ObjectEvent, Store},
    testing::{nets, node_table, now, report, table},
};

fn operator() -> OperatorInfo {
    OperatorInfo { image: "towpath.local/towpath:0.1.0".to_owned(), version: "0.1.0".to_owned() }
}

fn config(spec: &Value) -> NetworkConfig {
    serde_json::from_value(json!({
        "apiVersion": "towpath.io/v1alpha1", "kind": "NetworkConfig",
        "metadata": {"name": "default", "generation": 1, "uid": "u"}, "spec": spec,
    }))
    .unwrap()
}

/// A cluster of two nodes with a NetworkConfig and no children.
fn new_cluster(spec: &Value) -> ClusterState {
    ClusterState {
        configs: table([("default".to_owned(), Box::new(config(spec)))]),
        nodes: node_table(&[&["10.244.0.0/24"], &["10.244.1.0/24"]]),
        reports: table([]),
        pods: table([]),
        daemon_sets: table([]),
        config_maps: table([]),
        service_cidrs: table([("kubernetes".to_owned(), nets(&["10.96.0.0/16"]))]),
    }
}

fn plan_of(cluster: &ClusterState) -> Plan {
    let state = ReconcileState::default();
    plan(&PlanContext { cluster, operator: &operator(), state: &state, now: now() }).unwrap()
}

/// Executes a plan on the state, as API server, DaemonSet controller and agents would.
fn execute(cluster: &mut ClusterState, plan: &Plan) {
    let mut config = cluster.configs.get("default").unwrap().clone();
    if plan.finalizer == FinalizerChange::Add {
        config.metadata.finalizers = Some(vec![names::FINALIZER.to_owned()]);
    }
    if let Some(status) = &plan.status {
        config.status = Some(status.clone());
    }
    cluster.configs.apply(ObjectEvent::Applied("default".to_owned(), config));
    for planned in &plan.writes {
        match &planned.write {
            Write::Apply(child) => save(cluster, child),
            Write::Delete(ChildKind::ConfigMap, name) => {
                cluster.config_maps.apply(ObjectEvent::Deleted(name.clone()));
            }
            Write::Delete(ChildKind::DaemonSet, name) => {
                cluster.daemon_sets.apply(ObjectEvent::Deleted(name.clone()));
            }
            Write::RemoveFields(_) => panic!("nothing was added"),
        }
    }
}

fn save(cluster: &mut ClusterState, child: &Child) {
    match child.kind {
        ChildKind::ConfigMap => {
            let map: ConfigMap = serde_json::from_value(child.value.clone()).unwrap();
            cluster.config_maps.apply(ObjectEvent::Applied(child.name.clone(), Box::new(map)));
        }
        ChildKind::DaemonSet => {
            let mut value = child.value.clone();
            value["metadata"]["generation"] = json!(1);
            value["status"] = json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
                "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2, "numberAvailable": 2});
            let set: DaemonSet = serde_json::from_value(value).unwrap();
            cluster.daemon_sets.apply(ObjectEvent::Applied(child.name.clone(), Box::new(set)));
        }
    }
}

/// The revision that the DaemonSet names.
fn revision(cluster: &ClusterState) -> String {
    let set = children::json_of(cluster.daemon_sets.get(names::AGENT).unwrap().as_ref());
    children::template_revision(&set).unwrap().to_owned()
}

fn agents_come_up(cluster: &mut ClusterState) {
    let revision = revision(cluster);
    for node in ["n0", "n1"] {
        let pod = PodFacts { node: Some(node.to_owned()), health: PodHealth::Ready };
        cluster.pods.apply(ObjectEvent::Applied(format!("agent-{node}"), pod));
        cluster.reports.apply(ObjectEvent::Applied(node.to_owned(), report(&revision)));
    }
}

/// A cluster with the network rolled out and every node ready.
fn running(spec: &Value) -> ClusterState {
    let mut cluster = new_cluster(spec);
    let first = plan_of(&cluster);
    execute(&mut cluster, &first);
    agents_come_up(&mut cluster);
    let second = plan_of(&cluster);
    execute(&mut cluster, &second);
    assert_eq!(ready(&cluster), ("True".to_owned(), "AllNodesReady".to_owned()));
    cluster
}

fn condition(cluster: &ClusterState, type_: ConfigCondition) -> Option<(String, String)> {
    let status = cluster.configs.get("default").unwrap().status.clone().unwrap();
    find(&status.conditions, type_.as_str()).map(|c| (c.status.clone(), c.reason.clone()))
}

fn ready(cluster: &ClusterState) -> (String, String) {
    condition(cluster, ConfigCondition::Ready).unwrap()
}

fn edit(cluster: &mut ClusterState, change: impl FnOnce(&mut NetworkConfig)) {
    let mut config = cluster.configs.get("default").unwrap().clone();
    change(&mut config);
    cluster.configs.apply(ObjectEvent::Applied("default".to_owned(), config));
}

/// The writes of a plan as text.
fn writes(plan: &Plan) -> Vec<String> {
    let text = |planned: &PlannedWrite| match &planned.write {
        Write::Apply(child) => format!("apply {}", child.kind.as_str()),
        Write::RemoveFields(_) => "remove fields".to_owned(),
        Write::Delete(kind, _) => format!("delete {}", kind.as_str()),
    };
    plan.writes.iter().map(text).collect()
}

fn emitted(plan: &Plan) -> Vec<EventReason> {
    plan.writes.iter().filter_map(|s| s.event.as_ref()).chain(&plan.events).map(|n| n.reason).collect()
}

#[test]
fn the_first_plan_rolls_out_and_the_next_has_nothing_to_write() {
    let mut cluster = new_cluster(&json!({"podCIDRs": ["10.244.0.0/16"]}));
    let first = plan_of(&cluster);
    assert_eq!(first.finalizer, FinalizerChange::Add, "before there is anything to clean up");
    assert_eq!(writes(&first), ["apply ConfigMap", "apply DaemonSet"], "the configuration first");
    assert_eq!(emitted(&first), [EventReason::RolloutStarted]);
    execute(&mut cluster, &first);
    assert_eq!(ready(&cluster), ("False".to_owned(), "RolloutInProgress".to_owned()));

    agents_come_up(&mut cluster);
    let second = plan_of(&cluster);
    assert_eq!((writes(&second), emitted(&second)), (vec![], vec![EventReason::AllNodesReady]));
    execute(&mut cluster, &second);
    assert!(plan_of(&cluster).is_empty(), "nothing changed, so nothing is written: {:?}", plan_of(&cluster));
}

#[test]
fn an_edited_child_is_restored_and_a_deleted_one_recreated() {
    let healthy = running(&json!({}));
    let mut edited = healthy.clone();
    let mut set = edited.daemon_sets.get(names::AGENT).unwrap().clone();
    set.spec.as_mut().unwrap().template.spec.as_mut().unwrap().host_network = Some(false);
    edited.daemon_sets.apply(ObjectEvent::Applied(names::AGENT.to_owned(), set));
    let mut without_set = healthy.clone();
    without_set.daemon_sets.apply(ObjectEvent::Deleted(names::AGENT.to_owned()));
    let mut without_map = healthy.clone();
    without_map.config_maps.apply(ObjectEvent::Deleted(names::agent_config_map(&revision(&healthy))));
    for (cluster, want, why) in [
        (edited, "apply DaemonSet", "a value was changed"),
        (without_set, "apply DaemonSet", "the DaemonSet was deleted"),
        (without_map, "apply ConfigMap", "the configuration in use was deleted"),
    ] {
        let plan = plan_of(&cluster);
        assert_eq!(writes(&plan), [want], "{why}");
        assert_eq!(emitted(&plan).first(), Some(&EventReason::DriftRepaired), "{why}");
    }
}

#[test]
fn a_new_configuration_is_a_new_revision_and_the_old_one_is_deleted_when_no_pod_uses_it() {
    let mut cluster = running(&json!({}));
    edit(&mut cluster, |config| {
        config.spec.mtu = Some(1400);
        config.metadata.generation = Some(2);
    });
    let roll = plan_of(&cluster);
    assert_eq!(writes(&roll), ["apply ConfigMap", "apply DaemonSet"]);
    assert_eq!(emitted(&roll), [EventReason::RolloutStarted]);

    execute(&mut cluster, &roll);
    assert_eq!(ready(&cluster).0, "False", "the agents still report the old revision");
    let mut rolling = cluster.clone();
    let mut set = rolling.daemon_sets.get(names::AGENT).unwrap().clone();
    set.status.as_mut().unwrap().updated_number_scheduled = Some(1);
    rolling.daemon_sets.apply(ObjectEvent::Applied(names::AGENT.to_owned(), set));
    assert!(writes(&plan_of(&rolling)).is_empty(), "an old pod may still start with the old configuration");
    assert_eq!(writes(&plan_of(&cluster)), ["delete ConfigMap"]);
}

#[test]
fn a_failed_check_writes_no_daemon_set_and_reports_its_reason() {
    for (spec, reason) in [
        (json!({"podCIDRs": ["10.9.0.0/16"]}), "PodCIDRConflict"),
        (json!({"podCIDRs": ["10.0.0.0/8"]}), "CIDROverlap"),
        (json!({"podCIDRs": ["10.244.0.0/16", "fd00::/56"]}), "PodCIDRMissing"),
    ] {
        let mut cluster = new_cluster(&spec);
        let plan = plan_of(&cluster);
        assert_eq!(writes(&plan), Vec::<String>::new(), "{reason}");
        assert_eq!(emitted(&plan), [EventReason::PreflightFailed], "{reason}");
        execute(&mut cluster, &plan);
        let passed = condition(&cluster, ConfigCondition::PreflightPassed);
        assert_eq!(passed, Some(("False".to_owned(), reason.to_owned())));
        assert_eq!(condition(&cluster, ConfigCondition::Stalled).unwrap().1, "PreflightFailed", "{reason}");
        assert!(plan_of(&cluster).is_empty(), "{reason}: emitted once");
    }
}

#[test]
fn a_change_that_fails_its_check_leaves_the_old_revision_running() {
    let mut cluster = running(&json!({}));
    let before = revision(&cluster);
    edit(&mut cluster, |config| config.spec.mtu = Some(9000));
    let plan = plan_of(&cluster);
    assert_eq!(writes(&plan), Vec::<String>::new());
    execute(&mut cluster, &plan);
    assert_eq!(condition(&cluster, ConfigCondition::PreflightPassed).unwrap().1, "MTUTooLarge");
    let nodes = cluster.configs.get("default").unwrap().status.clone().unwrap().nodes.unwrap();
    assert_eq!((revision(&cluster), nodes.summary.as_str()), (before, "2/2"), "the nodes are as ready as before");
}

#[test]
fn a_revision_that_passed_is_repaired_even_while_a_check_fails() {
    let mut cluster = running(&json!({"podCIDRs": ["10.244.0.0/16"]}));
    let late = crate::testing::node(2, &[]);
    cluster.nodes.apply(ObjectEvent::Applied("n2".to_owned(), late));
    cluster.daemon_sets.apply(ObjectEvent::Deleted(names::AGENT.to_owned()));
    let plan = plan_of(&cluster);
    assert_eq!(writes(&plan), ["apply DaemonSet"]);
    assert!(emitted(&plan).contains(&EventReason::PreflightFailed), "the node without podCIDR is named too");
}

#[test]
fn a_spec_that_contradicts_itself_is_reported_as_invalid() {
    let mut cluster = new_cluster(&json!({"podCIDRs": ["10.244.0.0"]}));
    let plan = plan_of(&cluster);
    assert_eq!((writes(&plan), emitted(&plan)), (vec![], vec![EventReason::InvalidConfiguration]));
    execute(&mut cluster, &plan);
    assert_eq!(ready(&cluster), ("False".to_owned(), "InvalidConfiguration".to_owned()));
}

#[test]
fn an_unmanaged_network_is_not_written() {
    let mut cluster = new_cluster(&json!({"managementState": "Unmanaged"}));
    let plan = plan_of(&cluster);
    assert_eq!((plan.finalizer, writes(&plan)), (FinalizerChange::Keep, vec![]));
    execute(&mut cluster, &plan);
    assert_eq!(ready(&cluster), ("Unknown".to_owned(), "Unmanaged".to_owned()));
    assert!(plan_of(&cluster).is_empty());
}

#[test]
fn a_failure_is_reported_in_the_status_until_a_reconcile_succeeds() {
    let mut cluster = running(&json!({}));
    let state = ReconcileState {
        error: Some("apply DaemonSet towpath-agent: forbidden".to_owned()),
        ..ReconcileState::default()
    };
    let failing = plan(&PlanContext { cluster: &cluster, operator: &operator(), state: &state, now: now() }).unwrap();
    execute(&mut cluster, &failing);
    assert_eq!(condition(&cluster, ConfigCondition::Reconciling).unwrap().1, "RetryingAfterError");
    let next = plan_of(&cluster);
    execute(&mut cluster, &next);
    assert_eq!(condition(&cluster, ConfigCondition::Reconciling), None);
}

#[path = "removal_tests.rs"]
mod removal_tests;
#[path = "undecodable_tests.rs"]
mod undecodable_tests;
