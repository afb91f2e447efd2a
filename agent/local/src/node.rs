//! The node values that the CNI plugin needs.

use std::fs;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::paths::{LocalError, Paths, read_file, remove, write_atomically};

/// The node as the agent has set it up. The file exists while pods can be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// The node's podCIDRs in the order of its Node object, at most one per family. The position is the number
    /// of the file `last_reserved_ip.<n>`.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The MTU of the pods' interfaces in bytes: the overlay device's.
    pub mtu: u32,
}

impl NodeState {
    /// Reads the file; `None` until the agent has written it.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn read(paths: &Paths) -> Result<Option<Self>, LocalError> {
        read_file(&paths.node_file())
    }

    /// Replaces the file atomically; creates its directory.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, paths: &Paths) -> Result<(), LocalError> {
        fs::create_dir_all(paths.state())
            .map_err(|source| LocalError::Write { path: paths.state().to_owned(), source })?;
        write_atomically(&paths.node_file(), self)
    }

    /// Removes the file, so that no more pods are added. A missing one is no error.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(paths: &Paths) -> Result<(), LocalError> {
        remove(&paths.node_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_state_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path().join("run/towpath"), dir.path());
        assert_eq!(NodeState::read(&paths).unwrap(), None);
        for mtu in [1450, 8950] {
            let pod_cidrs = vec!["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
            let state = NodeState { pod_cidrs, mtu };
            state.write(&paths).unwrap();
            assert_eq!(NodeState::read(&paths).unwrap(), Some(state));
        }
        NodeState::remove(&paths).unwrap();
        NodeState::remove(&paths).unwrap();
        assert_eq!(NodeState::read(&paths).unwrap(), None);
    }

    #[test]
    fn a_damaged_state_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        for text in ["", "{", "{\"podCIDRs\":[\"10.0.0.0/33\"],\"mtu\":1450}", "[]"] {
            fs::write(paths.node_file(), text).unwrap();
            let error = NodeState::read(&paths).unwrap_err();
            assert!(matches!(error, LocalError::Damaged { .. }) && error.to_string().contains("node.json"), "{error}");
        }
    }
}
