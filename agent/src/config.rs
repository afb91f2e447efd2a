//! Reads the configuration that the operator rendered.

use std::{
    io,
    path::{Path, PathBuf},
};

use towpath_crds::agent_config::AgentConfig;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read the configuration {path}: check that the ConfigMap is mounted in the agent's pod")]
    Read { path: PathBuf, source: io::Error },
    /// The file is not a configuration of this version.
    #[error("decode the configuration {path}: operator and agent must be of the same version")]
    Decode { path: PathBuf, source: serde_json::Error },
}

/// Reads and decodes the configuration.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<AgentConfig, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| ConfigError::Decode { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_version_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.json");
        assert!(matches!(read(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, r#"{"podCIDRs":[],"novelty":1}"#).unwrap();
        assert!(matches!(read(&path), Err(ConfigError::Decode { .. })));
    }
}
