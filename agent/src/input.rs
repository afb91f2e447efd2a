//! What the daemon hears, from wherever it comes: one channel, one order.

use towpath_dataplane::{conntrack::ConntrackError, nflog::Batch};
use towpath_index::Event;

use crate::{
    cni_server::CniRequest,
    connections::{Cleared, Cuts},
    kernel::{Done, Notice},
};

/// One thing that happened.
#[derive(Debug)]
pub enum Input {
    /// In the API.
    Watch(Event),
    /// The CNI plugin asks.
    Cni(CniRequest),
    /// A job is done.
    Done(Done),
    /// The kernel tells.
    Notice(Notice),
    /// The connections were looked through.
    Reviewed(Result<Cuts, ConntrackError>),
    /// What an address left behind is gone.
    Cleared(Cleared),
    /// The files for plugin and runtime are written, or not.
    Opened(anyhow::Result<()>),
    /// Policies dropped packets.
    Denied(Batch),
}

macro_rules! from {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for Input {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}

from!(Event => Watch, CniRequest => Cni, Done => Done, Notice => Notice, Result<Cuts, ConntrackError> => Reviewed, Cleared => Cleared, Batch => Denied);
