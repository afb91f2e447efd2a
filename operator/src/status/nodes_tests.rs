use serde_json::json;

use super::*;
use crate::{
    facts::ReadyCondition,
    store::ObjectEvent,
    testing::{node, now, report, table},
};

fn daemon_set(desired: i32, updated: i32) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": {"generation": 3},
        "status": {"observedGeneration": 3, "desiredNumberScheduled": desired, "updatedNumberScheduled": updated,
                   "currentNumberScheduled": desired, "numberMisscheduled": 0, "numberReady": desired},
    }))
    .unwrap()
}

fn pod(node: &str, health: PodHealth) -> PodFacts {
    PodFacts { node: Some(node.to_owned()), health }
}

/// One node n0 in the given condition.
fn one(kubelet: Kubelet, pod_health: Option<PodHealth>, report: Option<ReportFacts>) -> Fleet {
    let mut n0 = node(0, &["10.244.0.0/24"]);
    n0.kubelet = kubelet;
    fold(&FleetInputs {
        nodes: &table([("n0".to_owned(), n0)]),
        reports: &table(report.map(|r| ("n0".to_owned(), r))),
        pods: &table(pod_health.map(|h| ("p".to_owned(), pod("n0", h)))),
        daemon_set: Some(&daemon_set(1, 1)),
        revision: "r",
        now: now(),
    })
}

#[test]
fn the_state_of_a_node_follows_from_its_kubelet_its_pod_and_its_report() {
    use Kubelet::{Reachable, Unreachable};
    let ok = || Some(PodHealth::Ready);
    let not_ready = |reason: &str| ReportFacts {
        ready: Some(ReadyCondition { is_true: false, reason: reason.to_owned(), message: "no uplink".to_owned() }),
        ..report("r")
    };
    let old = ReportFacts { at: Some(now() - REPORT_TIMEOUT), ..report("r") };
    let cases = [
        (one(Reachable, ok(), Some(report("r"))), (1, 0, 0, 0), None, "no problem"),
        (
            one(Unreachable, ok(), Some(report("r"))),
            (0, 0, 1, 0),
            Some("NodeUnreachable"),
            "the report of a dead node does not count",
        ),
        (
            one(Reachable, Some(PodHealth::Failing("ImagePullBackOff".to_owned())), None),
            (0, 1, 0, 0),
            Some("ImagePullBackOff"),
            "the kubelet's reason reaches the user",
        ),
        (one(Reachable, ok(), None), (0, 0, 0, 1), Some("AgentStarting"), "no report yet"),
        (
            one(Reachable, ok(), Some(ReportFacts::default())),
            (0, 0, 0, 1),
            Some("AgentStarting"),
            "created, not filled in yet",
        ),
        (one(Reachable, None, None), (0, 0, 0, 1), Some("AgentMissing"), "no pod yet"),
        (one(Reachable, ok(), Some(old)), (0, 0, 1, 0), Some("AgentSilent"), "fifteen minutes without a keep-alive"),
        (
            one(Reachable, ok(), Some(report("q"))),
            (0, 0, 0, 1),
            Some("OldRevision"),
            "ready, but with the old configuration",
        ),
        (
            one(Reachable, ok(), Some(not_ready("TunnelNotReady"))),
            (0, 1, 0, 0),
            Some("TunnelNotReady"),
            "the agent's own reason",
        ),
        (
            one(Reachable, ok(), Some(not_ready("ForeignFirewall"))),
            (0, 1, 0, 0),
            Some("ForeignFirewall"),
            "a foreign firewall reaches the user",
        ),
        (one(Reachable, ok(), Some(not_ready("Starting"))), (0, 0, 0, 1), Some("Starting"), "starting"),
        (
            one(Reachable, Some(PodHealth::Terminating), Some(report("r"))),
            (0, 0, 0, 1),
            Some("AgentStarting"),
            "being replaced",
        ),
    ];
    for (fleet, (ready, degraded, unreachable, pending), reason, why) in cases {
        let have = (fleet.ready, fleet.degraded, fleet.unreachable, fleet.pending);
        assert_eq!(have, (ready, degraded, unreachable, pending), "{why}");
        assert_eq!(fleet.desired, 1, "{why}");
        assert_eq!(fleet.worst.first().map(|w| w.reason.as_str()), reason, "{why}");
        if fleet.degraded > 0 && reason != Some("ImagePullBackOff") {
            assert_eq!(fleet.worst[0].message, "no uplink", "{why}: with the agent's own message");
        }
    }
}

#[test]
fn the_new_pod_counts_while_the_old_one_ends() {
    let fleet = fold(&FleetInputs {
        nodes: &table([("n0".to_owned(), node(0, &[]))]),
        reports: &table([("n0".to_owned(), report("r"))]),
        pods: &table([
            ("a".to_owned(), pod("n0", PodHealth::Terminating)),
            ("b".to_owned(), pod("n0", PodHealth::Ready)),
        ]),
        daemon_set: Some(&daemon_set(1, 1)),
        revision: "r",
        now: now(),
    });
    assert_eq!(fleet.ready, 1);
}

#[test]
fn a_node_that_the_agents_do_not_tolerate_is_not_waited_for() {
    let fleet = fold(&FleetInputs {
        nodes: &table([("n0".to_owned(), node(0, &[])), ("tainted".to_owned(), node(1, &[]))]),
        reports: &table([("n0".to_owned(), report("r"))]),
        pods: &table([("p".to_owned(), pod("n0", PodHealth::Ready))]),
        daemon_set: Some(&daemon_set(1, 1)),
        revision: "r",
        now: now(),
    });
    assert_eq!((fleet.desired, fleet.ready), (1, 1));
}

#[test]
fn the_worst_come_first_and_ten_at_most() {
    let names: Vec<String> = (0..30).map(|i| format!("n{i:02}")).collect();
    let bad = ReportFacts {
        ready: Some(ReadyCondition { is_true: false, reason: "X".to_owned(), message: String::new() }),
        ..report("r")
    };
    let fleet = fold(&FleetInputs {
        nodes: &table(names.iter().map(|n| (n.clone(), node(0, &[])))),
        reports: &table(names.iter().map(|n| (n.clone(), if n == "n29" { bad.clone() } else { report("q") }))),
        pods: &table(names.iter().map(|n| (n.clone(), pod(n, PodHealth::Ready)))),
        daemon_set: Some(&daemon_set(30, 30)),
        revision: "r",
        now: now(),
    });
    assert_eq!((fleet.worst.len(), fleet.worst[0].node.as_str()), (10, "n29"));
    assert_eq!((fleet.degraded, fleet.pending), (1, 29));
}

#[test]
fn the_fold_is_repeated_when_the_oldest_report_times_out() {
    let fleet = one(Kubelet::Reachable, Some(PodHealth::Ready), Some(report("r")));
    assert_eq!(fleet.replan_at, Some(now() - SignedDuration::from_secs(60) + REPORT_TIMEOUT));
}

#[test]
fn a_template_that_the_controller_has_not_observed_is_not_rolled_out() {
    let mut ds = daemon_set(3, 3);
    assert_eq!(rollout(Some(&ds)), Rollout::Complete);
    ds.metadata.generation = Some(4);
    assert_eq!(rollout(Some(&ds)), Rollout::Unfinished { updated: 0 });
    assert_eq!(rollout(Some(&daemon_set(3, 2))), Rollout::Unfinished { updated: 2 });
}

#[test]
fn a_node_that_does_not_reach_all_ready_nodes_is_pending() {
    let nodes = table([0, 1, 2].map(|n| (format!("n{n}"), node(n, &["10.244.0.0/24"]))));
    let pods = table([0, 1, 2].map(|n| (format!("p{n}"), pod(&format!("n{n}"), PodHealth::Ready))));
    let fold_with = |peers: [usize; 3]| {
        let reports =
            peers.iter().enumerate().map(|(n, peers)| (format!("n{n}"), ReportFacts { peers: *peers, ..report("r") }));
        fold(&FleetInputs {
            nodes: &nodes,
            reports: &table(reports),
            pods: &pods,
            daemon_set: Some(&daemon_set(3, 3)),
            revision: "r",
            now: now(),
        })
    };
    assert_eq!(fold_with([2, 2, 2]).ready, 3);
    let fleet = fold_with([2, 1, 2]);
    assert_eq!((fleet.ready, fleet.pending), (2, 1));
    assert_eq!((fleet.worst[0].node.as_str(), fleet.worst[0].reason.as_str()), ("n1", "PeersMissing"));
    assert!(fleet.worst[0].message.contains("1 of 2"), "{}", fleet.worst[0].message);
}

#[test]
fn a_node_that_has_left_is_not_waited_for_though_the_daemon_set_still_counts_its_pod() {
    let fleet = fold(&FleetInputs {
        nodes: &table([("n0".to_owned(), node(0, &[]))]),
        reports: &table([("n0".to_owned(), report("r"))]),
        pods: &table([("p".to_owned(), pod("n0", PodHealth::Ready)), ("q".to_owned(), pod("n1", PodHealth::Ready))]),
        daemon_set: Some(&daemon_set(2, 2)),
        revision: "r",
        now: now(),
    });
    assert_eq!((fleet.desired, fleet.ready, fleet.pending), (1, 1, 0));
}

#[test]
fn a_node_or_a_report_that_was_never_decoded_counts_as_unreachable() {
    let mut nodes = Store::default();
    nodes.apply(ObjectEvent::ListStarted);
    nodes.apply(ObjectEvent::ListedUndecodable("n0".to_owned()));
    nodes.apply(ObjectEvent::Listed("n1".to_owned(), node(1, &[])));
    nodes.apply(ObjectEvent::Listed("n2".to_owned(), node(2, &[])));
    nodes.apply(ObjectEvent::ListDone);
    let mut reports = Store::default();
    reports.apply(ObjectEvent::ListStarted);
    reports.apply(ObjectEvent::Listed("n0".to_owned(), report("r")));
    reports.apply(ObjectEvent::ListedUndecodable("n1".to_owned()));
    reports.apply(ObjectEvent::Listed("n2".to_owned(), report("r")));
    reports.apply(ObjectEvent::ListDone);
    let fleet = fold(&FleetInputs {
        nodes: &nodes,
        reports: &reports,
        pods: &table(["n0", "n1", "n2"].map(|name| (format!("agent-{name}"), pod(name, PodHealth::Ready)))),
        daemon_set: Some(&daemon_set(3, 3)),
        revision: "r",
        now: now(),
    });
    assert_eq!((fleet.desired, fleet.ready, fleet.unreachable), (3, 1, 2));
    let worst: Vec<_> = fleet.worst.iter().map(|w| (w.node.as_str(), w.reason.as_str())).collect();
    assert_eq!(worst, [("n0", "NodeUndecodable"), ("n1", "ReportUndecodable")]);
}
