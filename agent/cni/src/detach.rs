//! DEL, and the undo of an ADD that failed.

use std::{path::Path, time::Duration};

use towpath_local::{AddressDir, Attachment, EndpointFile, Endpoints, LocalError, Request, notify};
use towpath_podlink::{PodLink, netns::Netns};

use crate::{config::NetConf, error::CniError};

/// How long a stopped agent may delay a DEL. One that is not running or busy takes no time.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);

/// What there is of an interface that is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleanup {
    /// Its endpoint file and addresses; the link, if there is one, is another container's.
    Files,
    /// The link too, and the agent has to be notified.
    All,
}

/// Removes a pod's interface and addresses. Succeeds repeatedly, without the namespace, without the agent, and
/// for pods that another plugin with `host-local` addresses created.
pub(crate) fn del(conf: &NetConf, attachment: &Attachment, netns: Option<&Path>) -> Result<(), CniError> {
    let endpoints = Endpoints::new(&conf.paths);
    match endpoints.read(attachment) {
        Ok(Some(endpoint)) => remove(conf, attachment, &endpoint, Cleanup::All),
        Ok(None) => del_unrecorded(conf, attachment, netns),
        Err(error @ LocalError::Damaged { .. }) => {
            // The endpoint file is of no use any more: what it named is found without it.
            eprintln!("towpath: {error}");
            del_unrecorded(conf, attachment, netns)?;
            endpoints.remove(attachment).map_err(CniError::Local)
        }
        Err(error) => Err(CniError::Local(error)),
    }
}

/// Removes what an endpoint file names. The file goes last, so that the next DEL repeats whatever fails before.
pub(crate) fn remove(
    conf: &NetConf,
    attachment: &Attachment,
    endpoint: &EndpointFile,
    cleanup: Cleanup,
) -> Result<(), CniError> {
    match cleanup {
        Cleanup::Files => {}
        Cleanup::All => {
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
    match cleanup {
        Cleanup::Files => {}
        Cleanup::All => {
            let (container_id, ifname) = (endpoint.container_id.clone(), endpoint.ifname.to_string());
            // An agent that is not running finds it out from the directory of endpoint files, where this one is missing.
            let _ = notify(&conf.paths, &Request::Del { container_id, ifname }, NOTIFY_TIMEOUT);
        }
    }
    Ok(())
}

/// A pod without an endpoint file: removed already, or created by the plugin before us. Its interface is looked up inside
/// its own namespace and never by the name on the host, which may belong to a younger container of the same pod.
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
            locked.force_release(reservation.addr).map_err(CniError::Addresses)?;
        }
    }
    Ok(())
}
