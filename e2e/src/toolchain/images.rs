//! Test images: the sandbox's pause, CoreDNS, and agnhost with a shell and its tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{once, recipe_hash};
use crate::oci::{Entry, Image, Layer, Tags};
use crate::progress::Progress;
use crate::run;
use crate::site::Site;

/// Image of a pod's sandbox.
pub const PAUSE_IMAGE: &str = "towpath.local/pause:1";
/// Image of cluster DNS.
pub const COREDNS_IMAGE: &str = "towpath.local/coredns:1.15.0";
/// Image of test pods: `/agnhost` (Kubernetes' test server and client) and busybox's applets in `/bin`.
pub const AGNHOST_IMAGE: &str = "towpath.local/agnhost:1";

pub(super) const ARCHIVES: [&str; 3] = ["pause.tar", "coredns.tar", "agnhost.tar"];

/// Raise it after a change of this file, so that the images are rebuilt.
const RECIPE: &[u8] = b"1";

const PAUSE_SOURCE: &str = include_str!("../../assets/pause.c");

/// Builds the archives and returns their folder.
pub(super) fn build(site: &Site, kubernetes: &Path, coredns: &Path, progress: &Progress) -> Result<PathBuf> {
    let paths = [kubernetes, coredns].map(|path| path.display().to_string());
    let parts = [RECIPE, PAUSE_SOURCE.as_bytes(), paths[0].as_bytes(), paths[1].as_bytes()];
    once(site, &format!("images-{}", recipe_hash(parts)), progress, |dir| {
        progress.step("building the test images");
        let image = |name: &str, entries: Vec<Entry>, entrypoint: &str, file: &str| {
            let image = Image {
                tags: Tags::Fixed(name.into()),
                layers: vec![Layer::Entries(entries)],
                entrypoint: vec![entrypoint.into()],
            };
            image.write(&dir.join(file)).with_context(|| format!("make {name}"))
        };
        let binary = |to: &str, from: PathBuf| Entry::File(to.into(), from, 0o755);
        image(PAUSE_IMAGE, vec![binary("pause", pause(dir)?)], "/pause", ARCHIVES[0])?;
        image(COREDNS_IMAGE, vec![binary("coredns", coredns.join("coredns"))], "/coredns", ARCHIVES[1])?;
        let mut entries = vec![
            Entry::Folder("tmp".into(), 0o1777),
            Entry::Folder("bin".into(), 0o755),
            binary("agnhost", kubernetes.join("agnhost")),
            binary("bin/busybox", "/bin/busybox".into()),
        ];
        let applets = run::output(Command::new("/bin/busybox").arg("--list"))?;
        entries.extend(
            applets
                .lines()
                .filter(|name| *name != "busybox")
                .map(|name| Entry::Link(format!("bin/{name}"), "busybox".into())),
        );
        image(AGNHOST_IMAGE, entries, "/agnhost", ARCHIVES[2]).map(drop)
    })
}

/// Compiles the pause program, which has to be static: its image holds nothing else.
fn pause(dir: &Path) -> Result<PathBuf> {
    let (source, binary) = (dir.join("pause.c"), dir.join("pause"));
    fs::write(&source, PAUSE_SOURCE).with_context(|| format!("write {}", source.display()))?;
    run::output(Command::new("cc").args(["-static", "-O2", "-s", "-o"]).arg(&binary).arg(&source))
        .context("compile the pause program")?;
    Ok(binary)
}
