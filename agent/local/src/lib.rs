#![doc = include_str!("../README.md")]

mod addresses;
mod endpoint;
mod node;
mod paths;
mod socket;

pub use addresses::{AddressDir, AddressError, AddressOwner, LockedAddresses, ReleaseOutcome, Reservation};
pub use endpoint::{Attachment, EndpointFile, Endpoints, Listing};
pub use node::NodeState;
pub use paths::{LocalError, NETWORK_NAME, Paths};
pub use socket::{AskError, Reply, Request, ask, notify};
