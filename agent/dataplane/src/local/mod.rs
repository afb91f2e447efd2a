//! What the agent and the CNI plugin of one node tell each other: files that either finds when it starts, and one socket.
//!
//! | Where | What | Written by |
//! |---|---|---|
//! | `/run/towpath/node.json` | [`NodeState`]: podCIDRs and MTU | the agent, once the data path is up |
//! | `/run/towpath/agent.sock` | [`Request`] and [`Reply`], a JSON object a line | the plugin asks, the agent answers |
//! | `/run/towpath/endpoints/` | [`EndpointFile`]: one per pod interface | the plugin |
//! | `/var/lib/cni/networks/<network>/` | [`AddressDir`]: one file per address in use | the plugin, as `host-local` does |
//!
//! `/run` is empty after a reboot and so are the pods' interfaces; the addresses' folder is not.

mod addresses;
mod endpoint;
mod node;
mod paths;
mod socket;

pub use addresses::{AddressDir, AddressError, LockedAddresses, Owner, Released, Reservation};
pub use endpoint::{Attachment, EndpointFile, Endpoints, Listing};
pub use node::NodeState;
pub use paths::{LocalError, NETWORK_NAME, Paths};
pub use socket::{AskError, Reply, Request, ask, tell};
