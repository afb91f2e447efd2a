//! Watches as one stream of changes. Each object is reduced to its facts here; nothing else of it is kept.

use std::{fmt::Debug, time::Duration};

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

/// How many objects a page of a list has at most. A page is decoded as a whole, and takes some ten times its text: five
/// hundred Nodes of ten kilobytes, a page as it is unless said otherwise, would be fifty megabytes.
const PAGE: u32 = 50;

/// Every watch of the operator.
pub type ClusterEvents = SelectAll<BoxStream<'static, ClusterEvent>>;

/// What it means that the cluster does not serve a kind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingKind {
    /// It is an older cluster: an answer.
    Accepted,
    /// Our own installation is incomplete: a failure, tried again.
    Failure,
}

/// Opens every watch. They recover by themselves, after 1 to 8 seconds.
pub fn changes(client: &Client, metrics: &Metrics) -> ClusterEvents {
    let here = names::NAMESPACE;
    let all = || watcher::Config::default().page_size(PAGE);
    let agents = all().labels(&format!("{}={}", names::LABEL_NAME, names::AGENT));
    let the_set = all().fields(&format!("metadata.name={}", names::AGENT));
    let builder = WatchBuilder { metrics: metrics.clone(), missing_kind: MissingKind::Failure };
    let services = WatchBuilder { missing_kind: MissingKind::Accepted, ..builder.clone() };
    let mut changes = SelectAll::new();
    changes.push(builder.open(Api::all(client.clone()), all(), trimmed::<NetworkConfig>, ClusterEvent::Config));
    changes.push(builder.open(
        Api::all(client.clone()),
        all(),
        |node: Node| NodeFacts::from(&node),
        ClusterEvent::Node,
    ));
    changes.push(builder.open(
        Api::all(client.clone()),
        all(),
        |node: NetworkNode| ReportFacts::from(&node),
        ClusterEvent::Report,
    ));
    changes.push(services.open(Api::all(client.clone()), all(), service_cidrs, ClusterEvent::ServiceCidr));
    let pods = Api::namespaced(client.clone(), here);
    changes.push(builder.open(pods, agents.clone(), |pod: Pod| PodFacts::from(&pod), ClusterEvent::Pod));
    // Who owns which field of the DaemonSet is needed to find what others added.
    changes.push(builder.open(
        Api::namespaced(client.clone(), here),
        the_set,
        Box::<DaemonSet>::new,
        ClusterEvent::DaemonSet,
    ));
    changes.push(builder.open(
        Api::namespaced(client.clone(), here),
        agents,
        trimmed::<ConfigMap>,
        ClusterEvent::ConfigMap,
    ));
    changes
}

/// Not the watcher's own, which lets up to a minute go by after the API server is back.
fn pauses() -> ExponentialBackoff {
    let least_and_most = ExponentialBuilder::new()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(8))
        .with_jitter()
        .without_max_times();
    ExponentialBackoff::from(least_and_most)
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
        let steps = watcher::watcher(api, config).backoff(pauses()).filter_map(move |event| {
            let step = match event {
                Ok(event) => Some(builder.step(event, facts)),
                Err(error) => builder.failure::<K, T>(&error),
            };
            std::future::ready(step.map(wrap))
        });
        steps.boxed()
    }

    fn step<K, T>(&self, event: watcher::Event<DeserializeGuard<K>>, facts: fn(K) -> T) -> ObjectEvent<T>
    where
        K: Resource<DynamicType = ()>,
    {
        match event {
            watcher::Event::Init => ObjectEvent::ListStarted,
            watcher::Event::InitApply(object) => self.read(object, facts, ObjectEvent::Listed),
            watcher::Event::InitDone => ObjectEvent::ListDone,
            watcher::Event::Apply(object) => self.read(object, facts, ObjectEvent::Applied),
            watcher::Event::Delete(object) => ObjectEvent::Deleted(object.name_any()),
        }
    }

    /// One object that cannot be read must not stop the watch: it is told, and left out.
    fn read<K, T>(
        &self,
        object: DeserializeGuard<K>,
        facts: fn(K) -> T,
        step: fn(String, T) -> ObjectEvent<T>,
    ) -> ObjectEvent<T>
    where
        K: Resource<DynamicType = ()>,
    {
        let name = object.name_any();
        match object.0 {
            Ok(object) => step(name, facts(object)),
            Err(invalid) => {
                let kind = kind_of::<K>();
                self.metrics.unreadable.get_or_create(&KindLabel { kind }).inc();
                tracing::error!(kind, name, error = %invalid.error, "object left out: it cannot be read");
                ObjectEvent::Deleted(name)
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
        tracing::warn!(kind, error = %error, "watch failed, tried again");
        None
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
