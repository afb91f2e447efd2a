//! Programs built from Go modules. Their versions are fixed by the go.mod and go.sum files in `third_party/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{once, recipe_hash};
use crate::progress::Progress;
use crate::run;
use crate::site::Site;

/// Version of Kubernetes.
pub const KUBERNETES: &str = "1.35.4";

/// Kubernetes' programs, its test server and kubectl.
pub(super) const KUBERNETES_PARTS: GoBuild = GoBuild {
    name: "kubernetes",
    version: KUBERNETES,
    // Without these the components report v0.0.0, and reject each other.
    ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.35.4 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35",
    packages: &[
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "k8s.io/kubernetes/cmd/kubelet",
        "k8s.io/kubernetes/cmd/kube-proxy",
        "k8s.io/kubernetes/cmd/kubectl",
        "k8s.io/kubernetes/test/images/agnhost",
    ],
    output: "",
    duration: "4 minutes",
};

/// etcd.
pub(super) const ETCD_PARTS: GoBuild = GoBuild {
    name: "etcd",
    version: "3.6.16",
    ldflags: "-s -w",
    packages: &["go.etcd.io/etcd/server/v3"],
    output: "etcd",
    duration: "1 minute",
};

/// Cluster DNS.
pub(super) const COREDNS_PARTS: GoBuild = GoBuild {
    name: "coredns",
    version: "1.15.0",
    ldflags: "-s -w",
    packages: &["."],
    output: "coredns",
    duration: "1 minute",
};

/// Programs that are built together.
pub(super) struct GoBuild {
    /// Folder in `third_party/`, and name for people.
    name: &'static str,
    version: &'static str,
    ldflags: &'static str,
    packages: &'static [&'static str],
    /// Name of the binary where its package's path does not end in it; empty for the packages' own names.
    output: &'static str,
    /// About how long the first build takes on two cores.
    duration: &'static str,
}

impl GoBuild {
    /// Builds them unless they are in the cache. Returns the folder of the binaries.
    pub(super) fn build(&self, site: &Site, progress: &Progress) -> Result<PathBuf> {
        let module = site.root().join("e2e/third_party").join(self.name);
        let mut recipe = vec![[self.ldflags, self.output, &self.packages.join(" ")].join("\n").into_bytes()];
        recipe.extend(sources(&module)?);
        let hash = recipe_hash(recipe.iter().map(Vec::as_slice));
        let title = format!("{} {}", self.name, self.version);
        let dir = once(site, &format!("{}-{}-{hash}", self.name, self.version), progress, |dir| {
            progress.step(format!("building {title} from its Go modules, once: about {}", self.duration));
            let bin = dir.join("bin");
            fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
            // With a trailing slash go takes it as a folder, one binary for each package.
            let output = format!("{}/{}", bin.display(), self.output);
            let mut command = Command::new("go");
            command
                .current_dir(&module)
                .env("CGO_ENABLED", "0")
                .env("GOWORK", "off")
                // Fewer garbage collections: more memory, less time.
                .env("GOGC", "400")
                // Debugging information is left out in the end, so that the compiler need not make it.
                .args(["build", "-v", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false"])
                .args(["-ldflags", self.ldflags, "-o", &output])
                .args(self.packages);
            run::logged(
                &mut command,
                &title,
                &site.target().join("log").join(format!("build-{}.log", self.name)),
                progress,
            )
        })?;
        Ok(dir.join("bin"))
    }
}

/// The files of a module's folder, by name.
fn sources(module: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = fs::read_dir(module).with_context(|| format!("list {}", module.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    files.iter().map(|file| fs::read(file).with_context(|| format!("read {}", file.display()))).collect()
}
