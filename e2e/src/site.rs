//! Paths: the checkout, the state of the clusters in it, and the user's cache of what was built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Paths on this machine: the checkout, the cache, the launcher.
#[derive(Debug, Clone)]
pub struct Site {
    root: PathBuf,
    cache: PathBuf,
    launcher: PathBuf,
}

impl Site {
    /// The checkout that this crate was built from, with `launcher` as the `towpath-cluster` binary that starts the
    /// processes of a cluster inside their namespaces.
    ///
    /// # Errors
    /// When neither `XDG_CACHE_HOME` nor `HOME` says where the user's cache is.
    pub fn new(launcher: &Path) -> Result<Self> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate lies in no checkout")?.to_path_buf();
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .context("set HOME or XDG_CACHE_HOME: it holds what is built once")?
            .join("towpath");
        ensure!(launcher.is_file(), "{} does not exist: build it with cargo build -p towpath-e2e", launcher.display());
        Ok(Self { root, cache, launcher: launcher.to_path_buf() })
    }

    /// The checkout's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is kept between checkouts: the Kubernetes binaries, test images, base file systems.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The `towpath-cluster` binary.
    #[must_use]
    pub fn launcher(&self) -> &Path {
        &self.launcher
    }

    /// The `target` folder of the checkout. It does not follow `CARGO_TARGET_DIR`, because people's scripts rely on
    /// `target/cluster/<name>/kubeconfig`.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Everything that belongs to the cluster `name`.
    #[must_use]
    pub fn cluster_dir(&self, name: &str) -> PathBuf {
        self.target().join("cluster").join(name)
    }
}
