//! GC: removes everything of attachments that the runtime no longer lists, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
};

use towpath_core::names::IfName;
use towpath_local::{AddressDir, AddressOwner, Attachment, EndpointFile, Endpoints, LocalError};
use towpath_podlink::{PodInventory, PodLink};

use crate::{
    config::NetConf,
    detach::{self, Cleanup},
    error::CniError,
};

/// One garbage collection. Failures are collected, so that one does not keep the rest from being removed.
struct Sweep<'a> {
    conf: &'a NetConf,
    valid: BTreeSet<&'a Attachment>,
    failed: Vec<String>,
}

/// Removes endpoint files, links and addresses that belong to none of `cni.dev/valid-attachments`.
pub(crate) fn gc(conf: &NetConf) -> Result<(), CniError> {
    let valid = conf.valid_attachments.as_ref();
    // Without the list nothing would be valid, and every pod of the node would lose its network.
    let valid = valid.ok_or_else(|| CniError::Config("GC needs cni.dev/valid-attachments".to_owned()))?;
    let mut sweep = Sweep { conf, valid: valid.iter().collect(), failed: Vec::new() };
    let kept = sweep.records()?;
    sweep.links(&kept)?;
    sweep.addresses(&kept)?;
    if sweep.failed.is_empty() { Ok(()) } else { Err(CniError::Incomplete(sweep.failed)) }
}

impl Sweep<'_> {
    /// Removes the attachments that have an endpoint file and are not valid; gives the files that stay.
    fn records(&mut self) -> Result<Vec<EndpointFile>, CniError> {
        let listing = Endpoints::new(&self.conf.paths).list().map_err(CniError::Local)?;
        let mut kept = Vec::new();
        for endpoint in listing.endpoints {
            match endpoint.attachment() {
                Ok(attachment) if endpoint.network == self.conf.name && !self.valid.contains(&attachment) => {
                    let removed = detach::remove(self.conf, &attachment, &endpoint, Cleanup::All);
                    self.collect(&attachment.to_string(), removed);
                }
                _ => kept.push(endpoint),
            }
        }
        for damaged in listing.damaged {
            self.damaged_record(&damaged);
        }
        Ok(kept)
    }

    /// Whether a damaged endpoint file belongs to a valid attachment is known by its name.
    fn damaged_record(&mut self, error: &LocalError) {
        let LocalError::Damaged { path, .. } = error else { return };
        let names: BTreeSet<String> = self.valid.iter().map(|a| a.file_name()).collect();
        let is_valid = path.file_name().and_then(OsStr::to_str).is_some_and(|name| names.contains(name));
        if !is_valid && let Err(error) = fs::remove_file(path) {
            self.failed.push(format!("remove {}: {error}", path.display()));
        }
    }

    /// Removes pods' links without an endpoint file. While a valid attachment has no file either, any of them may be its
    /// link, and all stay.
    fn links(&mut self, kept: &[EndpointFile]) -> Result<(), CniError> {
        let recorded: BTreeSet<Attachment> = kept.iter().filter_map(|e| e.attachment().ok()).collect();
        if self.valid.iter().any(|attachment| !recorded.contains(*attachment)) {
            return Ok(());
        }
        let wanted: BTreeSet<&IfName> = kept.iter().map(|e| &e.host_interface).collect();
        for link in PodInventory::read().map_err(CniError::Link)?.links {
            if !wanted.contains(&link) {
                let deleted = PodLink::delete(&link).map(drop).map_err(CniError::Link);
                self.collect(link.as_str(), deleted);
            }
        }
        Ok(())
    }

    /// Releases every address whose container is not valid, and those without a known container, unless an endpoint file
    /// or a route shows that a pod has it.
    fn addresses(&mut self, kept: &[EndpointFile]) -> Result<(), CniError> {
        let recorded: BTreeSet<_> = kept.iter().flat_map(|e| &e.addresses).collect();
        let routed = PodInventory::read().map_err(CniError::Link)?.routed;
        let mut by_id: BTreeMap<&str, Vec<&Attachment>> = BTreeMap::new();
        for attachment in &self.valid {
            by_id.entry(attachment.container_id()).or_default().push(attachment);
        }
        let dir = AddressDir::new(self.conf.paths.addresses(&self.conf.name));
        let locked = dir.lock().map_err(CniError::Addresses)?;
        let mut failed = Vec::new();
        for reservation in locked.reservations().map_err(CniError::Addresses)? {
            let stays = match &reservation.owner {
                AddressOwner::Container { id, .. } => {
                    by_id.get(id.as_str()).is_some_and(|list| list.iter().any(|a| reservation.owner.is(a)))
                }
                AddressOwner::Nobody | AddressOwner::Unknown(_) => {
                    recorded.contains(&reservation.addr) || routed.contains(&reservation.addr)
                }
            };
            if !stays && let Err(error) = locked.force_release(reservation.addr) {
                failed.push(CniError::Addresses(error).with_details());
            }
        }
        self.failed.extend(failed);
        Ok(())
    }

    fn collect(&mut self, what: &str, result: Result<(), CniError>) {
        if let Err(error) = result {
            self.failed.push(format!("{what}: {}", error.with_details()));
        }
    }
}
