//! The plan while the network is managed: discover, validate, check, render, reconcile, report status.

use ipnet::IpNet;
use towpath_crds::{
    NetworkConfig,
    config_status::{Effective, EffectiveBackend, EffectiveCidrs, EffectiveMtu, MtuRange, ValueSource},
    names,
};

use super::{FinalizerChange, PartialPlan, Plan, PlanContext, bare_inputs, children, complete, has_finalizer};
use crate::{
    discover::{self, PodNetwork},
    preflight, render, spec,
    status::{self, Phase, StatusInputs, nodes},
};

/// Most CIDRs per effective value in the status.
const MAX_CIDRS: usize = 8;

pub(super) fn plan(context: &PlanContext<'_>, config: &NetworkConfig) -> Plan {
    let cluster = context.cluster;
    let mut partial =
        PartialPlan { finalizer: (!has_finalizer(config)).then_some(FinalizerChange::Add), ..PartialPlan::default() };
    let declared = match spec::pod_cidrs(&config.spec) {
        Ok(cidrs) => cidrs,
        Err(problems) => {
            return complete(context, config, bare_inputs(Phase::Invalid { problems }, context), partial);
        }
    };
    let former = config.status.as_ref().and_then(|s| s.effective.as_ref()?.pod_cidrs.as_ref());
    let network = discover::pod_network(&declared, &cluster.nodes, former);
    let preflight = preflight::run(&preflight::PreflightInputs {
        network: network.as_ref(),
        mtu: config.spec.mtu,
        nodes: &cluster.nodes,
        reports: &cluster.reports,
        service_cidrs: &cluster.service_cidrs,
        now: context.now,
    });

    let revision = network.as_ref().and_then(|network| {
        let agent_config = render::agent_config(&config.spec, &network.cidrs);
        let revision = agent_config.revision();
        let config_map = render::config_map(&agent_config);
        // A revision that passed once is reconciled even while a check fails; its ConfigMap shows that it passed.
        if preflight.failure.is_some() && !cluster.config_maps.contains(&config_map.name) {
            return None;
        }
        let spec = &config.spec;
        let image = &context.operator.image;
        let daemon_set = render::daemon_set(&spec.agent, &spec.images, image, &revision, render::AgentTask::Run);
        let children = children::reconcile(context, config_map, daemon_set, &revision);
        partial.writes.extend(children.writes);
        partial.held.extend(children.held);
        partial.writes.extend(children::unused_config_maps(cluster, &revision));
        Some(revision)
    });

    let fleet = fleet(context, revision.as_deref());
    partial.replan_at = earliest(preflight.replan_at, fleet.as_ref().and_then(|f| f.replan_at));
    let inputs = StatusInputs {
        phase: preflight.failure.map_or(Phase::Active, |failure| Phase::PreflightFailed { failure }),
        fleet,
        effective: Some(effective(context, config, network.as_ref())),
        checks: preflight.checks,
        versions: Some(status::versions(&context.operator.version, &cluster.reports)),
        error: context.state.error.clone(),
    };
    complete(context, config, inputs, partial)
}

/// The state of the nodes at the wanted revision, or while that is held at the running one.
fn fleet(context: &PlanContext<'_>, wanted: Option<&str>) -> Option<nodes::Fleet> {
    let cluster = context.cluster;
    let daemon_set = cluster.daemon_sets.get(names::AGENT).map(AsRef::as_ref);
    let running = daemon_set.map(children::json_of);
    let revision = wanted.or_else(|| children::template_revision(running.as_ref()?))?;
    Some(nodes::fold(&nodes::FleetInputs {
        nodes: &cluster.nodes,
        reports: &cluster.reports,
        pods: &cluster.pods,
        daemon_set,
        revision,
        now: context.now,
    }))
}

fn effective(context: &PlanContext<'_>, config: &NetworkConfig, network: Option<&PodNetwork>) -> Effective {
    let services: Vec<IpNet> =
        context.cluster.service_cidrs.iter().flat_map(|(_, cidrs)| cidrs.iter().copied()).collect();
    let source = if services.is_empty() { ValueSource::Unknown } else { ValueSource::ServiceCIDRObjects };
    Effective {
        pod_cidrs: network.map(|network| EffectiveCidrs { value: texts(&network.cidrs), source: network.source }),
        service_cidrs: Some(EffectiveCidrs { value: texts(&services), source }),
        mtu: mtu(context, config.spec.mtu),
        backend: Some(EffectiveBackend { value: config.spec.backend.type_, source: ValueSource::Spec }),
    }
}

fn mtu(context: &PlanContext<'_>, wanted: Option<i32>) -> Option<EffectiveMtu> {
    if let Some(mtu) = wanted {
        return Some(EffectiveMtu { value: MtuRange { min: mtu, max: mtu }, source: ValueSource::Spec });
    }
    let reported = || context.cluster.reports.iter().flat_map(|(_, report)| report.mtus.iter().copied());
    let value = MtuRange { min: reported().min()?, max: reported().max()? };
    Some(EffectiveMtu { value, source: ValueSource::NodeReports })
}

fn texts(cidrs: &[IpNet]) -> Vec<String> {
    cidrs.iter().take(MAX_CIDRS).map(ToString::to_string).collect()
}

fn earliest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
