//! Certificates of a cluster and the kubeconfigs made of them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

/// One cluster's certificate authority and the folder where its files are.
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// Who a certificate is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    /// Name of the files: `<file>.crt` and `<file>.key`.
    pub file: &'a str,
    /// Common name: the user in Kubernetes.
    pub user: &'a str,
    /// Organisation: the group in Kubernetes.
    pub group: &'a str,
    /// Addresses that a server's certificate stands for.
    pub addresses: Vec<IpAddr>,
    /// Names that a server's certificate stands for.
    pub names: Vec<String>,
}

impl<'a> Subject<'a> {
    /// A client with no addresses of its own.
    #[must_use]
    pub(crate) fn client(file: &'a str, user: &'a str, group: &'a str) -> Self {
        Self { file, user, group, addresses: Vec::new(), names: Vec::new() }
    }
}

impl Authority {
    /// Creates a new authority with its files in `dir`, the keys of the service accounts among them.
    ///
    /// # Errors
    /// When a key cannot be generated or a file cannot be written.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let key = KeyPair::generate().context("generate the authority's key")?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = distinguished("towpath-test-ca", "towpath");
        let certificate = params.self_signed(&key).context("sign the authority's certificate")?.pem();
        write(&dir.join("ca.crt"), &certificate)?;
        write(&dir.join("ca.key"), &key.serialize_pem())?;
        let accounts = KeyPair::generate().context("generate the service accounts' key")?;
        write(&dir.join("sa.key"), &accounts.serialize_pem())?;
        write(&dir.join("sa.pub"), &accounts.public_key_pem())?;
        Ok(Self { dir: dir.to_path_buf(), issuer: Issuer::new(params, key), certificate })
    }

    /// Reads back the authority that [`Authority::create`] left in `dir`.
    ///
    /// # Errors
    /// When its files are missing or unreadable.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let read = |file: &str| {
            fs::read_to_string(dir.join(file)).with_context(|| format!("read {}", dir.join(file).display()))
        };
        let certificate = read("ca.crt")?;
        let key = KeyPair::from_pem(&read("ca.key")?).context("read the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished("towpath-test-ca", "towpath");
        Ok(Self { dir: dir.to_path_buf(), issuer: Issuer::new(params, key), certificate })
    }

    /// Issues a certificate that serves for server and client alike.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub(crate) fn issue(&self, subject: &Subject<'_>) -> Result<()> {
        let key = KeyPair::generate().with_context(|| format!("generate the key of {}", subject.file))?;
        let mut params =
            CertificateParams::new(subject.names.clone()).with_context(|| format!("names of {}", subject.file))?;
        params.subject_alt_names.extend(subject.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.distinguished_name = distinguished(subject.user, subject.group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("sign the certificate of {}", subject.file))?;
        write(&self.dir.join(format!("{}.crt", subject.file)), &certificate.pem())?;
        write(&self.dir.join(format!("{}.key", subject.file)), &key.serialize_pem())
    }

    /// Writes a kubeconfig for the certificate `file` that reaches the API server at `server`. It refers to no other
    /// file, so that it may be copied.
    ///
    /// # Errors
    /// When the certificate is missing or `to` cannot be written.
    pub(crate) fn kubeconfig(&self, file: &str, server: &str, to: &Path) -> Result<()> {
        let encoded = |name: String| -> Result<String> {
            let path = self.dir.join(name);
            Ok(STANDARD.encode(fs::read(&path).with_context(|| format!("read {}", path.display()))?))
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "towpath", "cluster": {
                "server": server, "certificate-authority-data": STANDARD.encode(&self.certificate)}}],
            "users": [{"name": file, "user": {
                "client-certificate-data": encoded(format!("{file}.crt"))?,
                "client-key-data": encoded(format!("{file}.key"))?}}],
            "contexts": [{"name": "towpath", "context": {"cluster": "towpath", "user": file}}],
            "current-context": "towpath",
        });
        write(to, &serde_json::to_string_pretty(&config)?)
    }
}

/// Names and addresses under which clients reach the API server of a cluster.
#[must_use]
pub(crate) fn api_server(addresses: Vec<IpAddr>) -> Subject<'static> {
    let mut all = addresses;
    all.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    Subject {
        file: "apiserver",
        user: "kube-apiserver",
        group: "towpath",
        addresses: all,
        names: names.map(str::to_owned).to_vec(),
    }
}

fn distinguished(user: &str, group: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, group);
    name.push(DnType::CommonName, user);
    name
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new();
    let mut file = file
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}
