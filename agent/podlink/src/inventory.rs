//! The links and addresses of all pods on the node: for clean-ups, which must not take anything from a running pod.

use std::{collections::BTreeSet, net::IpAddr};

use towpath_core::{
    model::{Family, host_net},
    names::IfName,
    overlay::RouteTarget,
};

use crate::{
    link::{PodLinkError, open},
    route::{message, parse},
};

/// The links and addresses of pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInventory {
    /// The host ends of our pods' links.
    pub links: BTreeSet<IfName>,
    /// Addresses with a route of their own to a link: those of running pods, ours and Canal's.
    pub routed: BTreeSet<IpAddr>,
}

impl PodInventory {
    /// Reads the inventory in three dumps.
    ///
    /// # Errors
    /// If a dump fails.
    pub fn read() -> Result<Self, PodLinkError> {
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| PodLinkError::Host { step, source }
        };
        let mut socket = open()?;
        let links = socket.dump(message::all_links()).map_err(failed("list the links"))?;
        let links = parse::links(&links).map(|(_, link)| link.name).filter(IfName::is_pod).collect();
        let mut routed = BTreeSet::new();
        for family in Family::ALL {
            let routes = socket.dump(message::main_routes(family)).map_err(failed("list the routes"))?;
            let to_link = parse::routes(&routes).filter(|(_, route)| matches!(route.target, RouteTarget::Link(_)));
            let single = to_link.map(|(key, _)| key.destination).filter(|net| *net == host_net(net.addr()));
            routed.extend(single.map(|net| net.addr()));
        }
        Ok(Self { links, routed })
    }
}
