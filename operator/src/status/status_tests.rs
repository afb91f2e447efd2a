use towpath_crds::config_status::NodeProblem;

use super::*;
use crate::testing::{now, report, table};

fn fleet(ready: usize, degraded: usize, pending: usize, rollout: Rollout) -> Fleet {
    let desired = ready + degraded + pending;
    let problem = NodeProblem { node: "n1".to_owned(), reason: "X".to_owned(), message: "why".to_owned() };
    let worst = if desired > ready { vec![problem] } else { Vec::new() };
    Fleet { desired, ready, degraded, unreachable: 0, pending, worst, rollout, replan_at: None }
}

/// The conditions in order, each as `Type=Status/Reason`.
fn conditions(phase: Phase, fleet: Option<Fleet>, error: Option<&str>) -> String {
    let error = error.map(str::to_owned);
    let inputs = StatusInputs { phase, fleet, effective: None, checks: Vec::new(), versions: None, error };
    let status = fold(&NetworkConfig::default(), inputs, now());
    let texts: Vec<_> = status.conditions.iter().map(|c| format!("{}={}/{}", c.type_, c.status, c.reason)).collect();
    texts.join(" ")
}

#[test]
fn an_active_network_reports_its_progress() {
    let passed = "PreflightPassed=True/AllChecksPassed";
    let rolling = "Reconciling=True/RollingOut Ready=False/RolloutInProgress";
    let cases = [
        (fleet(3, 0, 0, Rollout::Complete), "Ready=True/AllNodesReady", "every node is ready"),
        (fleet(3, 0, 0, Rollout::Unfinished { updated: 1 }), rolling, "old pods still report ready"),
        (fleet(2, 0, 1, Rollout::Complete), rolling, "one agent still starts"),
        (fleet(2, 1, 0, Rollout::Complete), "Ready=False/NodesNotReady", "nothing is in progress, one node fails"),
        (fleet(0, 0, 0, Rollout::Complete), "Ready=False/NodesNotReady", "a cluster without nodes is not ready"),
    ];
    for (fleet, want, why) in cases {
        assert_eq!(conditions(Phase::Active, Some(fleet), None), format!("{want} {passed}"), "{why}");
    }
}

#[test]
fn every_other_stage_has_its_conditions_in_their_order() {
    let held = Phase::PreflightFailed {
        failure: PreflightFailure { reason: ConfigReason::CIDROverlap, message: "overlap".to_owned() },
    };
    let cases = [
        (
            held,
            Some("and an error"),
            "Stalled=True/PreflightFailed Ready=False/PreflightFailed PreflightPassed=False/CIDROverlap",
            "a person must act, so nothing is in progress",
        ),
        (
            Phase::Invalid { problems: vec!["a".to_owned()] },
            None,
            "Stalled=True/InvalidConfiguration Ready=False/InvalidConfiguration PreflightPassed=False/InvalidConfiguration",
            "a contradiction",
        ),
        (Phase::Unmanaged, None, "Ready=Unknown/Unmanaged", "not managed"),
        (
            Phase::TearingDown { remaining: vec!["n1".to_owned()] },
            Some("the API server refused"),
            "Reconciling=True/RetryingAfterError Ready=False/TearingDown",
            "the error is what the user wants to know",
        ),
    ];
    for (phase, error, want, why) in cases {
        assert_eq!(conditions(phase, None, error), want, "{why}");
    }
}

#[test]
fn the_summary_names_nodes_that_are_not_ready() {
    assert_eq!(summary(&fleet(2, 1, 0, Rollout::Complete)), "2 of 3 nodes are ready: n1 (X): why");
}

#[test]
fn versions_are_counted() {
    let mut other = report("r");
    other.version = Some("0.0.9".to_owned());
    let reports = table([("a".to_owned(), report("r")), ("b".to_owned(), other), ("c".to_owned(), report("r"))]);
    let have = versions("0.1.0", &reports);
    let agents: Vec<_> = have.agents.iter().map(|a| (a.version.as_str(), a.nodes)).collect();
    assert_eq!(agents, [("0.0.9", 1), ("0.1.0", 2)]);
}
