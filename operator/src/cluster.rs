//! Everything that the operator knows of the cluster, folded from watches. A plan is a function of this.

use ipnet::IpNet;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap};
use towpath_crds::NetworkConfig;

use crate::{
    facts::{NodeFacts, PodFacts, ReportFacts},
    store::{Effect, ObjectEvent, Store},
};

/// One step of one of the watches.
#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// Of the NetworkConfig.
    Config(ObjectEvent<Box<NetworkConfig>>),
    /// Of the Nodes.
    Node(ObjectEvent<NodeFacts>),
    /// Of the NetworkNodes.
    Report(ObjectEvent<ReportFacts>),
    /// Of the agents' pods.
    Pod(ObjectEvent<PodFacts>),
    /// Of the agents' DaemonSet.
    DaemonSet(ObjectEvent<Box<DaemonSet>>),
    /// Of the agents' ConfigMaps.
    ConfigMap(ObjectEvent<Box<ConfigMap>>),
    /// Of the cluster's ServiceCIDRs.
    ServiceCidr(ObjectEvent<Vec<IpNet>>),
}

/// Everything that the operator knows of the cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// NetworkConfigs; the API admits one.
    pub configs: Store<Box<NetworkConfig>>,
    /// Nodes.
    pub nodes: Store<NodeFacts>,
    /// What the agents report, by node.
    pub reports: Store<ReportFacts>,
    /// The agents' pods.
    pub pods: Store<PodFacts>,
    /// The agents' DaemonSet.
    pub daemon_sets: Store<Box<DaemonSet>>,
    /// The agents' ConfigMaps.
    pub config_maps: Store<Box<ConfigMap>>,
    /// The cluster's ServiceCIDRs.
    pub service_cidrs: Store<Vec<IpNet>>,
}

impl ClusterState {
    /// Folds one step in.
    pub fn apply(&mut self, change: ClusterEvent) -> Effect {
        match change {
            ClusterEvent::Config(step) => self.configs.apply(step),
            ClusterEvent::Node(step) => self.nodes.apply(step),
            ClusterEvent::Report(step) => self.reports.apply(step),
            ClusterEvent::Pod(step) => self.pods.apply(step),
            ClusterEvent::DaemonSet(step) => self.daemon_sets.apply(step),
            ClusterEvent::ConfigMap(step) => self.config_maps.apply(step),
            ClusterEvent::ServiceCidr(step) => self.service_cidrs.apply(step),
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
