//! The operator against an API server in memory: what it writes, counted.
#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]

use serde_json::json;
use tokio::task::LocalSet;
use towpath_operator::lease::Leadership;

mod support;
use support::Harness;

/// Runs a scenario with time that passes as soon as everybody waits.
fn scenario(run: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, run);
}

/// The names of the children carry the revision, which is of no interest here.
fn kinds(writes: &[String]) -> Vec<&str> {
    writes.iter().map(|w| if w.contains("configmaps/") { "PATCH configmaps" } else { w.as_str() }).collect()
}

#[test]
fn a_rollout_takes_these_writes_and_an_unchanged_network_none() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Leading, 0);
        let writes = harness.pass().await;
        assert_eq!(
            kinds(&writes),
            [
                "PATCH networkconfigs/default",
                "PATCH configmaps",
                "PATCH daemonsets/towpath-agent",
                "POST event RolloutStarted",
                "PATCH networkconfigs/default/status",
                "PATCH networkconfigs/default/status",
                "POST event AllNodesReady",
            ]
        );
        harness.server().edit("networkconfigs/default", |config| config["metadata"]["resourceVersion"] = json!("2"));
        harness.server().edit("daemonsets/towpath-agent", |set| set["metadata"]["resourceVersion"] = json!("3"));
        assert_eq!(harness.pass().await, Vec::<String>::new(), "planned again, nothing to do");
    });
}

#[test]
fn a_standby_writes_nothing() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Standby, 0);
        assert_eq!(harness.pass().await, Vec::<String>::new());
    });
}

#[test]
fn an_edited_daemon_set_is_restored_by_one_write_and_one_event() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Leading, 0);
        harness.pass().await;
        harness.server().edit("daemonsets/towpath-agent", |set| {
            set["spec"]["template"]["spec"]["containers"][0]["image"] = json!("example.org/other:1");
        });
        assert_eq!(harness.pass().await, ["PATCH daemonsets/towpath-agent", "POST event DriftRepaired"]);
        let image =
            harness.server().object("daemonsets/towpath-agent")["spec"]["template"]["spec"]["containers"][0]["image"]
                .clone();
        assert_eq!(image, "towpath.local/towpath:0.1.0");
    });
}

#[test]
fn a_failed_write_is_retried_with_backoff_and_reported_meanwhile() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Leading, 4);
        let writes = harness.pass().await;
        let tries = writes.iter().filter(|w| *w == "PATCH daemonsets/towpath-agent").count();
        assert_eq!(tries, 5, "four failures and a success: {writes:?}");
        let reasons = harness.server().reconciling.clone();
        assert!(reasons.contains(&"RetryingAfterError".to_owned()), "{reasons:?}");
        let last = harness.server().object("networkconfigs/default");
        let types: Vec<_> =
            last["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
        assert_eq!(types, ["Ready", "PreflightPassed"], "the failure is forgotten when it is over");
    });
}

#[test]
fn a_persistent_failure_is_retried_once_a_minute() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Leading, usize::MAX);
        harness.pass().await;
        let writes = harness.pass().await;
        let tries = writes.iter().filter(|w| *w == "PATCH daemonsets/towpath-agent").count();
        assert!((9..=11).contains(&tries), "{tries} in ten minutes: {writes:?}");
        assert!(!writes.iter().any(|w| w.contains("event")), "a rollout that has not started has no Event: {writes:?}");
    });
}

#[test]
fn a_failed_check_writes_a_status_and_an_event_and_no_daemon_set() {
    scenario(async {
        let harness = Harness::start(&json!({"podCIDRs": ["10.9.0.0/16"]}), Leadership::Leading, 0);
        let writes = harness.pass().await;
        assert_eq!(
            kinds(&writes),
            ["PATCH networkconfigs/default", "PATCH networkconfigs/default/status", "POST event PreflightFailed"]
        );
    });
}

#[test]
fn an_orphaned_network_loses_the_finalizer_and_nothing_else() {
    scenario(async {
        let harness = Harness::start(&json!({"deletionPolicy": "Orphan"}), Leadership::Leading, 0);
        harness.pass().await;
        harness.server().edit("networkconfigs/default", |config| {
            config["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
        assert_eq!(harness.pass().await, ["POST event Orphaned", "PATCH networkconfigs/default"]);
        assert_eq!(harness.server().object("networkconfigs/default")["metadata"]["finalizers"], json!([]));
    });
}

#[test]
fn a_teardown_past_its_bound_deletes_every_child() {
    scenario(async {
        let harness = Harness::start(&json!({"deletionPolicy": "Teardown"}), Leadership::Leading, 0);
        harness.pass().await;
        harness.server().edit("networkconfigs/default", |config| {
            config["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
        let writes = harness.pass().await;
        assert_eq!(writes[0], "DELETE daemonsets/towpath-agent");
        assert!(writes[1].starts_with("DELETE configmaps/towpath-agent-"), "{writes:?}");
        assert_eq!(writes[2..], ["POST event TeardownIncomplete", "PATCH networkconfigs/default"]);
    });
}

#[test]
fn a_rejected_part_is_emitted_once_on_its_policy_whichever_nodes_report_it() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Leading, 0);
        harness.pass().await;
        let bad = [("shop/web", "spec.ingress[0]: bad"), ("shop/gone", "spec.ingress[0]: bad")];
        harness.server().policy("web");
        harness.server().report("n0", &bad);
        assert_eq!(harness.pass().await, ["POST event PolicyPartRejected"], "the other policy is deleted");
        let event = harness.server().events.last().unwrap().clone();
        assert_eq!(event["regarding"]["kind"], "NetworkPolicy");
        assert_eq!(event["regarding"]["uid"], "uid-web");
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["type"], "Warning");
        assert!(event["note"].as_str().unwrap().contains(bad[0].1), "{event}");
        harness.server().report("n1", &bad[..1]);
        assert_eq!(harness.pass().await, Vec::<String>::new(), "another node reports the same");
        harness.server().report("n1", &[("shop/web", "spec.egress[1]: bad")]);
        assert_eq!(harness.pass().await, ["POST event PolicyPartRejected"], "another part");
        harness.server().report("n0", &[]);
        harness.server().report("n1", &[]);
        assert_eq!(harness.pass().await, Vec::<String>::new(), "it was corrected");
        harness.server().report("n0", &bad[..1]);
        assert_eq!(harness.pass().await.len(), 1, "and spoilt again");
    });
}

#[test]
fn an_undecodable_daemon_set_is_neither_recreated_nor_written_and_its_rollout_resumes_later() {
    scenario(async {
        let harness = Harness::start(&json!({}), Leadership::Leading, 0);
        harness.pass().await;
        harness.server().daemon_set_becomes_undecodable();
        assert_eq!(harness.pass().await, Vec::<String>::new(), "its last known state is the wanted one");
        harness.server().edit("networkconfigs/default", |config| config["spec"]["mtu"] = json!(1400));
        let writes = harness.pass().await;
        assert_eq!(kinds(&writes), ["PATCH configmaps", "PATCH networkconfigs/default/status"], "the rollout waits");
        assert_eq!(harness.server().reconciling.last().unwrap(), "RetryingAfterError");
        harness.server().edit("daemonsets/towpath-agent", |_| {});
        let writes = harness.pass().await;
        assert_eq!(kinds(&writes)[0], "PATCH daemonsets/towpath-agent", "decoded again");
    });
}
