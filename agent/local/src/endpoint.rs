//! Endpoint files: one per pod interface, written by the CNI plugin.

use std::{
    ffi::OsStr,
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use towpath_core::{
    model::{Endpoint, ParseError, PodId},
    names::IfName,
};

use crate::paths::{LocalError, Paths, read_file, remove, temporary, write_atomically};

/// A CNI attachment on our one network: a container and the name of its interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    container_id: String,
    ifname: IfName,
}

impl Attachment {
    /// The longest container id in bytes: with the interface's name it must fit in a file name of 255 bytes.
    pub const MAX_ID_LEN: usize = 200;

    /// Validates a container id (CNI specification, "Parameters": a letter or digit, then those, `.`, `_` and `-`) and
    /// the name of an interface.
    ///
    /// # Errors
    /// If either is invalid.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, ParseError> {
        let ok = container_id.len() <= Self::MAX_ID_LEN
            && container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
            && container_id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !ok {
            let text = container_id.to_owned();
            let expected =
                "a container id of at most 200 letters, digits and . _ - that begins with a letter or a digit";
            return Err(ParseError { text, expected });
        }
        Ok(Self { container_id: container_id.to_owned(), ifname: IfName::new(ifname)? })
    }

    /// The container's id.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface's name in the pod.
    #[must_use]
    pub const fn ifname(&self) -> &IfName {
        &self.ifname
    }

    /// The name of its endpoint file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.{}.json", self.container_id, self.ifname)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container_id)
    }
}

/// A pod's interface, as the CNI plugin writes it before it creates anything. So whatever becomes of the plugin, the file
/// names what there may be to clean up, and the pod's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointFile {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the pod.
    #[serde(with = "as_text")]
    pub ifname: IfName,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The CNI network.
    pub network: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID, if the runtime passes it: successive pods can have the same name.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The host's end of the veth.
    #[serde(with = "as_text")]
    pub host_interface: IfName,
    /// The pod's addresses, one per family at most.
    pub addresses: Vec<IpAddr>,
    /// The MTU of both ends in bytes at their creation. The node's own may have changed since.
    pub mtu: u32,
}

impl EndpointFile {
    /// The attachment after which the file is named.
    ///
    /// # Errors
    /// If the container's id is invalid.
    pub fn attachment(&self) -> Result<Attachment, ParseError> {
        Attachment::new(&self.container_id, self.ifname.as_str())
    }

    /// The pod.
    #[must_use]
    pub fn pod_id(&self) -> PodId {
        PodId { namespace: self.namespace.clone(), name: self.pod.clone() }
    }

    /// The endpoint for which policy rules are compiled.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { pod: self.pod_id(), interface: self.host_interface.clone(), addresses: self.addresses.clone() }
    }
}

/// The directory of endpoint files.
#[derive(Debug, Clone)]
pub struct Endpoints {
    dir: PathBuf,
}

/// The content of the directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// The endpoints of the valid files, in the order of file names.
    pub endpoints: Vec<EndpointFile>,
    /// The damaged files: to be reported, never a reason to ignore the rest.
    pub damaged: Vec<LocalError>,
}

impl Endpoints {
    /// The directory below a node's paths.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        Self { dir: paths.endpoints() }
    }

    /// The path of the directory, to watch it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the file of an attachment; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn read(&self, attachment: &Attachment) -> Result<Option<EndpointFile>, LocalError> {
        let path = self.path(attachment);
        let found: Option<EndpointFile> = read_file(&path)?;
        match &found {
            Some(file) if file.attachment().as_ref() != Ok(attachment) => {
                let source = de::Error::custom("it names another interface");
                Err(LocalError::Damaged { path, source })
            }
            _ => Ok(found),
        }
    }

    /// Writes a file atomically; creates the directory.
    ///
    /// # Errors
    /// If the directory or the file cannot be written.
    pub fn write(&self, attachment: &Attachment, file: &EndpointFile) -> Result<(), LocalError> {
        let path = self.path(attachment);
        match write_atomically(&path, file) {
            // The directory is missing once after each boot.
            Err(LocalError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir).map_err(|source| LocalError::Write { path: self.dir.clone(), source })?;
                write_atomically(&path, file)
            }
            done => done,
        }
    }

    /// Removes a file. A missing one is no error.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, attachment: &Attachment) -> Result<(), LocalError> {
        let path = self.path(attachment);
        remove(&temporary(&path))?;
        remove(&path)
    }

    /// Whether there is a file, valid or damaged.
    #[must_use]
    pub fn has(&self, attachment: &Attachment) -> bool {
        self.path(attachment).exists()
    }

    /// Reads all files. A missing directory has none.
    ///
    /// # Errors
    /// If the directory cannot be read. A file that cannot is in the list.
    pub fn list(&self) -> Result<Listing, LocalError> {
        let failed = |source| LocalError::Read { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            entries => entries.map_err(failed)?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.extension() == Some(OsStr::new("json")) {
                paths.push(path);
            }
        }
        paths.sort();
        let mut listing = Listing::default();
        for path in paths {
            match read_listed(&path) {
                Ok(Some(file)) => listing.endpoints.push(file),
                Ok(None) => {} // removed meanwhile
                Err(error) => listing.damaged.push(error),
            }
        }
        Ok(listing)
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.dir.join(attachment.file_name())
    }
}

/// A file whose name does not match its content is damaged: removing its attachment would not remove it.
fn read_listed(path: &Path) -> Result<Option<EndpointFile>, LocalError> {
    let Some(file) = read_file::<EndpointFile>(path)? else { return Ok(None) };
    let name = file.attachment().map(|a| a.file_name());
    if name.ok().as_deref().map(OsStr::new) == path.file_name() {
        return Ok(Some(file));
    }
    let source = de::Error::custom("its name does not match its content");
    Err(LocalError::Damaged { path: path.to_owned(), source })
}

/// Interface names as text: towpath-core has no serde.
mod as_text {
    use super::{Deserialize, Deserializer, IfName, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(name: &IfName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IfName, D::Error> {
        IfName::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: &str) -> EndpointFile {
        EndpointFile {
            container_id: id.to_owned(),
            ifname: IfName::new("eth0").unwrap(),
            netns: "/run/netns/x".into(),
            network: "k8s-pod-network".to_owned(),
            namespace: "default".to_owned(),
            pod: "web-0".to_owned(),
            pod_uid: Some("0c5e".to_owned()),
            host_interface: IfName::of_pod("default", "web-0"),
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            mtu: 1450,
        }
    }

    fn endpoints() -> (tempfile::TempDir, Endpoints) {
        let dir = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::new(&Paths::new(dir.path(), dir.path()));
        (dir, endpoints)
    }

    #[test]
    fn an_attachment_has_an_id_and_an_interface_that_cni_allows() {
        for (id, ifname, ok, why) in [
            ("0af", "eth0", true, "usual"),
            ("a.b_c-D", "net1", true, "all characters"),
            ("", "eth0", false, "no id"),
            ("-a", "eth0", false, "begins with a dash"),
            ("../a", "eth0", false, "leads out of the directory"),
            ("a/b", "eth0", false, "slash"),
            ("a", "", false, "no interface"),
            ("a", "a234567890123456", false, "an interface of sixteen bytes"),
        ] {
            assert_eq!(Attachment::new(id, ifname).is_ok(), ok, "{why}");
        }
        assert!(Attachment::new(&"a".repeat(Attachment::MAX_ID_LEN), "eth0").is_ok());
        assert!(Attachment::new(&"a".repeat(Attachment::MAX_ID_LEN + 1), "eth0").is_err());
    }

    #[test]
    fn an_endpoint_is_read_as_it_was_written_and_gone_when_removed() {
        let (_dir, endpoints) = endpoints();
        let file = file("c1");
        let attachment = file.attachment().unwrap();
        assert_eq!(endpoints.read(&attachment).unwrap(), None);
        assert!(endpoints.list().unwrap().endpoints.is_empty(), "no directory yet");
        endpoints.write(&attachment, &file).unwrap();
        assert_eq!(endpoints.read(&attachment).unwrap(), Some(file.clone()));
        assert_eq!(endpoints.list().unwrap().endpoints, [file]);
        endpoints.remove(&attachment).unwrap();
        endpoints.remove(&attachment).unwrap();
        assert_eq!(endpoints.read(&attachment).unwrap(), None);
    }

    #[test]
    fn a_damaged_file_is_reported_and_hides_no_other() {
        let (_dir, endpoints) = endpoints();
        for id in ["c1", "c2"] {
            let file = file(id);
            endpoints.write(&file.attachment().unwrap(), &file).unwrap();
        }
        let good = fs::read_to_string(endpoints.dir().join("c1.eth0.json")).unwrap();
        for (name, text, why) in [
            ("a.eth0.json", "", "empty"),
            ("b.eth0.json", "{\"containerID\":", "cut off"),
            ("d.eth0.json", good.as_str(), "another's content"),
            ("e.eth0.json", "\u{0}\u{1}\u{ff}", "garbage"),
            ("f.eth0.json", &good.replace("\"eth0\"", "\"eth0/\""), "no interface"),
        ] {
            fs::write(endpoints.dir().join(name), text).unwrap();
            let listing = endpoints.list().unwrap();
            assert_eq!(listing.endpoints.len(), 2, "{why}");
            assert!(listing.damaged.iter().any(|e| e.to_string().contains(name)), "{why}");
        }
        fs::write(endpoints.dir().join(".c9.eth0.json.new"), "half").unwrap();
        fs::write(endpoints.dir().join("notes.txt"), "not ours").unwrap();
        assert_eq!(endpoints.list().unwrap().damaged.len(), 5, "temporary and other files are ignored");
    }
}
