//! Everything that the operator knows of the cluster, folded from watches. A plan is a function of this.

use ipnet::IpNet;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap};
use towpath_crds::NetworkConfig;

use crate::{
    facts::{NodeFacts, PodFacts, ReportFacts},
    table::{Effect, Step, Table},
};

/// One step of one of the watches.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of the NetworkConfig.
    Config(Step<Box<NetworkConfig>>),
    /// Of the Nodes.
    Node(Step<NodeFacts>),
    /// Of the NetworkNodes.
    Report(Step<ReportFacts>),
    /// Of the agents' pods.
    Pod(Step<PodFacts>),
    /// Of the agents' DaemonSet.
    DaemonSet(Step<Box<DaemonSet>>),
    /// Of the agents' ConfigMaps.
    ConfigMap(Step<Box<ConfigMap>>),
    /// Of the cluster's ServiceCIDRs.
    ServiceCidr(Step<Vec<IpNet>>),
}

/// Everything that the operator knows of the cluster.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// NetworkConfigs; the API admits one.
    pub configs: Table<Box<NetworkConfig>>,
    /// Nodes.
    pub nodes: Table<NodeFacts>,
    /// What the agents report, by node.
    pub reports: Table<ReportFacts>,
    /// The agents' pods.
    pub pods: Table<PodFacts>,
    /// The agents' DaemonSet.
    pub daemon_sets: Table<Box<DaemonSet>>,
    /// The agents' ConfigMaps.
    pub config_maps: Table<Box<ConfigMap>>,
    /// The cluster's ServiceCIDRs.
    pub service_cidrs: Table<Vec<IpNet>>,
}

impl World {
    /// Folds one step in.
    pub fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Config(step) => self.configs.apply(step),
            Change::Node(step) => self.nodes.apply(step),
            Change::Report(step) => self.reports.apply(step),
            Change::Pod(step) => self.pods.apply(step),
            Change::DaemonSet(step) => self.daemon_sets.apply(step),
            Change::ConfigMap(step) => self.config_maps.apply(step),
            Change::ServiceCidr(step) => self.service_cidrs.apply(step),
        }
    }

    /// Whether every watch has listed once. Before that nothing is planned: what is not known yet would look deleted.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.configs.is_synced()
            && self.nodes.is_synced()
            && self.reports.is_synced()
            && self.pods.is_synced()
            && self.daemon_sets.is_synced()
            && self.config_maps.is_synced()
            && self.service_cidrs.is_synced()
    }
}
