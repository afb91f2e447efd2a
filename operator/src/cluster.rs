//! The state of the cluster as the operator observes it, folded from the watches. A plan is a function of it.

use ipnet::IpNet;
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap};
use towpath_crds::NetworkConfig;

use crate::{
    facts::{NodeFacts, PodFacts, ReportFacts},
    store::{Effect, ObjectEvent, Store},
};

/// One event of one of the watches.
#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// About a NetworkConfig.
    Config(ObjectEvent<Box<NetworkConfig>>),
    /// About a Node.
    Node(ObjectEvent<NodeFacts>),
    /// About a NetworkNode, the report of an agent.
    Report(ObjectEvent<ReportFacts>),
    /// About a pod of the agents.
    Pod(ObjectEvent<PodFacts>),
    /// About the agents' DaemonSet.
    DaemonSet(ObjectEvent<Box<DaemonSet>>),
    /// About a ConfigMap of the agents.
    ConfigMap(ObjectEvent<Box<ConfigMap>>),
    /// About a ServiceCIDR.
    ServiceCidr(ObjectEvent<Vec<IpNet>>),
}

/// The state of the cluster: one store per kind.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// NetworkConfigs; the API admits one, named `default`.
    pub configs: Store<Box<NetworkConfig>>,
    /// Nodes, by name.
    pub nodes: Store<NodeFacts>,
    /// The agents' reports (NetworkNodes), by node.
    pub reports: Store<ReportFacts>,
    /// The agents' pods, by name.
    pub pods: Store<PodFacts>,
    /// The agents' DaemonSet; at most one is watched.
    pub daemon_sets: Store<Box<DaemonSet>>,
    /// The agents' ConfigMaps, one per revision.
    pub config_maps: Store<Box<ConfigMap>>,
    /// The ranges of Services, by ServiceCIDR.
    pub service_cidrs: Store<Vec<IpNet>>,
}

impl ClusterState {
    /// Folds one event in.
    pub fn apply(&mut self, event: ClusterEvent) -> Effect {
        match event {
            ClusterEvent::Config(event) => self.configs.apply(event),
            ClusterEvent::Node(event) => self.nodes.apply(event),
            ClusterEvent::Report(event) => self.reports.apply(event),
            ClusterEvent::Pod(event) => self.pods.apply(event),
            ClusterEvent::DaemonSet(event) => self.daemon_sets.apply(event),
            ClusterEvent::ConfigMap(event) => self.config_maps.apply(event),
            ClusterEvent::ServiceCidr(event) => self.service_cidrs.apply(event),
        }
    }

    /// Whether every watch has completed its first list. Nothing is planned before that: an object that is not listed yet
    /// would look deleted.
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
