//! The watches as one stream of events. Each object is reduced to its facts here; nothing else of it is kept.
//!
//! An object that cannot be decoded does not stop its watch: it is passed on as undecodable, counted, and logged once for
//! each error.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use backon::ExponentialBuilder;
use futures::{StreamExt, stream::BoxStream, stream::SelectAll};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Node, Pod},
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, ExponentialBackoff},
    },
};
use serde::de::DeserializeOwned;
use towpath_crds::{NetworkConfig, NetworkNode, names};

use crate::{
    cluster::ClusterEvent,
    facts::{NodeFacts, PodFacts, ReportFacts},
    metrics::{KindLabel, Metrics},
    store::ObjectEvent,
};

/// Objects per page of a list. A page is decoded as a whole and takes about ten times its text: the watcher's default of
/// 500 objects would be 50 MB for Nodes of 10 kB.
const PAGE: u32 = 50;

/// Every watch of the operator.
pub type ClusterEvents = SelectAll<BoxStream<'static, ClusterEvent>>;

/// What to do when the cluster does not serve a kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingKind {
    /// Go on without it: the cluster is older than the kind.
    Accepted,
    /// Retry: our own installation is incomplete.
    Failure,
}

/// Starts every watch. A watch that fails is retried after 1 to 8 seconds.
pub fn start_watches(client: &Client, metrics: &Metrics) -> ClusterEvents {
    let all = || watcher::Config::default().page_size(PAGE);
    let agents = all().labels(&format!("{}={}", names::LABEL_NAME, names::AGENT));
    let agent_daemon_set = all().fields(&format!("metadata.name={}", names::AGENT));
    let required = WatchBuilder { metrics: metrics.clone(), missing_kind: MissingKind::Failure };
    let optional = WatchBuilder { missing_kind: MissingKind::Accepted, ..required.clone() };
    let node_facts = |node: Node| NodeFacts::from(&node);
    let report_facts = |node: NetworkNode| ReportFacts::from(&node);
    let pod_facts = |pod: Pod| PodFacts::from(&pod);
    let (pods, daemon_sets, config_maps) = (namespaced(client), namespaced(client), namespaced(client));

    let mut events = SelectAll::new();
    events.push(required.open(Api::all(client.clone()), all(), trimmed::<NetworkConfig>, ClusterEvent::Config));
    events.push(required.open(Api::all(client.clone()), all(), node_facts, ClusterEvent::Node));
    events.push(required.open(Api::all(client.clone()), all(), report_facts, ClusterEvent::Report));
    events.push(optional.open(Api::all(client.clone()), all(), service_cidrs, ClusterEvent::ServiceCidr));
    events.push(required.open(pods, agents.clone(), pod_facts, ClusterEvent::Pod));
    // Not trimmed: managedFields tell which fields others have added.
    events.push(required.open(daemon_sets, agent_daemon_set, Box::<DaemonSet>::new, ClusterEvent::DaemonSet));
    events.push(required.open(config_maps, agents, trimmed::<ConfigMap>, ClusterEvent::ConfigMap));
    events
}

fn namespaced<K>(client: &Client) -> Api<DeserializeGuard<K>>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), names::NAMESPACE)
}

/// The watcher's own backoff would let up to a minute pass after the API server is back.
fn backoff() -> ExponentialBackoff {
    let bounds = ExponentialBuilder::new()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(8))
        .with_jitter()
        .without_max_times();
    ExponentialBackoff::from(bounds)
}

fn trimmed<K: Resource>(mut object: K) -> Box<K> {
    object.managed_fields_mut().clear();
    Box::new(object)
}

fn service_cidrs(object: ServiceCIDR) -> Vec<ipnet::IpNet> {
    let cidrs = object.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

#[derive(Clone)]
struct WatchBuilder {
    metrics: Metrics,
    missing_kind: MissingKind,
}

impl WatchBuilder {
    fn open<K, T>(
        &self,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        facts: fn(K) -> T,
        wrap: fn(ObjectEvent<T>) -> ClusterEvent,
    ) -> BoxStream<'static, ClusterEvent>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
        T: 'static,
    {
        let builder = self.clone();
        let mut errors = DecodeErrors::default();
        let events = watcher::watcher(api, config).backoff(backoff()).filter_map(move |event| {
            let event = match event {
                Ok(event) => Some(builder.event(event, facts, &mut errors)),
                Err(error) => builder.failure::<K, T>(&error),
            };
            std::future::ready(event.map(wrap))
        });
        events.boxed()
    }

    fn event<K, T>(
        &self,
        event: watcher::Event<DeserializeGuard<K>>,
        facts: fn(K) -> T,
        errors: &mut DecodeErrors,
    ) -> ObjectEvent<T>
    where
        K: Resource<DynamicType = ()>,
    {
        match event {
            watcher::Event::Init => {
                errors.list_started();
                ObjectEvent::ListStarted
            }
            watcher::Event::InitApply(object) => match self.decoded(object, errors) {
                (name, Some(object)) => ObjectEvent::Listed(name, facts(object)),
                (name, None) => ObjectEvent::ListedUndecodable(name),
            },
            watcher::Event::InitDone => {
                errors.list_done();
                ObjectEvent::ListDone
            }
            watcher::Event::Apply(object) => match self.decoded(object, errors) {
                (name, Some(object)) => ObjectEvent::Applied(name, facts(object)),
                (name, None) => ObjectEvent::Undecodable(name),
            },
            watcher::Event::Delete(object) => {
                let name = object.name_any();
                errors.clear(&name);
                ObjectEvent::Deleted(name)
            }
        }
    }

    /// The object's name, and the object unless it cannot be decoded, which is counted and logged.
    fn decoded<K>(&self, object: DeserializeGuard<K>, errors: &mut DecodeErrors) -> (String, Option<K>)
    where
        K: Resource<DynamicType = ()>,
    {
        let name = object.name_any();
        match object.0 {
            Ok(object) => {
                errors.clear(&name);
                (name, Some(object))
            }
            Err(invalid) => {
                let kind = kind_of::<K>();
                self.metrics.unreadable.get_or_create(&KindLabel { kind }).inc();
                if errors.is_new(&name, &invalid.error) {
                    tracing::error!(
                        kind,
                        name,
                        error = invalid.error,
                        "object cannot be decoded: its last known state is kept; compare the versions of operator and CRD"
                    );
                }
                (name, None)
            }
        }
    }

    fn failure<K: Resource<DynamicType = ()>, T>(&self, error: &watcher::Error) -> Option<ObjectEvent<T>> {
        let kind = kind_of::<K>();
        if self.missing_kind == MissingKind::Accepted && is_not_found(error) {
            tracing::debug!(kind, "kind is not served");
            return Some(ObjectEvent::NotServed);
        }
        self.metrics.watch_failures.get_or_create(&KindLabel { kind }).inc();
        tracing::warn!(kind, error = %error, "watch failed, will retry");
        None
    }
}

/// The decode errors of one watch that have been logged, by object, so that each is logged once.
#[derive(Default)]
struct DecodeErrors {
    current: BTreeMap<String, String>,
    /// Those from before the list in progress. Objects that it does not contain are dropped at its end.
    former: BTreeMap<String, String>,
}

impl DecodeErrors {
    /// Records an error; returns whether the object did not have it before.
    fn is_new(&mut self, name: &str, error: &str) -> bool {
        let former = self.former.remove(name);
        let current = self.current.insert(name.to_owned(), error.to_owned());
        current.or(former).as_deref() != Some(error)
    }

    fn clear(&mut self, name: &str) {
        self.current.remove(name);
        self.former.remove(name);
    }

    fn list_started(&mut self) {
        self.former.append(&mut self.current);
    }

    fn list_done(&mut self) {
        self.former.clear();
    }
}

fn is_not_found(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

/// The kind's name as a label.
fn kind_of<K: Resource<DynamicType = ()>>() -> &'static str {
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "other",
    }
}
