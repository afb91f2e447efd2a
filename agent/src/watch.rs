//! The API server's watches, each a task that turns what it sees into the index's events and sends them to the daemon.
//!
//! An object that cannot be read is named in the log and left out; it never stops a watch. When the API server is away,
//! each watch tries again after 1 to 8 seconds, with jitter; what was known stays known.

use std::{error::Error, fmt::Debug, time::Duration};

use backon::ExponentialBuilder;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::NetworkPolicy,
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
use tokio::sync::mpsc::UnboundedSender;
use towpath_index::{Change, Event};
use tracing::warn;

/// Starts all watches. They end with the receiver.
///
/// The channel has no bound: events are folded faster than the API server can send them, and a bound would only move
/// the queue into the sockets.
pub fn spawn<T: From<Event> + Send + 'static>(client: &Client, to: &UnboundedSender<T>) {
    tokio::spawn(watch::<Node, T>(client.clone(), Event::Node, to.clone()));
    tokio::spawn(watch::<Namespace, T>(client.clone(), Event::Namespace, to.clone()));
    tokio::spawn(watch::<NetworkPolicy, T>(client.clone(), Event::NetworkPolicy, to.clone()));
    tokio::spawn(watch::<Pod, T>(client.clone(), Event::Pod, to.clone()));
}

async fn watch<K, T>(client: Client, event: fn(Box<Change<K>>) -> Event, to: UnboundedSender<T>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    T: From<Event>,
{
    let kind = K::kind(&());
    let api: Api<DeserializeGuard<K>> = Api::all(client);
    let pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(8))
        .with_jitter()
        .without_max_times();
    let backoff = ExponentialBackoff::from(pauses);
    let mut events = watcher::watcher(api, watcher::Config::default()).backoff(backoff).boxed();
    loop {
        let change = match events.try_next().await {
            Ok(Some(watcher::Event::Apply(object))) => readable(object).map(Change::Applied),
            Ok(Some(watcher::Event::Delete(object))) => readable(object).map(Change::Deleted),
            Ok(Some(watcher::Event::Init)) => Some(Change::ListStarted),
            Ok(Some(watcher::Event::InitApply(object))) => readable(object).map(Change::Listed),
            Ok(Some(watcher::Event::InitDone)) => Some(Change::ListDone),
            Ok(None) => return,
            Err(error) => {
                warn!(%kind, error = &error as &dyn Error, "watch interrupted; what is known stays in force and the watch is tried again");
                None
            }
        };
        if let Some(change) = change
            && to.send(event(Box::new(change)).into()).is_err()
        {
            return;
        }
    }
}

/// The object without what nobody reads, or `None` if it is not what its kind says.
fn readable<K: Resource<DynamicType = ()>>(guard: DeserializeGuard<K>) -> Option<K> {
    match guard.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            Some(object)
        }
        Err(invalid) => {
            let kind = K::kind(&());
            let namespace = invalid.metadata.namespace.unwrap_or_default();
            let name = invalid.metadata.name.unwrap_or_default();
            warn!(%kind, namespace, name, error = invalid.error, "object left out: it does not have the form of its kind");
            None
        }
    }
}
