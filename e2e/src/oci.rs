//! Writes OCI image archives. The same input gives the same bytes and the same digest: no times, no host names.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::toolchain::hex;

/// The annotation from which containerd takes the name of an image.
const NAME_ANNOTATION: &str = "io.containerd.image.name";

/// One entry of a layer.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A file of this machine, with a mode, under a path in the image.
    File(String, PathBuf, u32),
    /// A symbolic link: path in the image, target.
    Link(String, String),
    /// A folder with a mode.
    Folder(String, u32),
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub enum Layer {
    /// A tar file, unchanged.
    Tar(PathBuf),
    /// Files, links and folders.
    Entries(Vec<Entry>),
}

/// Names of the image in its archive.
#[derive(Debug, Clone)]
pub enum Tags {
    /// One full name with tag.
    Fixed(String),
    /// That name, and a second one whose tag also has the content's digest: see [`content_name`].
    WithDigest(String),
}

/// An image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name or names.
    pub tags: Tags,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// Entry point; may be empty.
    pub entrypoint: Vec<String>,
}

impl Image {
    /// Writes the archive. Returns the digest of the image's manifest, as `sha256:…`.
    ///
    /// # Errors
    /// When a file of a layer is missing or `to` cannot be written.
    pub fn write(&self, to: &Path) -> Result<String> {
        let temporary = to.with_extension("unfinished");
        let file = File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
        let mut archive = Archive(tar::Builder::new(file));
        let layers = self.layers.iter().map(layer_bytes).collect::<Result<Vec<_>>>()?;
        let described = layers
            .iter()
            .map(|bytes| archive.blob("application/vnd.oci.image.layer.v1.tar", bytes))
            .collect::<Result<Vec<_>>>()?;
        let ids: Vec<&Value> = described.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let config = archive.blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": described});
        let manifest = archive.blob(kind, &serde_json::to_vec(&manifest)?)?;
        let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
        let names = match &self.tags {
            Tags::Fixed(name) => vec![name.clone()],
            Tags::WithDigest(name) => vec![name.clone(), content_name(name, &digest)],
        };
        let named = names.iter().map(|name| {
            let mut manifest = manifest.clone();
            manifest["annotations"] = json!({NAME_ANNOTATION: name, "org.opencontainers.image.ref.name": name});
            manifest
        });
        let index = json!({"schemaVersion": 2, "manifests": named.collect::<Vec<_>>()});
        archive.file("index.json", &serde_json::to_vec(&index)?)?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.0.into_inner().and_then(|mut file| file.flush()).context("finish the archive")?;
        fs::rename(&temporary, to).with_context(|| format!("finish {}", to.display()))?;
        Ok(digest)
    }
}

/// The name with ten digits of the digest appended: `towpath.local/towpath:0.1.0-0123456789`.
#[must_use]
pub fn content_name(name: &str, digest: &str) -> String {
    let digits: String = digest.trim_start_matches("sha256:").chars().take(10).collect();
    format!("{name}-{digits}")
}

/// The names under which an archive holds its images.
///
/// # Errors
/// When the archive cannot be read or has no index.
pub fn names(archive: &Path) -> Result<Vec<String>> {
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut tar = tar::Archive::new(file);
    for entry in tar.entries().with_context(|| format!("read {}", archive.display()))? {
        let entry = entry.with_context(|| format!("read {}", archive.display()))?;
        if entry.path().is_ok_and(|path| path == Path::new("index.json")) {
            let index: Value = serde_json::from_reader(entry).context("parse index.json")?;
            let manifests = index["manifests"].as_array().into_iter().flatten();
            let name = |manifest: &Value| manifest["annotations"][NAME_ANNOTATION].as_str().map(str::to_owned);
            return Ok(manifests.filter_map(name).collect());
        }
    }
    bail!("{} has no index.json: it is not an OCI archive", archive.display())
}

struct Archive(tar::Builder<File>);

impl Archive {
    /// Adds content under its own hash, and describes it.
    fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let hash = hex(&Sha256::digest(bytes));
        self.file(&format!("blobs/sha256/{hash}"), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len()}))
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, 0o644);
        header.set_size(bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes).with_context(|| format!("write {path}"))
    }
}

fn layer_bytes(layer: &Layer) -> Result<Vec<u8>> {
    match layer {
        Layer::Tar(path) => fs::read(path).with_context(|| format!("read {}", path.display())),
        Layer::Entries(entries) => {
            let mut tar = tar::Builder::new(Vec::new());
            for entry in entries {
                append(&mut tar, entry)?;
            }
            tar.into_inner().context("finish a layer")
        }
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, entry: &Entry) -> Result<()> {
    match entry {
        Entry::File(path, from, mode) => {
            let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
            let mut header = header(tar::EntryType::Regular, *mode);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes.as_slice()).with_context(|| format!("add {path}"))
        }
        Entry::Link(path, target) => {
            let mut header = header(tar::EntryType::Symlink, 0o777);
            tar.append_link(&mut header, path, target).with_context(|| format!("add {path}"))
        }
        Entry::Folder(path, mode) => {
            let mut header = header(tar::EntryType::Directory, *mode);
            tar.append_data(&mut header, path, std::io::empty()).with_context(|| format!("add {path}"))
        }
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &str, dir: &Path) -> String {
        let file = dir.join("content");
        fs::write(&file, content).unwrap();
        let entries = vec![
            Entry::Folder("tmp".into(), 0o1777),
            Entry::File("hello".into(), file, 0o755),
            Entry::Link("hi".into(), "hello".into()),
        ];
        Image {
            tags: Tags::Fixed("towpath.local/x:1".into()),
            layers: vec![Layer::Entries(entries)],
            entrypoint: vec!["/hello".into()],
        }
        .write(&dir.join("x.tar"))
        .unwrap()
    }

    #[test]
    fn the_digest_follows_the_content_and_nothing_else() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = image("a", one.path());
        assert_eq!(first, image("a", two.path()), "same content in another folder");
        assert_eq!(
            fs::read(one.path().join("x.tar")).unwrap(),
            fs::read(two.path().join("x.tar")).unwrap(),
            "same bytes"
        );
        assert_ne!(first, image("b", two.path()), "other content");
        assert_eq!(names(&one.path().join("x.tar")).unwrap(), ["towpath.local/x:1"]);
    }
}
