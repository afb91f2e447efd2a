//! The API server's watches, each a task that turns what it sees into the index's events and sends them to the daemon.
//!
//! An object that cannot be read is named in the log, and what was known of it stays; it never stops a watch. When the API server is away,
//! each watch tries again after 1 to 8 seconds, with jitter; what was known stays known.
//!
//! Of each object only what the index reads is decoded (`trimmed`), and pods that have run to their end do not come at all.

mod trimmed;

use std::{error::Error, fmt::Debug, time::Duration};

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

/// Pods that have not run to their end. To a watch, one that does is deleted: the API server says so of each object that
/// no longer fits the watch's selector.
const ALIVE: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// How many objects a page of a list has at most. The text of a page is in memory as a whole.
const PAGE: u32 = 250;

/// Starts all watches. They end with the receiver.
///
/// The channel has no bound: events are folded faster than the API server can send them, and a bound would only move
/// the queue into the sockets.
pub fn spawn<T: From<Event> + Send + 'static>(client: &Client, to: &UnboundedSender<T>) {
    let all = || watcher::Config::default().page_size(PAGE);
    let alive = all().fields(ALIVE);
    tokio::spawn(watch::<Node, T>(client.clone(), all(), Event::Node, to.clone()));
    tokio::spawn(watch::<Namespace, T>(client.clone(), all(), Event::Namespace, to.clone()));
    tokio::spawn(watch::<NetworkPolicy, T>(client.clone(), all(), Event::NetworkPolicy, to.clone()));
    tokio::spawn(watch::<Pod, T>(client.clone(), alive, Event::Pod, to.clone()));
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
                Some(read(object).map_or_else(ObjectChange::Undecodable, ObjectChange::Applied))
            }
            // Its name is enough.
            Ok(Some(watcher::Event::Delete(trimmed))) => Some(ObjectChange::Deleted(trimmed.object)),
            Ok(Some(watcher::Event::Init)) => Some(ObjectChange::ListStarted),
            Ok(Some(watcher::Event::InitApply(object))) => {
                Some(read(object).map_or_else(ObjectChange::Undecodable, ObjectChange::Listed))
            }
            Ok(Some(watcher::Event::InitDone)) => Some(ObjectChange::ListDone),
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

/// The object; if it has not the form of its kind, one with its name only.
fn read<K: Watched>(Trimmed { object, error }: Trimmed<K>) -> Result<K, K> {
    let Some(error) = error else { return Ok(object) };
    let kind = K::kind(&());
    let (namespace, name) = (object.meta().namespace.as_deref(), object.meta().name.as_deref());
    warn!(%kind, namespace, name, error, "object not understood: it does not have the form of its kind; what was known of it stays");
    Err(object)
}

#[cfg(test)]
mod tests;
