//! DEL, and the undoing of an ADD that failed.

use std::{path::Path, time::Duration};

use towpath_local::{AddressDir, Attachment, EndpointFile, Endpoints, LocalError, Request, tell};
use towpath_podlink::{PodLink, netns::Netns};

use crate::{config::NetConf, error::CniError};

/// How long an agent that is stopped may hold up a DEL. One that is away or at work takes no time.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// How far an interface came that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Its record and addresses; the link is not its own.
    Files,
    /// The link too, and the agent knows it.
    All,
}

/// Takes a pod's interface and addresses away. Succeeds as often as it is asked, with the namespace gone, with the agent
/// away, and for pods that another plugin with `host-local` addresses made.
pub(crate) fn del(conf: &NetConf, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
    let endpoints = Endpoints::new(&conf.paths);
    match endpoints.read(attachment) {
        Ok(Some(endpoint)) => remove(conf, attachment, &endpoint, Remains::All),
        Ok(None) => del_unrecorded(conf, attachment, netns),
        Err(error @ LocalError::Damaged { .. }) => {
            // The record is of no use any more: what it said is found without it.
            eprintln!("towpath: {error}");
            del_unrecorded(conf, attachment, netns)?;
            endpoints.remove(attachment).map_err(CniError::Local)
        }
        Err(error) => Err(CniError::Local(error)),
    }
}

/// Removes what a record names. The record goes last: whatever fails before it is tried again by the next DEL.
pub(crate) fn remove(
    conf: &NetConf,
    attachment: &Attachment,
    endpoint: &EndpointFile,
    remains: Remains,
) -> Result<(), CniError> {
    match remains {
        Remains::Files => {}
        Remains::All => {
            PodLink::delete(&endpoint.host_interface).map_err(CniError::Link)?;
        }
    }
    let dir = AddressDir::new(conf.paths.addresses(&conf.name));
    let locked = dir.lock().map_err(CniError::Addresses)?;
    for addr in &endpoint.addresses {
        locked.release(*addr, attachment).map_err(CniError::Addresses)?;
    }
    Endpoints::new(&conf.paths).remove(attachment).map_err(CniError::Local)?;
    drop(locked);
    match remains {
        Remains::Files => {}
        Remains::All => {
            let (container_id, ifname) = (endpoint.container_id.clone(), endpoint.ifname.to_string());
            // An agent that is away finds it out from the folder of records, where this one is missing now.
            let _ = tell(&conf.paths, &Request::Del { container_id, ifname }, TELL_LIMIT);
        }
    }
    Ok(())
}

/// A pod without a record: removed already, or made by the plugin before us. Its interface is looked for inside its own
/// namespace and never by the name on the host, which by now can be a younger container's of the same pod.
fn del_unrecorded(conf: &NetConf, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
    if let Some(Ok(netns)) = netns.map(Netns::open) {
        let deleted = netns.run(|| PodLink::delete(attachment.ifname())).map_err(CniError::Netns)?;
        deleted.map_err(CniError::Link)?;
    }
    let dir = AddressDir::new(conf.paths.addresses(&conf.name));
    if !dir.path().exists() {
        return Ok(());
    }
    let locked = dir.lock().map_err(CniError::Addresses)?;
    for reservation in locked.reservations().map_err(CniError::Addresses)? {
        if reservation.owner.is(attachment) {
            locked.free(reservation.addr).map_err(CniError::Addresses)?;
        }
    }
    Ok(())
}
