//! What the agent writes to the API server: its Node's annotations and condition, and its NetworkNode.
//!
//! Each writer is a task that holds the latest value only: a value that is replaced before it is written is never written, and
//! a write that fails is tried again.

use std::time::Duration;

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
use towpath_node::{NodePatch, StatusUpdate};
use tracing::{debug, warn};

/// Shortest time between two writes to the same object.
const PACE: Duration = Duration::from_secs(1);
/// Shortest time between two updates that differ in numbers only.
const NUMBERS_PACE: Duration = Duration::from_secs(10);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(3);
/// Time between updates when nothing changes, plus or minus a fifth.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

/// The patch of a Node's status subresource, which takes annotations too.
fn node_patch(patch: &NodePatch, now: &Time) -> Value {
    let condition = patch.network_condition.as_ref().map_or_else(
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
    json!({ "metadata": { "annotations": patch.annotations }, "status": { "conditions": [condition] } })
}

/// Patches our Node's annotations and its condition NetworkUnavailable.
///
/// # Errors
/// The API server's error, or the way to it.
pub async fn patch_node(client: &Client, me: &NodeName, patch: &NodePatch) -> kube::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = node_patch(patch, &Time(Timestamp::now()));
    nodes.patch_status(&me.0, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}

/// Writes the latest patch of our Node, until the sender is dropped.
pub async fn patch_node_on_change(client: Client, me: NodeName, mut patches: watch::Receiver<Option<NodePatch>>) {
    while patches.changed().await.is_ok() {
        loop {
            let Some(patch) = patches.borrow_and_update().clone() else { break };
            match patch_node(&client, &me, &patch).await {
                Ok(()) => {
                    debug!(node = %me, "Node patched");
                    sleep(PACE).await;
                    break;
                }
                Err(error) => {
                    warn!(node = %me, %error, "Node not patched: its annotations and condition are out of date; tried again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// Writes the status of our NetworkNode when it changes: conditions and the completeness of the overlay at once, other
/// numbers at most every ten seconds; and a keep-alive.
pub async fn update_status_on_change(client: Client, me: NodeName, mut updates: watch::Receiver<Option<StatusUpdate>>) {
    let mut written: Option<(StatusUpdate, Instant)> = None;
    loop {
        let latest = updates.borrow_and_update().clone();
        let due = latest.as_ref().map(|update| due(written.as_ref(), update, keep_alive(&me)));
        tokio::select! {
            changed = updates.changed() => if changed.is_err() { return },
            () = until(due) => {
                let Some(update) = latest else { continue };
                match write_status(&client, &me, &update).await {
                    Ok(()) => written = Some((update, Instant::now())),
                    Err(error) => {
                        warn!(node = %me, %error, "NetworkNode status not written; tried again");
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

/// When an update is written.
fn due(written: Option<&(StatusUpdate, Instant)>, update: &StatusUpdate, keep_alive: Duration) -> Instant {
    match written {
        None => Instant::now(),
        Some((last, at)) if significant(&last.status) != significant(&update.status) => *at + PACE,
        Some((last, at)) if last != update => *at + NUMBERS_PACE,
        Some((_, at)) => *at + keep_alive,
    }
}

/// The fields that the operator's decisions depend on: the conditions, and whether every node is a programmed peer.
fn significant(status: &NetworkNodeStatus) -> (Vec<(&str, &str, &str)>, bool) {
    let conditions = status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()));
    (conditions.collect(), status.tunnels.iter().all(|tunnel| tunnel.peers_programmed == tunnel.peers_expected))
}

/// 300 s plus or minus up to a fifth, by a hash of the node's name: nodes that started together do not report together.
fn keep_alive(me: &NodeName) -> Duration {
    let spread = me.0.bytes().fold(0_u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(b))) % 401;
    KEEP_ALIVE * (800 + spread) / 1000
}

async fn write_status(client: &Client, me: &NodeName, update: &StatusUpdate) -> kube::Result<()> {
    let api: Api<NetworkNode> = Api::all(client.clone());
    let status = NetworkNodeStatus { last_report_time: Some(Time(Timestamp::now())), ..update.status.clone() };
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
            let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": me.0, "uid": update.node_uid }]);
            let object = with(json!({ "metadata": { "name": me.0, "ownerReferences": owner } }));
            api.patch(&me.0, &params, &object).await?;
            api.patch_status(&me.0, &params, &body).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Deletes our NetworkNode; one that is not found is deleted already.
///
/// # Errors
/// The API server's error, or the way to it.
pub async fn delete_network_node(client: &Client, me: &NodeName) -> kube::Result<()> {
    let api: Api<NetworkNode> = Api::all(client.clone());
    match api.delete(&me.0, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use towpath_crds::network_node::TunnelStatus;

    use super::*;

    fn update(status: &str, message: &str) -> StatusUpdate {
        let condition = Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: "Starting".to_owned(),
            message: message.to_owned(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        };
        let status = NetworkNodeStatus { conditions: vec![condition], ..NetworkNodeStatus::default() };
        StatusUpdate { node_uid: "u".to_owned(), status }
    }

    #[test]
    fn a_new_condition_is_written_at_once_numbers_wait_and_there_is_a_keep_alive() {
        let at = Instant::now();
        let written = Some((update("False", "a"), at));
        let after = |update: &StatusUpdate| due(written.as_ref(), update, KEEP_ALIVE) - at;
        assert_eq!(after(&update("True", "a")), PACE);
        assert_eq!(after(&update("False", "b")), NUMBERS_PACE);
        assert_eq!(after(&update("False", "a")), KEEP_ALIVE);
        let mut incomplete = update("False", "a");
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
    fn a_patch_without_a_condition_removes_it() {
        let patch = NodePatch { annotations: [("k".to_owned(), None)].into(), network_condition: None };
        let patch = node_patch(&patch, &Time(Timestamp::UNIX_EPOCH));
        assert_eq!(patch["metadata"]["annotations"], json!({ "k": null }), "null removes in a merge patch");
        assert_eq!(patch["status"]["conditions"][0]["$patch"], "delete");
    }
}
