//! Objects that cannot be decoded: their last known state holds, and nothing follows from their absence.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration};

use super::*;

fn undecodable<T>(name: &str) -> ObjectEvent<T> {
    ObjectEvent::Undecodable(name.to_owned())
}

/// The store as after a restart of the operator, with one object that cannot be decoded.
fn never_decoded<T: PartialEq>(name: &str) -> Store<T> {
    let mut store = Store::default();
    store.apply(ObjectEvent::ListStarted);
    store.apply(ObjectEvent::ListedUndecodable(name.to_owned()));
    store.apply(ObjectEvent::ListDone);
    store
}

fn reconciling(cluster: &ClusterState) -> Option<(String, String)> {
    condition(cluster, ConfigCondition::Reconciling)
}

/// A network whose teardown has begun, `seconds` ago; the DaemonSet has the command, both NetworkNodes exist.
fn tearing_down(seconds: i64) -> ClusterState {
    let mut cluster = running(&json!({"deletionPolicy": "Teardown"}));
    edit(&mut cluster, |config| {
        config.metadata.deletion_timestamp = Some(Time(now() - SignedDuration::from_secs(seconds)));
    });
    let start = plan_of(&cluster);
    execute(&mut cluster, &start);
    cluster
}

#[test]
fn undecodable_nodes_reports_and_pods_change_nothing_while_their_state_is_known() {
    let healthy = running(&json!({}));
    let with = |change: &dyn Fn(&mut ClusterState)| {
        let mut cluster = healthy.clone();
        change(&mut cluster);
        cluster
    };
    for (cluster, why) in [
        (with(&|c| _ = c.nodes.apply(undecodable("n0"))), "Node"),
        (with(&|c| _ = c.reports.apply(undecodable("n0"))), "NetworkNode"),
        (with(&|c| _ = c.pods.apply(undecodable("agent-n0"))), "Pod"),
        (with(&|c| _ = c.daemon_sets.apply(undecodable(names::AGENT))), "DaemonSet"),
        (with(&|c| _ = c.config_maps.apply(undecodable(&names::agent_config_map(&revision(&healthy))))), "ConfigMap"),
        (with(&|c| _ = c.configs.apply(undecodable("default"))), "NetworkConfig"),
        (with(&|c| _ = c.service_cidrs.apply(undecodable("kubernetes"))), "ServiceCIDR"),
    ] {
        assert!(plan_of(&cluster).is_empty(), "{why}: {:?}", plan_of(&cluster));
    }
}

#[test]
fn children_that_were_never_decoded_are_not_created_again() {
    let healthy = running(&json!({}));
    let config_map = names::agent_config_map(&revision(&healthy));
    let mut without_set = healthy.clone();
    without_set.daemon_sets = never_decoded(names::AGENT);
    let mut without_map = healthy.clone();
    without_map.config_maps = never_decoded(&config_map);
    for (mut cluster, name) in
        [(without_set, format!("DaemonSet {}", names::AGENT)), (without_map, format!("ConfigMap {config_map}"))]
    {
        let plan = plan_of(&cluster);
        assert_eq!((writes(&plan), emitted(&plan)), (vec![], vec![]), "{name}");
        let status = plan.status.clone().unwrap();
        let reconciling = find(&status.conditions, "Reconciling").unwrap();
        assert_eq!(reconciling.reason, "RetryingAfterError", "{name}");
        assert!(reconciling.message.contains(&name), "{}", reconciling.message);
        execute(&mut cluster, &plan);
        assert!(plan_of(&cluster).is_empty(), "{name}: reported once");
    }
}

#[test]
fn an_undecodable_daemon_set_is_not_written_and_its_rollout_resumes_when_it_can_be_decoded() {
    let mut cluster = running(&json!({}));
    let known = cluster.daemon_sets.get(names::AGENT).unwrap().clone();
    cluster.daemon_sets.apply(undecodable(names::AGENT));
    edit(&mut cluster, |config| config.spec.mtu = Some(1400));
    let held = plan_of(&cluster);
    assert_eq!(writes(&held), ["apply ConfigMap"], "a write that cannot be checked would be repeated forever");
    execute(&mut cluster, &held);
    assert_eq!(reconciling(&cluster).unwrap().1, "RetryingAfterError");
    assert_eq!(ready(&cluster).0, "False", "the new revision is not rolled out");
    assert!(plan_of(&cluster).is_empty(), "{:?}", plan_of(&cluster));

    cluster.daemon_sets.apply(ObjectEvent::Applied(names::AGENT.to_owned(), known));
    assert_eq!(writes(&plan_of(&cluster)), ["apply DaemonSet"]);
}

#[test]
fn a_config_map_in_use_by_an_undecodable_daemon_set_is_not_deleted() {
    let mut cluster = running(&json!({}));
    edit(&mut cluster, |config| config.spec.mtu = Some(1400));
    let roll = plan_of(&cluster);
    execute(&mut cluster, &roll);
    assert_eq!(writes(&plan_of(&cluster)), ["delete ConfigMap"], "decoded: the old one is unused");
    cluster.daemon_sets.apply(undecodable(names::AGENT));
    assert_eq!(writes(&plan_of(&cluster)), Vec::<String>::new());
}

#[test]
fn an_undecodable_network_config_is_kept_but_not_written() {
    let mut cluster = running(&json!({}));
    cluster.configs.apply(undecodable("default"));
    cluster.daemon_sets.apply(ObjectEvent::Deleted(names::AGENT.to_owned()));
    cluster.reports.apply(ObjectEvent::Deleted("n0".to_owned()));
    let plan = plan_of(&cluster);
    assert_eq!(writes(&plan), ["apply DaemonSet"], "children follow the last known spec");
    assert_eq!((plan.finalizer, plan.status, plan.events), (FinalizerChange::Keep, None, vec![]));

    cluster.configs = never_decoded("default");
    let state = ReconcileState::default();
    let context = PlanContext { cluster: &cluster, operator: &operator(), state: &state, now: now() };
    assert_eq!(super::super::plan(&context), None, "nothing is known of what is wanted");
}

#[test]
fn a_teardown_does_not_end_while_a_network_node_or_a_pod_cannot_be_decoded() {
    let clean = || {
        let mut cluster = tearing_down(1);
        for node in ["n0", "n1"] {
            cluster.reports.apply(ObjectEvent::Deleted(node.to_owned()));
        }
        cluster
    };
    assert_eq!(emitted(&plan_of(&clean())), [EventReason::TeardownComplete]);

    let mut known = tearing_down(1);
    known.reports.apply(ObjectEvent::Deleted("n1".to_owned()));
    known.reports.apply(undecodable("n0"));
    let mut unknown = clean();
    unknown.reports = never_decoded("n0");
    let mut busy = clean();
    busy.pods.apply(ObjectEvent::Applied(
        "agent-n0".to_owned(),
        PodFacts { node: Some("n0".to_owned()), health: PodHealth::Starting },
    ));
    busy.pods.apply(undecodable("agent-n0"));
    let mut unknown_pod = clean();
    unknown_pod.pods = never_decoded("agent-n0");
    let mut daemon_set = clean();
    daemon_set.daemon_sets.apply(undecodable(names::AGENT));
    for (mut cluster, why) in [
        (known, "a NetworkNode that was known"),
        (unknown, "a NetworkNode that was never decoded"),
        (busy, "a pod that was not ready"),
        (unknown_pod, "a pod that was never decoded"),
        (daemon_set, "a DaemonSet whose progress cannot be read"),
    ] {
        let plan = plan_of(&cluster);
        assert_eq!((plan.finalizer, writes(&plan)), (FinalizerChange::Keep, vec![]), "{why}");
        assert_eq!(plan.replan_at, Some(now() + SignedDuration::from_secs(119)), "{why}: the bound still holds");
        edit(&mut cluster, |config| {
            config.metadata.deletion_timestamp = Some(Time(now() - SignedDuration::from_secs(120)));
        });
        assert_eq!(plan_of(&cluster).finalizer, FinalizerChange::Remove, "{why}: the bound is over");
    }
}

#[test]
fn a_teardown_does_not_end_at_once_because_the_daemon_set_cannot_be_decoded() {
    let mut cluster = running(&json!({"deletionPolicy": "Teardown"}));
    let config_map = names::agent_config_map(&revision(&cluster));
    edit(&mut cluster, |config| config.metadata.deletion_timestamp = Some(Time(now())));
    cluster.daemon_sets = never_decoded(names::AGENT);
    let waiting = plan_of(&cluster);
    assert_eq!((waiting.finalizer, writes(&waiting)), (FinalizerChange::Keep, vec![]), "its agents may still run");
    execute(&mut cluster, &waiting);
    assert_eq!(reconciling(&cluster).unwrap().1, "RetryingAfterError");

    cluster.config_maps = never_decoded(&config_map);
    edit(&mut cluster, |config| {
        config.metadata.deletion_timestamp = Some(Time(now() - SignedDuration::from_secs(120)));
    });
    let end = plan_of(&cluster);
    assert_eq!(writes(&end), ["delete DaemonSet", "delete ConfigMap"], "to delete them, their names are enough");
    assert_eq!(emitted(&end), [EventReason::TeardownIncomplete]);
}

#[test]
fn a_config_map_that_was_never_decoded_still_shows_that_its_revision_passed() {
    let mut cluster = running(&json!({"podCIDRs": ["10.244.0.0/16"]}));
    cluster.config_maps = never_decoded(&names::agent_config_map(&revision(&cluster)));
    cluster.nodes.apply(ObjectEvent::Applied("n2".to_owned(), crate::testing::node(2, &[])));
    cluster.daemon_sets.apply(ObjectEvent::Deleted(names::AGENT.to_owned()));
    assert_eq!(writes(&plan_of(&cluster)), ["apply DaemonSet"], "a node without podCIDR holds only what is new");
}
