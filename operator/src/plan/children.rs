//! The writes that bring the children into shape, and whose doing it was that they were not.

use serde_json::Value;
use towpath_crds::names;

use super::{PlanContext, PlannedWrite, UnmanagedFields, Write};
use crate::{
    cluster::ClusterState,
    drift,
    events::{EventReason, OperatorEvent},
    preflight::name_some,
    render::{ANNOTATION_INTENT, Child, ChildKind},
    status::nodes::{Rollout, rollout},
};

/// Brings ConfigMap and DaemonSet into shape, in this order: a DaemonSet never names a ConfigMap that is not there.
pub(super) fn repair(
    context: &PlanContext<'_>,
    config_map: Child,
    daemon_set: Child,
    revision: &str,
) -> Vec<PlannedWrite> {
    let cluster = context.cluster;
    let mut writes = Vec::new();
    let have_map = cluster.config_maps.get(&config_map.name).map(|cm| json_of(cm.as_ref()));
    let have_set = cluster.daemon_sets.get(names::AGENT).map(|ds| json_of(ds.as_ref()));

    let passed_before = have_map.is_some();
    let in_use = have_set.as_ref().is_some_and(|set| template_revision(set) == Some(revision));
    let change = difference(&config_map, have_map.as_ref());
    if change != Difference::None {
        let event = drifted(&config_map, &change, in_use);
        writes.push(PlannedWrite { write: Write::Apply(config_map), event });
    }

    let owners = cluster.daemon_sets.get(names::AGENT).and_then(|ds| ds.metadata.managed_fields.as_deref());
    if let Some(stripped) = unmanaged_fields(context, &daemon_set, have_set.as_ref(), owners.unwrap_or_default()) {
        let note = format!("removed from DaemonSet {}: {}", daemon_set.name, stripped.fields.join(", "));
        let event = Some(OperatorEvent::new(EventReason::DriftRepaired, note));
        writes.push(PlannedWrite { write: Write::RemoveFields(stripped), event });
    }
    let change = difference(&daemon_set, have_set.as_ref());
    if change != Difference::None {
        let event = drifted(&daemon_set, &change, passed_before)
            .unwrap_or_else(|| OperatorEvent::new(EventReason::RolloutStarted, rollout_note(&daemon_set, revision)));
        writes.push(PlannedWrite { write: Write::Apply(daemon_set), event: Some(event) });
    }
    writes
}

/// Deletions of configurations that no agent uses any more: all but the wanted one, once every pod has its template.
pub(super) fn leftovers(cluster: &ClusterState, wanted: &str) -> Vec<PlannedWrite> {
    let daemon_set = cluster.daemon_sets.get(names::AGENT);
    let current = daemon_set.is_some_and(|ds| template_revision(&json_of(ds.as_ref())) == Some(wanted));
    if !current || rollout(daemon_set.map(AsRef::as_ref)) != Rollout::Complete {
        return Vec::new();
    }
    let keep = names::agent_config_map(wanted);
    let old = cluster.config_maps.iter().map(|(name, _)| name).filter(|name| *name != keep);
    old.map(|name| PlannedWrite { write: Write::Delete(ChildKind::ConfigMap, name.to_owned()), event: None }).collect()
}

/// The revision that the DaemonSet's template names.
pub(super) fn template_revision(daemon_set: &Value) -> Option<&str> {
    daemon_set.pointer("/spec/template/metadata/annotations").and_then(|a| a.get(names::ANNOTATION_REVISION)?.as_str())
}

pub(super) fn json_of<K: serde::Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or(Value::Null)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// In shape.
    None,
    /// Not there.
    Absent,
    /// We want something new.
    Intent,
    /// Somebody else changed it, here.
    Drift(Vec<String>),
}

pub(super) fn difference(want: &Child, have: Option<&Value>) -> Difference {
    let Some(have) = have else { return Difference::Absent };
    let mut want_parts = want.value.clone();
    // The typed objects of a list carry no apiVersion and kind, so only the rest is compared.
    if let Some(parts) = want_parts.as_object_mut() {
        parts.retain(|part, _| part != "apiVersion" && part != "kind");
    }
    let paths = drift::differences(&want_parts, have);
    let intent = have.pointer("/metadata/annotations").and_then(|a| a.get(ANNOTATION_INTENT)?.as_str());
    match (paths.is_empty(), intent == Some(want.intent.as_str())) {
        (true, _) => Difference::None,
        (false, true) => Difference::Drift(paths),
        (false, false) => Difference::Intent,
    }
}

fn unmanaged_fields(
    context: &PlanContext<'_>,
    want: &Child,
    have: Option<&Value>,
    owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry],
) -> Option<UnmanagedFields> {
    let have = have?;
    let fields = drift::unmanaged_fields(&want.value, have, owners, names::OPERATOR_FIELD_MANAGER);
    let generation = have.pointer("/metadata/generation").and_then(Value::as_i64);
    let stripped = UnmanagedFields { generation, fields };
    let in_vain = context.state.stripped.as_ref() == Some(&stripped);
    (!stripped.fields.is_empty() && !in_vain).then_some(stripped)
}

/// What to tell if somebody else's doing is to be undone; nothing if we want something new. `was_there` says that an
/// absent object was there before.
fn drifted(child: &Child, difference: &Difference, was_there: bool) -> Option<OperatorEvent> {
    let what = match difference {
        Difference::Drift(paths) => format!("was changed at {}; restored it", name_some(paths)),
        Difference::Absent if was_there => "was deleted; created it again".to_owned(),
        Difference::None | Difference::Absent | Difference::Intent => return None,
    };
    Some(OperatorEvent::new(EventReason::DriftRepaired, format!("{} {} {what}", child.kind.as_str(), child.name)))
}

fn rollout_note(daemon_set: &Child, revision: &str) -> String {
    let image = daemon_set.value.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
    format!("rolling out revision {revision} with image {}", image.unwrap_or_default())
}
