//! What the agent writes to the API server: its Node's annotations and condition, and its NetworkNode.
//!
//! Each writer is a task that holds the latest wish and nothing else: a wish that is overtaken is never written, a write
//! that fails is tried again, and nobody waits for it.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use towpath_core::model::NodeName;
use towpath_crds::{
    names,
    network_node::{NetworkNode, NetworkNodeStatus},
};
use tracing::{debug, warn};

/// Shortest time between two writes to the same object, whatever happens.
const PACE: Duration = Duration::from_secs(1);
/// Shortest time between two reports that differ in numbers only.
const NUMBERS_PACE: Duration = Duration::from_secs(10);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(3);
/// Time between reports when nothing changes, less or more a fifth.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

/// What our Node should carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWish {
    /// Annotations to set; `None` removes one.
    pub annotations: BTreeMap<String, Option<String>>,
    /// The condition NetworkUnavailable; `None` removes it.
    pub network_unavailable: Option<NetworkUnavailable>,
}

/// The Node condition of that name: while it is True, the scheduler keeps pods away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUnavailable {
    /// Whether the network is *not* there.
    pub unavailable: bool,
    /// Why, for people.
    pub message: String,
}

impl NetworkUnavailable {
    /// The word for programs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        if self.unavailable { "TowpathIsDown" } else { "TowpathIsUp" }
    }
}

/// The patch of a Node's status subresource, which takes annotations too.
fn node_patch(wish: &NodeWish, now: &Time) -> Value {
    let condition = wish.network_unavailable.as_ref().map_or_else(
        || json!({ "type": "NetworkUnavailable", "$patch": "delete" }),
        |c| {
            json!({
                "type": "NetworkUnavailable",
                "status": if c.unavailable { "True" } else { "False" },
                "reason": c.reason(),
                "message": c.message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            })
        },
    );
    json!({ "metadata": { "annotations": wish.annotations }, "status": { "conditions": [condition] } })
}

/// Writes one wish to our Node.
///
/// # Errors
/// What the API server answered.
pub async fn patch_node(client: &Client, me: &NodeName, wish: &NodeWish) -> kube::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = node_patch(wish, &Time(Timestamp::now()));
    nodes.patch_status(&me.0, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}

/// Keeps our Node as wished, until the sender is gone.
pub async fn keep_node(client: Client, me: NodeName, mut wishes: watch::Receiver<Option<NodeWish>>) {
    while wishes.changed().await.is_ok() {
        loop {
            let Some(wish) = wishes.borrow_and_update().clone() else { break };
            match patch_node(&client, &me, &wish).await {
                Ok(()) => {
                    debug!(node = %me, "node annotations and condition written");
                    sleep(PACE).await;
                    break;
                }
                Err(error) => {
                    warn!(node = %me, %error, "node annotations and condition not written; tried again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// A report with what the NetworkNode needs to belong to its Node.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The Node's uid; the NetworkNode goes with it.
    pub node_uid: String,
    /// All but the time of the report.
    pub status: NetworkNodeStatus,
}

/// Writes reports when they change: conditions and the completeness of the overlay at once, other numbers at most every
/// ten seconds; and a keep-alive.
pub async fn keep_report(client: Client, me: NodeName, mut reports: watch::Receiver<Option<Report>>) {
    let mut written: Option<(Report, Instant)> = None;
    loop {
        let latest = reports.borrow_and_update().clone();
        let due = latest.as_ref().map(|report| due(written.as_ref(), report, keep_alive(&me)));
        tokio::select! {
            changed = reports.changed() => if changed.is_err() { return },
            () = until(due) => {
                let Some(report) = latest else { continue };
                match write_report(&client, &me, &report).await {
                    Ok(()) => written = Some((report, Instant::now())),
                    Err(error) => {
                        warn!(node = %me, %error, "report not written; tried again");
                        sleep(RETRY).await;
                    }
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// When this report is to be written.
fn due(written: Option<&(Report, Instant)>, report: &Report, keep_alive: Duration) -> Instant {
    match written {
        None => Instant::now(),
        Some((last, at)) if truths(&last.status) != truths(&report.status) => *at + PACE,
        Some((last, at)) if last != report => *at + NUMBERS_PACE,
        Some((_, at)) => *at + keep_alive,
    }
}

/// What the operator folds: the conditions, and whether every node is a programmed peer.
fn truths(status: &NetworkNodeStatus) -> (Vec<(&str, &str, &str)>, bool) {
    let conditions = status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()));
    (conditions.collect(), status.tunnels.iter().all(|tunnel| tunnel.peers_programmed == tunnel.peers_expected))
}

/// 300 s, less or more up to a fifth, different for each node and the same each time: the nodes of a cluster that
/// started together do not report together.
fn keep_alive(me: &NodeName) -> Duration {
    let spread = me.0.bytes().fold(0_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(b))) % 401;
    KEEP_ALIVE * (800 + spread) / 1000
}

async fn write_report(client: &Client, me: &NodeName, report: &Report) -> kube::Result<()> {
    let api: Api<NetworkNode> = Api::all(client.clone());
    let status = NetworkNodeStatus { last_report_time: Some(Time(Timestamp::now())), ..report.status.clone() };
    let params = PatchParams::apply(names::AGENT_FIELD_MANAGER).force();
    let kind = json!({ "apiVersion": names::API_VERSION, "kind": "NetworkNode" });
    let with = |fields: Value| {
        let mut object = kind.clone();
        if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
            object.extend(fields);
        }
        Patch::Apply(object)
    };
    let body = with(json!({ "metadata": { "name": me.0 }, "status": status }));
    match api.patch_status(&me.0, &params, &body).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": me.0, "uid": report.node_uid }]);
            let object = with(json!({ "metadata": { "name": me.0, "ownerReferences": owner } }));
            api.patch(&me.0, &params, &object).await?;
            api.patch_status(&me.0, &params, &body).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Removes our NetworkNode. That it is gone already is no error.
///
/// # Errors
/// What the API server answered.
pub async fn delete_report(client: &Client, me: &NodeName) -> kube::Result<()> {
    let api: Api<NetworkNode> = Api::all(client.clone());
    match api.delete(&me.0, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code != 404 => Err(kube::Error::Api(status)),
        Err(error) if !matches!(error, kube::Error::Api(_)) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use towpath_crds::network_node::TunnelStatus;

    use super::*;

    fn report(status: &str, message: &str) -> Report {
        let condition = Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: "Starting".to_owned(),
            message: message.to_owned(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let status = NetworkNodeStatus { conditions: vec![condition], ..NetworkNodeStatus::default() };
        Report { node_uid: "u".to_owned(), status }
    }

    #[test]
    fn a_flip_is_written_at_once_numbers_wait_and_silence_is_broken() {
        let at = Instant::now();
        let written = Some((report("False", "a"), at));
        let after = |report: &Report| due(written.as_ref(), report, KEEP_ALIVE) - at;
        assert_eq!(after(&report("True", "a")), PACE);
        assert_eq!(after(&report("False", "b")), NUMBERS_PACE);
        assert_eq!(after(&report("False", "a")), KEEP_ALIVE);
        let mut incomplete = report("False", "a");
        incomplete.status.tunnels.push(TunnelStatus {
            device: "flannel.1".to_owned(),
            vni: 1,
            port: 8472,
            mtu: 1450,
            mac: "02:00:00:00:00:01".to_owned(),
            peers_expected: 2,
            peers_programmed: 1,
        });
        assert_eq!(after(&incomplete), PACE, "a node that some do not reach yet concerns all");
    }

    #[test]
    fn keep_alives_are_spread_over_a_fifth_around_five_minutes() {
        let all: Vec<u64> = (0..200).map(|n| keep_alive(&NodeName(format!("node-{n}"))).as_secs()).collect();
        assert!(all.iter().all(|s| (240..=360).contains(s)), "{all:?}");
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert!(distinct.len() > 50, "{distinct:?}");
    }

    #[test]
    fn a_wish_without_a_condition_removes_it() {
        let wish = NodeWish { annotations: BTreeMap::from([("k".to_owned(), None)]), network_unavailable: None };
        let patch = node_patch(&wish, &Time(Timestamp::UNIX_EPOCH));
        assert_eq!(patch["metadata"]["annotations"], json!({ "k": null }), "null removes in a merge patch");
        assert_eq!(patch["status"]["conditions"][0]["$patch"], "delete");
    }
}
