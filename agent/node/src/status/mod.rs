//! The node's status: the CNI install, conditions, commits and drift, and what is therefore published.

mod conditions;
mod firewall;
mod report;

use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use towpath_crds::condition;
use towpath_index::Index;

use self::firewall::FirewallCheck;
pub(crate) use self::report::policies;
use crate::{
    effect::Effect,
    kernel::{KernelView, Shortfall},
    log::LogLine,
    node::{Identity, Now},
    pods::Pods,
    settings::Settings,
};

/// Pause before CNI files that could not be written are tried again.
pub(crate) const INSTALL_RETRY: Duration = Duration::from_secs(10);

/// What the CNI plugin has to know of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// The node's podCIDRs, at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// The MTU of pods in bytes.
    pub mtu: u32,
}

/// The CNI install: the plugin, its node file and the runtime's configuration list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CniInstall {
    /// Not before the overlay is up and the rules are in force.
    NotReady,
    /// The files are being written.
    Installing(CniNetwork),
    /// The files are written: CNI ready.
    Ready(CniNetwork),
    /// The files could not be written.
    Failed { error: String, retry_at: Instant },
}

/// Commits of rules to the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Commits {
    /// How many since the start.
    pub(crate) count: u64,
    /// The last one's time from the arrival of a change that concerns policy to its commit.
    pub(crate) latency: Duration,
}

/// Repairs of our kernel objects that another process changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drift {
    /// Repaired objects since the start.
    pub(crate) repairs: u64,
    /// The last repair.
    pub(crate) last: Option<Repaired>,
}

/// A repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repaired {
    /// The first of the objects that were repaired together.
    pub(crate) object: String,
    pub(crate) at: SystemTime,
}

/// The status.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) cni: CniInstall,
    pub(crate) commits: Commits,
    pub(crate) drift: Drift,
    pub(crate) firewall: FirewallCheck,
    /// As they were reported last.
    pub(crate) conditions: Vec<Condition>,
}

/// What a status is computed from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) identity: &'a Identity,
    pub(crate) index: &'a Index,
    pub(crate) kernel: &'a KernelView,
    pub(crate) pods: &'a Pods,
}

impl Status {
    /// The status of a node that has just started.
    pub(crate) fn new() -> Self {
        Self {
            cni: CniInstall::NotReady,
            commits: Commits::default(),
            drift: Drift::default(),
            firewall: FirewallCheck::default(),
            conditions: Vec::new(),
        }
    }

    /// Rules were committed; with the latency if they are of a change of policy.
    pub(crate) fn committed(&mut self, latency: Option<Duration>) {
        self.commits.count += 1;
        self.commits.latency = latency.unwrap_or(self.commits.latency);
    }

    /// The last change repairs these objects.
    pub(crate) fn repaired(&mut self, now: &Now, objects: &[String], effects: &mut Vec<Effect>) {
        let Some(first) = objects.first() else { return };
        effects.push(Effect::Log(LogLine::DriftRepaired { repairs: objects.len(), first: first.clone() }));
        self.drift.repairs += objects.len() as u64;
        self.drift.last = Some(Repaired { object: first.clone(), at: now.wall });
    }

    /// The CNI files for a network were written, or not.
    pub(crate) fn cni_installed(
        &mut self,
        now: &Now,
        network: &CniNetwork,
        result: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        if self.cni != CniInstall::Installing(network.clone()) {
            // Files with newer values are on their way.
            return;
        }
        self.cni = match result {
            Ok(()) => {
                effects.push(Effect::Log(LogLine::CniReady { mtu: network.mtu }));
                CniInstall::Ready(network.clone())
            }
            Err(error) => {
                effects.push(Effect::Log(LogLine::CniNotReady { error: error.clone() }));
                CniInstall::Failed { error, retry_at: now.monotonic + INSTALL_RETRY }
            }
        };
    }

    /// When failed CNI files are tried again.
    pub(crate) const fn wake_at(&self) -> Option<Instant> {
        match &self.cni {
            CniInstall::NotReady | CniInstall::Installing(_) | CniInstall::Ready(_) => None,
            CniInstall::Failed { retry_at, .. } => Some(*retry_at),
        }
    }

    /// Publishes the status after a change was tried: CNI files, our Node, our NetworkNode, and the log.
    pub(crate) fn publish(&mut self, now: &Now, observed: Observed<'_>, effects: &mut Vec<Effect>) {
        let Some(plan) = observed.kernel.wanted() else { return };
        self.firewall.observe(observed);
        let desired = conditions::desired(self, observed, plan);
        let conditions = condition::fold(&self.conditions, desired, None, &api_time(now.wall));
        self.install_cni(now, observed, effects);
        effects.extend(report::node_patch(self, observed, plan).map(Effect::PatchNode));
        effects.extend(report::status_update(self, observed, plan, &conditions).map(Effect::UpdateStatus));
        log_changes(&self.conditions, &conditions, effects);
        self.conditions = conditions;
    }

    /// Has the CNI files written when the node is ready for pods and they are not there.
    fn install_cni(&mut self, now: &Now, observed: Observed<'_>, effects: &mut Vec<Effect>) {
        let Some(overlay) = observed.kernel.overlay() else { return };
        if !observed.kernel.overlay_is_up() || observed.kernel.table_shortfall().is_some() {
            return;
        }
        let network =
            CniNetwork { pod_cidrs: overlay.own.values().map(|own| own.pod_cidr).collect(), mtu: overlay.mtu };
        let is_current = match &self.cni {
            CniInstall::NotReady => false,
            CniInstall::Installing(current) | CniInstall::Ready(current) => *current == network,
            CniInstall::Failed { retry_at, .. } => now.monotonic < *retry_at,
        };
        if !is_current {
            effects.push(Effect::InstallCni(network.clone()));
            self.cni = CniInstall::Installing(network);
        }
    }

    /// Why pods cannot be added; `None` if they can.
    pub(crate) fn not_ready(&self, observed: Observed<'_>) -> Option<String> {
        if !observed.index.synced() {
            return Some("the agent has not listed the API server's objects since it started".to_owned());
        }
        let problem = observed.kernel.wanted().and_then(|plan| plan.problem.as_ref()).map(ToString::to_string);
        let shortfall = |shortfall: Shortfall<'_>| match shortfall {
            Shortfall::Failed(error) => error.to_owned(),
            Shortfall::Untried => "the agent has just started".to_owned(),
        };
        let cni = || match &self.cni {
            CniInstall::Failed { error, .. } => Some(error.clone()),
            CniInstall::NotReady | CniInstall::Installing(_) | CniInstall::Ready(_) => None,
        };
        problem
            .or_else(|| observed.kernel.table_shortfall().map(shortfall))
            .or_else(|| observed.kernel.network_shortfall().map(shortfall))
            .or_else(cni)
    }
}

fn log_changes(before: &[Condition], after: &[Condition], effects: &mut Vec<Effect>) {
    for new in after {
        if before.iter().find(|c| c.type_ == new.type_).is_none_or(|old| old.reason != new.reason) {
            effects.push(Effect::Log(LogLine::ConditionChanged {
                condition: new.type_.clone(),
                status: new.status.clone(),
                reason: new.reason.clone(),
                detail: new.message.clone(),
            }));
        }
    }
}

/// The API's spelling of a time.
fn api_time(time: SystemTime) -> Time {
    // The years from -9999 to 9999; a clock beyond is no clock.
    Time(Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_an_earlier_install_does_not_count_for_a_later_one() {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let network = |mtu| CniNetwork { pod_cidrs: Vec::new(), mtu };
        let mut status = Status::new();
        status.cni = CniInstall::Installing(network(1400));
        for result in [Ok(()), Err("no space".to_owned())] {
            status.cni_installed(&now, &network(1450), result, &mut Vec::new());
            assert_eq!(status.cni, CniInstall::Installing(network(1400)));
        }
        status.cni_installed(&now, &network(1400), Ok(()), &mut Vec::new());
        assert_eq!(status.cni, CniInstall::Ready(network(1400)));
    }
}
