//! The writes that bring the children into shape, and whose doing it was that they were not.

use serde_json::Value;
use towpath_crds::names;

use super::{Context, Step, Stripped, Write};
use crate::{
    drift,
    notice::{Notice, NoticeReason},
    render::{ANNOTATION_INTENT, Child, ChildKind},
    status::nodes::{Rollout, rollout},
    world::World,
};

/// Brings ConfigMap and DaemonSet into shape, in this order: a DaemonSet never names a ConfigMap that is not there.
pub(super) fn repair(context: &Context<'_>, config_map: Child, daemon_set: Child, revision: &str) -> Vec<Step> {
    let world = context.world;
    let mut steps = Vec::new();
    let have_map = world.config_maps.get(&config_map.name).map(|cm| json_of(cm.as_ref()));
    let have_set = world.daemon_sets.get(names::AGENT).map(|ds| json_of(ds.as_ref()));

    let passed_before = have_map.is_some();
    let in_use = have_set.as_ref().is_some_and(|set| template_revision(set) == Some(revision));
    let change = difference(&config_map, have_map.as_ref());
    if change != Difference::None {
        let by_others = change == Difference::Drift || (change == Difference::Absent && in_use);
        let notice = by_others.then(|| drifted(&config_map, change));
        steps.push(Step { write: Write::Apply(config_map), notice });
    }

    let owners = world.daemon_sets.get(names::AGENT).and_then(|ds| ds.metadata.managed_fields.as_deref());
    if let Some(stripped) = strays(context, &daemon_set, have_set.as_ref(), owners.unwrap_or_default()) {
        let note = format!("removed from DaemonSet {}: {}", daemon_set.name, stripped.fields.join(", "));
        let notice = Some(Notice::new(NoticeReason::DriftRepaired, note));
        steps.push(Step { write: Write::Strip(stripped), notice });
    }
    let change = difference(&daemon_set, have_set.as_ref());
    if change != Difference::None {
        let by_others = change == Difference::Drift || (change == Difference::Absent && passed_before);
        let notice = if by_others {
            drifted(&daemon_set, change)
        } else {
            Notice::new(NoticeReason::RolloutStarted, rollout_note(&daemon_set, revision))
        };
        steps.push(Step { write: Write::Apply(daemon_set), notice: Some(notice) });
    }
    steps
}

/// Deletions of configurations that no agent uses any more: all but the wanted one, once every pod has its template.
pub(super) fn leftovers(world: &World, wanted: &str) -> Vec<Step> {
    let daemon_set = world.daemon_sets.get(names::AGENT);
    let current = daemon_set.is_some_and(|ds| template_revision(&json_of(ds.as_ref())) == Some(wanted));
    if !current || rollout(daemon_set.map(AsRef::as_ref)) != Rollout::Complete {
        return Vec::new();
    }
    let keep = names::agent_config_map(wanted);
    let old = world.config_maps.iter().map(|(name, _)| name).filter(|name| *name != keep);
    old.map(|name| Step { write: Write::Delete(ChildKind::ConfigMap, name.to_owned()), notice: None }).collect()
}

/// The revision that the DaemonSet's template names.
pub(super) fn template_revision(daemon_set: &Value) -> Option<&str> {
    daemon_set.pointer("/spec/template/metadata/annotations").and_then(|a| a.get(names::ANNOTATION_REVISION)?.as_str())
}

pub(super) fn json_of<K: serde::Serialize>(object: &K) -> Value {
    serde_json::to_value(object).unwrap_or(Value::Null)
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// In shape.
    None,
    /// Not there.
    Absent,
    /// We want something new.
    Intent,
    /// Somebody else changed it.
    Drift,
}

pub(super) fn difference(want: &Child, have: Option<&Value>) -> Difference {
    let Some(have) = have else { return Difference::Absent };
    let intent = have.pointer("/metadata/annotations").and_then(|a| a.get(ANNOTATION_INTENT)?.as_str());
    // The typed objects of a list carry no apiVersion and kind, so only the rest is compared.
    let same = ["metadata", "spec", "data", "immutable"].iter().all(|part| match want.value.get(part) {
        Some(want) => have.get(part).is_some_and(|have| drift::holds(want, have)),
        None => true,
    });
    match (same, intent == Some(want.intent.as_str())) {
        (true, _) => Difference::None,
        (false, true) => Difference::Drift,
        (false, false) => Difference::Intent,
    }
}

fn strays(
    context: &Context<'_>,
    want: &Child,
    have: Option<&Value>,
    owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry],
) -> Option<Stripped> {
    let have = have?;
    let fields = drift::strays(&want.value, have, owners, names::OPERATOR_FIELD_MANAGER);
    let generation = have.pointer("/metadata/generation").and_then(Value::as_i64);
    let stripped = Stripped { generation, fields };
    let in_vain = context.memory.stripped.as_ref() == Some(&stripped);
    (!stripped.fields.is_empty() && !in_vain).then_some(stripped)
}

fn drifted(child: &Child, difference: Difference) -> Notice {
    let what =
        if difference == Difference::Absent { "was deleted; created it again" } else { "was changed; restored it" };
    Notice::new(NoticeReason::DriftRepaired, format!("{} {} {what}", child.kind.as_str(), child.name))
}

fn rollout_note(daemon_set: &Child, revision: &str) -> String {
    let image = daemon_set.value.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
    format!("rolling out revision {revision} with image {}", image.unwrap_or_default())
}
