//! Firewalls of other programs: their tables as they were read last, and which of their chains drop pod traffic.

use towpath_core::foreign_firewall::{Certainty, ForeignTable, ForwardDrop, PodTraffic, findings};
use towpath_crds::{condition::NodeReason, network_node::Finding};

use super::{Observed, report::truncate};
use crate::plan::OverlayPlan;

/// How many findings are reported; the schema allows as many.
const MAX_FINDINGS: usize = 16;
/// How many characters of a message and of a remedy are kept; the schema allows 512.
const MAX_TEXT: usize = 500;

/// What other programs do with pod traffic. Evaluated again only when their tables or the traffic differ.
#[derive(Debug, Default)]
pub(crate) struct FirewallCheck {
    tables: Vec<ForeignTable>,
    traffic: PodTraffic,
    drops: Vec<ForwardDrop>,
}

impl FirewallCheck {
    /// The tables were read.
    pub(crate) fn read(&mut self, tables: Vec<ForeignTable>) {
        if self.tables != tables {
            self.tables = tables;
            self.evaluate();
        }
    }

    /// The traffic that must pass is as the plan has it. Without an overlay there is none.
    pub(super) fn observe(&mut self, observed: Observed<'_>) {
        // This is on the way of each change, and the traffic is the same nearly always.
        if observed.kernel.overlay().is_some_and(|overlay| self.traffic_is_of(overlay)) {
            return;
        }
        let traffic = observed.kernel.overlay().map_or_else(PodTraffic::default, |overlay| PodTraffic {
            own: overlay.own.iter().map(|(family, own)| (*family, own.pod_cidr)).collect(),
            cluster: observed.settings.pod_cidrs.iter().copied().collect(),
            overlay: overlay.overlay.devices.iter().map(|(family, device)| (*family, device.name.clone())).collect(),
        });
        if self.traffic != traffic {
            self.traffic = traffic;
            self.evaluate();
        }
    }

    /// Whether the traffic is that of the overlay. The podCIDRs of the cluster stay the same for an agent's life.
    fn traffic_is_of(&self, overlay: &OverlayPlan) -> bool {
        let own = overlay.own.iter().map(|(family, own)| (family, &own.pod_cidr));
        let devices = overlay.overlay.devices.iter().map(|(family, device)| (family, &device.name));
        self.traffic.own.iter().eq(own) && self.traffic.overlay.iter().eq(devices)
    }

    fn evaluate(&mut self) {
        self.drops = findings(&self.tables, &self.traffic);
        // The worst first; otherwise in the order of tables and chains.
        self.drops.sort_by_key(|drop| std::cmp::Reverse(drop.certainty));
    }

    /// Why the node is not ready: the first chain that drops for certain, and what to do.
    pub(super) fn closed(&self) -> Option<String> {
        let certain = self.drops.iter().filter(|drop| drop.certainty == Certainty::Certain);
        let others = match certain.clone().count() {
            0 | 1 => String::new(),
            count => format!("; {} more in status.findings", count - 1),
        };
        certain.clone().next().map(|drop| format!("{drop}. Remedy: {}{others}", drop.remedy()))
    }

    /// The entries of the status.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let finding = |drop: &ForwardDrop| Finding {
            name: NodeReason::ForeignFirewall.as_str().to_owned(),
            message: truncate(drop.to_string(), MAX_TEXT),
            remedy: truncate(drop.remedy(), MAX_TEXT),
        };
        self.drops.iter().take(MAX_FINDINGS).map(finding).collect()
    }
}
