//! The writes that bring ConfigMap and DaemonSet to what is wanted, and the Events that name the cause of a repair.

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
    store::{Entry, Store},
};

/// The writes to the children, and the children that differ from what is wanted but are left alone.
#[derive(Default)]
pub(super) struct Reconciliation {
    pub(super) writes: Vec<PlannedWrite>,
    /// One sentence for each child that cannot be decoded and is therefore not written.
    pub(super) held: Vec<String>,
}

/// Reconciles the ConfigMap, then the DaemonSet: a DaemonSet never names a ConfigMap that does not exist.
pub(super) fn reconcile(
    context: &PlanContext<'_>,
    config_map: Child,
    daemon_set: Child,
    revision: &str,
) -> Reconciliation {
    let cluster = context.cluster;
    let mut plan = Reconciliation::default();
    let have_map = Have::of(&cluster.config_maps, &config_map.name);
    let have_set = Have::of(&cluster.daemon_sets, names::AGENT);
    let map_existed = have_map != Have::Absent;
    let map_in_use = have_set.last_known().is_some_and(|set| template_revision(set) == Some(revision));

    match difference(&config_map, &have_map) {
        Difference::None => {}
        Difference::Undecodable => plan.held.push(held(&config_map)),
        change @ (Difference::Absent | Difference::Intent | Difference::Drift(_)) => {
            let event = drift_repaired(&config_map, &change, map_in_use);
            plan.writes.push(PlannedWrite { write: Write::Apply(config_map), event });
        }
    }
    if let Some(unmanaged) = unmanaged_fields(context, &daemon_set, &have_set) {
        let note = format!("removed from DaemonSet {}: {}", daemon_set.name, unmanaged.fields.join(", "));
        let event = Some(OperatorEvent::new(EventReason::DriftRepaired, note));
        plan.writes.push(PlannedWrite { write: Write::RemoveFields(unmanaged), event });
    }
    match difference(&daemon_set, &have_set) {
        Difference::None => {}
        Difference::Undecodable => plan.held.push(held(&daemon_set)),
        change @ (Difference::Absent | Difference::Intent | Difference::Drift(_)) => {
            let event = drift_repaired(&daemon_set, &change, map_existed).unwrap_or_else(|| {
                OperatorEvent::new(EventReason::RolloutStarted, rollout_note(&daemon_set, revision))
            });
            plan.writes.push(PlannedWrite { write: Write::Apply(daemon_set), event: Some(event) });
        }
    }
    plan
}

/// Deletions of ConfigMaps that no agent uses any more: all but the wanted one, once every pod has its template.
pub(super) fn unused_config_maps(cluster: &ClusterState, wanted: &str) -> Vec<PlannedWrite> {
    let Some(Entry::Decoded(daemon_set)) = cluster.daemon_sets.entry(names::AGENT) else { return Vec::new() };
    let current = template_revision(&json_of(daemon_set.as_ref())) == Some(wanted);
    if !current || rollout(Some(daemon_set.as_ref())) != Rollout::Complete {
        return Vec::new();
    }
    let keep = names::agent_config_map(wanted);
    let unused = cluster.config_maps.names().filter(|name| *name != keep);
    unused
        .map(|name| PlannedWrite { write: Write::Delete(ChildKind::ConfigMap, name.to_owned()), event: None })
        .collect()
}

/// The revision that the DaemonSet's template names.
pub(super) fn template_revision(daemon_set: &Value) -> Option<&str> {
    daemon_set.pointer("/spec/template/metadata/annotations").and_then(|a| a.get(names::ANNOTATION_REVISION)?.as_str())
}

pub(super) fn json_of<K: serde::Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or(Value::Null)
}

/// A child as it is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Have {
    Absent,
    Decoded(Value),
    /// It exists and cannot be decoded; its last known state, if it ever was.
    Undecodable(Option<Value>),
}

impl Have {
    pub(super) fn of<K: serde::Serialize>(store: &Store<Box<K>>, name: &str) -> Self {
        match store.entry(name) {
            None => Self::Absent,
            Some(Entry::Decoded(object)) => Self::Decoded(json_of(object.as_ref())),
            Some(Entry::LastKnown(object)) => Self::Undecodable(Some(json_of(object.as_ref()))),
            Some(Entry::NeverDecoded) => Self::Undecodable(None),
        }
    }

    pub(super) const fn last_known(&self) -> Option<&Value> {
        match self {
            Self::Absent => None,
            Self::Decoded(value) => Some(value),
            Self::Undecodable(value) => value.as_ref(),
        }
    }
}

/// How a child differs from what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    None,
    Absent,
    /// The operator wants something new.
    Intent,
    /// Somebody else changed these paths.
    Drift(Vec<String>),
    /// It is not known to be as wanted, and cannot be decoded: a write could repeat forever, or recreate what exists.
    Undecodable,
}

pub(super) fn difference(want: &Child, have: &Have) -> Difference {
    match have {
        Have::Absent => Difference::Absent,
        Have::Decoded(have) => changes(want, have),
        Have::Undecodable(Some(have)) if changes(want, have) == Difference::None => Difference::None,
        Have::Undecodable(_) => Difference::Undecodable,
    }
}

fn changes(want: &Child, have: &Value) -> Difference {
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

/// Why a child is not written.
pub(super) fn held(child: &Child) -> String {
    format!(
        "{} {} exists but cannot be decoded, so it is not changed: see the operator's log for the error, and repair or \
         delete the object",
        child.kind.as_str(),
        child.name
    )
}

fn unmanaged_fields(context: &PlanContext<'_>, want: &Child, have: &Have) -> Option<UnmanagedFields> {
    let Have::Decoded(have) = have else { return None };
    let daemon_set = context.cluster.daemon_sets.get(names::AGENT)?;
    let owners = daemon_set.metadata.managed_fields.as_deref().unwrap_or_default();
    let fields = drift::unmanaged_fields(&want.value, have, owners, names::OPERATOR_FIELD_MANAGER);
    let unmanaged = UnmanagedFields { generation: daemon_set.metadata.generation, fields };
    let came_back = context.state.removed_fields.as_ref() == Some(&unmanaged);
    (!unmanaged.fields.is_empty() && !came_back).then_some(unmanaged)
}

/// The Event for undoing somebody else's change; none if the operator wants something new. `existed` says that an
/// absent object was there before.
fn drift_repaired(child: &Child, difference: &Difference, existed: bool) -> Option<OperatorEvent> {
    let what = match difference {
        Difference::Drift(paths) => format!("was changed at {}; restored it", name_some(paths)),
        Difference::Absent if existed => "was deleted; created it again".to_owned(),
        Difference::None | Difference::Absent | Difference::Intent | Difference::Undecodable => return None,
    };
    Some(OperatorEvent::new(EventReason::DriftRepaired, format!("{} {} {what}", child.kind.as_str(), child.name)))
}

fn rollout_note(daemon_set: &Child, revision: &str) -> String {
    let image = daemon_set.value.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
    format!("rolling out revision {revision} with image {}", image.unwrap_or_default())
}
