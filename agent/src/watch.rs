//! The API server's watches, each a task that turns what it sees into the index's events and sends them to the daemon.
//!
//! An object that cannot be read is named in the log, and what was known of it stays; it never stops a watch. When the API server is away,
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
    core::{DeserializeGuard, error_boundary::InvalidObject},
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
    K: Resource<DynamicType = ()> + Clone + Default + DeserializeOwned + Debug + Send + 'static,
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
            Ok(Some(watcher::Event::Apply(object))) => {
                Some(read(object).map_or_else(Change::Illegible, Change::Applied))
            }
            // Its name is enough.
            Ok(Some(watcher::Event::Delete(object))) => {
                Some(Change::Deleted(read(object).unwrap_or_else(|named| named)))
            }
            Ok(Some(watcher::Event::Init)) => Some(Change::ListStarted),
            Ok(Some(watcher::Event::InitApply(object))) => {
                Some(read(object).map_or_else(Change::Illegible, Change::Listed))
            }
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

/// The object without what nobody reads; if it is not what its kind says, an object with its name only.
fn read<K: Resource<DynamicType = ()> + Default>(guard: DeserializeGuard<K>) -> Result<K, K> {
    match guard.0 {
        Ok(mut object) => {
            object.managed_fields_mut().clear();
            Ok(object)
        }
        Err(InvalidObject { error, metadata }) => {
            let kind = K::kind(&());
            let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            warn!(%kind, namespace, name, error, "object not understood: it does not have the form of its kind; what was known of it stays");
            let mut named = K::default();
            *named.meta_mut() = metadata;
            Err(named)
        }
    }
}
