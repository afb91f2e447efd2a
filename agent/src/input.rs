//! What reaches the daemon, from all sources: one channel, one order.

use tokio::sync::oneshot;
use towpath_index::Event;
use towpath_local::Reply;
use towpath_node::{CniRequest, Input};

/// One message to the daemon.
#[derive(Debug)]
pub enum Arrival {
    /// An input of the node.
    Input(Input),
    /// A request of the CNI plugin: the daemon keeps the sender under a ticket that it gives the node.
    Cni(CniRequest, oneshot::Sender<Reply>),
}

impl From<Event> for Arrival {
    fn from(event: Event) -> Self {
        Self::Input(Input::Watch(event))
    }
}
