//! The watches of the API server, each a task that sends the index's events to the daemon.
//!
//! An object that cannot be decoded is logged, and the index keeps what it knows of it; it never stops a watch. While the API
//! server cannot be reached, each watch tries again after 1 to 8 seconds with jitter, and the index keeps everything.
//!
//! Only the fields that the index reads are decoded (`trimmed`), and completed pods are not watched.

mod trimmed;

use std::{fmt::Debug, time::Duration};

use backon::ExponentialBuilder;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, ExponentialBackoff},
    },
};
use tokio::sync::mpsc::UnboundedSender;
use towpath_index::{Event, ObjectChange};
use tracing::warn;

use self::trimmed::{Trimmed, Watched};
use crate::error_text::with_causes;

/// Pods that are not completed. The API server sends DELETED for an object that no longer matches a watch's selector.
const NOT_COMPLETED: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// How many objects a page of a list has at most: the text of a page is in memory as a whole.
const PAGE_SIZE: u32 = 250;

/// Starts all watches. They end with the receiver.
///
/// The channel is unbounded: the index folds events faster than the API server sends them, and a bound would only move the
/// queue into the sockets.
pub fn spawn<T: From<Event> + Send + 'static>(client: &Client, to: &UnboundedSender<T>) {
    let all = || watcher::Config::default().page_size(PAGE_SIZE);
    let not_completed = all().fields(NOT_COMPLETED);
    tokio::spawn(watch::<Node, T>(client.clone(), all(), Event::Node, to.clone()));
    tokio::spawn(watch::<Namespace, T>(client.clone(), all(), Event::Namespace, to.clone()));
    tokio::spawn(watch::<NetworkPolicy, T>(client.clone(), all(), Event::NetworkPolicy, to.clone()));
    tokio::spawn(watch::<Pod, T>(client.clone(), not_completed, Event::Pod, to.clone()));
}

async fn watch<K, T>(
    client: Client,
    config: watcher::Config,
    event: fn(Box<ObjectChange<K>>) -> Event,
    to: UnboundedSender<T>,
) where
    K: Watched + Clone + Debug + Send + 'static,
    T: From<Event>,
{
    let kind = K::kind(&());
    let api: Api<Trimmed<K>> = Api::all(client);
    let pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(8))
        .with_jitter()
        .without_max_times();
    let backoff = ExponentialBackoff::from(pauses);
    let mut events = watcher::watcher(api, config).backoff(backoff).boxed();
    loop {
        let change = match events.try_next().await {
            Ok(Some(watcher::Event::Apply(object))) => {
                Some(decoded(object).map_or_else(ObjectChange::Undecodable, ObjectChange::Applied))
            }
            // The name is enough.
            Ok(Some(watcher::Event::Delete(trimmed))) => Some(ObjectChange::Deleted(trimmed.object)),
            Ok(Some(watcher::Event::Init)) => Some(ObjectChange::ListStarted),
            Ok(Some(watcher::Event::InitApply(object))) => {
                Some(decoded(object).map_or_else(ObjectChange::Undecodable, ObjectChange::Listed))
            }
            Ok(Some(watcher::Event::InitDone)) => Some(ObjectChange::ListDone),
            Ok(None) => return,
            Err(error) => {
                warn!(%kind, error = with_causes(&error), "watch interrupted; rules and routes stay as they are; tried again");
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

/// The object; if it cannot be decoded, one with its name only.
fn decoded<K: Watched>(Trimmed { object, error }: Trimmed<K>) -> Result<K, K> {
    let Some(error) = error else { return Ok(object) };
    let kind = K::kind(&());
    let (namespace, name) = (object.meta().namespace.as_deref(), object.meta().name.as_deref());
    warn!(%kind, namespace, name, error, "object not decoded; its last known state stays in force: compare the versions of agent and API server");
    Err(object)
}

#[cfg(test)]
mod tests;
