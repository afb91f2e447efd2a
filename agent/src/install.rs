//! What the agent puts on the node's disk for the container runtime: the CNI plugin and the network configuration list.
//!
//! Both are replaced atomically: a runtime that looks at any moment sees the old file or the new one, whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

/// File name of the configuration list. Runtimes take the first in lexical order.
pub const CONFLIST: &str = "10-towpath.conflist";
/// File name of the plugin, and its `type` in the list.
pub const PLUGIN: &str = "towpath";
/// The network's name: Canal's, so that its address files can be taken over.
const NETWORK: &str = "k8s-pod-network";

/// A failed step of the installation.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written or put in its place.
    #[error("write {path}: check that the directory is mounted writable in the agent's pod and has room")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be removed.
    #[error("remove {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The installed plugin does not run, or is of another version.
    #[error(
        "{path} answers --version with {answer:?} where {expected:?} was expected: the image's plugin and agent differ"
    )]
    Version {
        /// The installed plugin.
        path: PathBuf,
        /// What it printed.
        answer: String,
        /// What it should have.
        expected: String,
    },
}

/// Puts the image's plugin into the host's plugin directory unless the same bytes are there, and asks it its version.
///
/// # Errors
/// See [`InstallError`]. On an error the earlier plugin, if any, is still in its place.
pub fn plugin(from: &Path, dir: &Path) -> Result<(), InstallError> {
    let path = dir.join(PLUGIN);
    let bytes = fs::read(from).map_err(|source| InstallError::Read { path: from.to_owned(), source })?;
    if fs::read(&path).ok().as_ref() == Some(&bytes) {
        return Ok(());
    }
    check_version(from)?;
    replace(&path, &bytes, 0o755)
}

fn check_version(path: &Path) -> Result<(), InstallError> {
    let expected = format!("towpath {}", env!("CARGO_PKG_VERSION"));
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|source| InstallError::Read { path: path.to_owned(), source })?;
    let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if answer == expected { Ok(()) } else { Err(InstallError::Version { path: path.to_owned(), answer, expected }) }
}

/// Writes the configuration list, which makes the kubelet report the node's network as ready. Nothing is written when
/// it is there already.
///
/// `cniVersions` lets runtimes that know it (CNI 1.1, section 1) take the newest that both understand; older ones read `cniVersion`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_conflist(dir: &Path) -> Result<(), InstallError> {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{ "type": PLUGIN }],
    });
    let path = dir.join(CONFLIST);
    let text = format!("{list:#}\n");
    if fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
        Ok(())
    } else {
        replace(&path, text.as_bytes(), 0o600)
    }
}

/// Removes the configuration list. Pods that run keep their network; new ones wait.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn remove_conflist(dir: &Path) -> Result<(), InstallError> {
    let path = dir.join(CONFLIST);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(InstallError::Remove { path, source }),
        _ => Ok(()),
    }
}

/// Writes beside the target and renames: on the same file system that is atomic (POSIX rename).
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes read only .conf, .conflist and .json in that directory, so the half-written file is not seen.
    let tmp = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&tmp, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| InstallError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn the_conflist_is_private_and_written_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        write_conflist(dir.path()).unwrap();
        let path = dir.path().join(CONFLIST);
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.permissions().mode() & 0o777, 0o600);
        let list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&list["name"], &list["plugins"][0]["type"]), (&json!("k8s-pod-network"), &json!("towpath")));

        write_conflist(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino(), "the same file, not a new one");
        fs::write(&path, "{").unwrap();
        write_conflist(dir.path()).unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), first.ino(), "a damaged list is replaced");

        remove_conflist(dir.path()).unwrap();
        remove_conflist(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_plugin_of_another_version_is_refused_and_the_installed_one_stays() {
        let (image, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = image.path().join(PLUGIN);
        let script = |version: &str| {
            fs::write(&source, format!("#!/bin/sh\necho towpath {version}\n")).unwrap();
            fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script(env!("CARGO_PKG_VERSION"));
        plugin(&source, host.path()).unwrap();
        let installed = fs::read(host.path().join(PLUGIN)).unwrap();

        script("99.0.0");
        assert!(matches!(plugin(&source, host.path()), Err(InstallError::Version { .. })));
        assert_eq!(fs::read(host.path().join(PLUGIN)).unwrap(), installed);
    }
}
