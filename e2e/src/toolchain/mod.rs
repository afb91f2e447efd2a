//! What a cluster needs: Debian packages, Kubernetes built from its Go modules, test images. Each is made once and
//! kept in the user's cache under a name that has the hash of its recipe.

mod debian;
mod golang;
mod images;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::progress::Progress;
use crate::site::Site;

pub use debian::require as require_packages;
pub use golang::KUBERNETES;
pub use images::{AGNHOST_IMAGE, COREDNS_IMAGE, PAUSE_IMAGE};

/// The binaries and images that a cluster is started with.
#[derive(Debug, Clone)]
pub struct Tools {
    dir: PathBuf,
    kubernetes: PathBuf,
    etcd: PathBuf,
    images: PathBuf,
}

impl Tools {
    /// Builds and installs what is missing, and prints each step.
    ///
    /// # Errors
    /// When a package cannot be installed or a build fails: the message shows the end of its log.
    pub fn prepare(site: &Site, progress: &Progress) -> Result<Self> {
        debian::require(debian::CLUSTER, progress)?;
        let kubernetes = golang::KUBERNETES_PARTS.build(site, progress)?;
        let etcd = golang::ETCD_PARTS.build(site, progress)?;
        let coredns = golang::COREDNS_PARTS.build(site, progress)?;
        let images = images::build(site, &kubernetes, &coredns, progress)?;
        Ok(Self { dir: site.cache().to_path_buf(), kubernetes, etcd, images })
    }

    /// The folder of all binaries and images.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of a Kubernetes binary.
    #[must_use]
    pub fn kubernetes(&self, name: &str) -> String {
        self.kubernetes.join(name).display().to_string()
    }

    /// Path of kubectl.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.kubernetes.join("kubectl")
    }

    /// Path of etcd.
    #[must_use]
    pub fn etcd(&self) -> String {
        self.etcd.join("etcd").display().to_string()
    }

    /// The images that every node has from the start.
    #[must_use]
    pub fn images(&self) -> Vec<PathBuf> {
        images::ARCHIVES.iter().map(|name| self.images.join(name)).collect()
    }
}

/// Makes `name` in the cache with `make` unless it is there. What `make` gets is an empty folder that becomes `name`
/// only when it has succeeded; a second caller waits for the first.
///
/// # Errors
/// When the cache cannot be written, or with the error of `make`.
pub fn once(site: &Site, name: &str, progress: &Progress, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let ready = site.cache().join(name);
    if ready.exists() {
        return Ok(ready);
    }
    fs::create_dir_all(site.cache()).with_context(|| format!("create {}", site.cache().display()))?;
    let _lock = lock(&site.cache().join(format!(".{name}.lock")), name, progress)?;
    if ready.exists() {
        return Ok(ready);
    }
    let unfinished = site.cache().join(format!(".{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("remove {}", unfinished.display()))?;
    }
    fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    make(&unfinished)?;
    fs::rename(&unfinished, &ready).with_context(|| format!("finish {}", ready.display()))?;
    Ok(ready)
}

/// Takes a lock file, and prints a line if another process holds it.
pub(crate) fn lock(path: &Path, what: &str, progress: &Progress) -> Result<Flock<fs::File>> {
    let file = fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, _)) => file,
    };
    progress.step(format!("another process is building {what}; waiting for it"));
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("lock {}", path.display()))
}

/// Hash of a recipe: the first ten hexadecimal digits of its SHA-256.
pub(crate) fn recipe_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize()).chars().take(10).collect()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_told_apart_by_its_parts_not_by_their_concatenation() {
        assert_ne!(recipe_hash([b"ab".as_slice(), b"c"]), recipe_hash([b"a".as_slice(), b"bc"]));
        assert_eq!(recipe_hash([b"ab".as_slice()]).len(), 10);
    }
}
