//! Builds Towpath's image as an OCI archive: the three programs, and Debian's nft to list the rules with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::oci::{self, Entry, Image, Layer, Tags, content_name};
use crate::progress::Progress;
use crate::run;
use crate::site::Site;
use crate::toolchain::{self, recipe_hash};

/// Name of the image in the install bundle.
pub const NAME: &str = concat!("towpath.local/towpath:", env!("CARGO_PKG_VERSION"));
/// The archive, below a checkout's root.
const ARCHIVE: &str = "target/image/towpath.tar";
/// The install bundle, below a checkout's root.
const BUNDLE: &str = "manifests/install.yaml";
/// Debian packages in the image, for people who list the rules.
const PACKAGES: &str = "nftables";
/// mmdebstrap copies these files from the machine. They do not belong into an image.
const FORGET: &str = r#"rm -f "$1/etc/resolv.conf" "$1/etc/hostname""#;
/// Debian packages that the build needs on this machine.
const DEBIAN: &[&str] = &["gcc", "libc6-dev", "mmdebstrap"];

/// Packages and their programs.
const PROGRAMS: [(&str, &str); 3] =
    [("towpath-operator", "towpath-operator"), ("towpath-agent", "towpath-agent"), ("towpath-cni", "towpath")];
/// The programs are linked statically, because the CNI plugin runs on any host. The target is named so that build
/// scripts and macros are not.
const STATIC_TARGET: &str = "x86_64-unknown-linux-gnu";

/// A version of Towpath that can be installed.
#[derive(Debug, Clone)]
pub struct Release {
    /// The image, as an OCI archive.
    pub archive: PathBuf,
    /// Name of the image in the install bundle.
    pub name: String,
    /// Another name of the image, whose tag has its digest: under this name every change of the image is a rollout.
    pub content_name: String,
    /// The install bundle: CRDs, access rights, operator.
    pub bundle: PathBuf,
}

impl Release {
    /// What `make image` left in a checkout, with the install bundle of that checkout.
    ///
    /// # Errors
    /// When there is no archive, or it does not hold the two names of the image.
    pub fn of_checkout(root: &Path) -> Result<Self> {
        let archive = root.join(ARCHIVE);
        let names = oci::names(&archive).with_context(|| format!("make image in {}", root.display()))?;
        let content = |name: &str| names.iter().find(|other| other.starts_with(&format!("{name}-"))).cloned();
        let found = names.iter().find_map(|name| Some((name.clone(), content(name)?)));
        let (name, content_name) =
            found.with_context(|| format!("{} names no image with its digest: {names:?}", archive.display()))?;
        Ok(Self { archive, name, content_name, bundle: root.join(BUNDLE) })
    }
}

/// Builds the programs and the image.
///
/// # Errors
/// When a build fails: the message shows the end of its log.
pub fn build(site: &Site, progress: &Progress) -> Result<Release> {
    toolchain::require_packages(DEBIAN, progress)?;
    fs::create_dir_all(site.target().join("image")).context("create target/image")?;
    // Two builds at once would write the same archive and the same logs.
    let _lock = toolchain::lock(&site.target().join("image/.lock"), "the image", progress)?;
    let programs = cargo_target(site)?.join(STATIC_TARGET).join("release");
    cargo(site, progress)?;
    let base = base(site, progress)?;
    let program = |to: &str, from: PathBuf| Entry::File(to.into(), from, 0o755);
    let ours = vec![
        program("usr/local/bin/towpath-operator", programs.join("towpath-operator")),
        program("usr/local/bin/towpath-agent", programs.join("towpath-agent")),
        Entry::Folder("opt/towpath/cni".into(), 0o755),
        program("opt/towpath/cni/towpath", programs.join("towpath")),
    ];
    let archive = site.root().join(ARCHIVE);
    let image = Image {
        tags: Tags::WithDigest(NAME.into()),
        layers: vec![Layer::Tar(base), Layer::Entries(ours)],
        entrypoint: Vec::new(),
    };
    let digest = image.write(&archive)?;
    let content_name = content_name(NAME, &digest);
    progress.step(format!("image {content_name} is in {}", archive.display()));
    Ok(Release { archive, name: NAME.to_owned(), content_name, bundle: site.root().join(BUNDLE) })
}

/// Returns the base file system, made of Debian packages that are unpacked and not configured: none of them needs it.
fn base(site: &Site, progress: &Progress) -> Result<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release names no Debian release: build the image on Debian")?;
    let name = format!("base-{codename}-{}", recipe_hash([PACKAGES.as_bytes(), FORGET.as_bytes()]));
    let dir = toolchain::once(site, &name, progress, |dir| {
        progress.step("building the image's base file system from Debian packages, once");
        let mut command = Command::new("mmdebstrap");
        // The same bytes on every machine and at any time.
        command.env("SOURCE_DATE_EPOCH", "0").args(["--variant=extract", &format!("--extract-hook={FORGET}")]);
        command.args([&format!("--include={PACKAGES}"), codename]).arg(dir.join("base.tar"));
        run::logged(&mut command, "the image's base", &site.target().join("log/build-base.log"), progress)
    })?;
    Ok(dir.join("base.tar"))
}

/// Builds our programs, in one call of cargo: common dependencies are built once.
fn cargo(site: &Site, progress: &Progress) -> Result<()> {
    let packages = PROGRAMS.iter().flat_map(|(package, program)| ["-p", package, "--bin", program]);
    let mut cargo = Command::new("cargo");
    cargo.current_dir(site.root()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.args(["build", "--release", "--locked", "--target", STATIC_TARGET]).args(packages);
    progress.step("building towpath-operator, towpath-agent and the CNI plugin");
    run::logged(&mut cargo, "Towpath's programs", &site.target().join("log/build-towpath.log"), progress)
}

/// Cargo's target folder, which the user may have moved.
fn cargo_target(site: &Site) -> Result<PathBuf> {
    let metadata = run::cargo_metadata(site)?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target folder")?.into())
}
