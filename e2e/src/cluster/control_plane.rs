//! The control plane's programs and their flags.

use std::path::PathBuf;

use crate::cluster::{Cluster, IpFamily, Spec};
use crate::pki::{Authority, Subject, api_server};
use crate::process::{Program, Running};
use crate::underlay;
use anyhow::Result;

/// Port of the API server inside the cluster.
pub const API_PORT: u16 = 6443;
/// Role of the control plane's namespace.
const ROLE: &str = "cp";

/// A part of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// etcd.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controller manager.
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// The forwarder of a loopback port to the API server.
    Forward,
}

impl Component {
    /// Name of its program, log and pid file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Forward => "forward",
        }
    }
}

impl Cluster {
    /// Starts a part of the control plane.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, component: Component) -> Result<Running> {
        self.supervisor().start(&self.program(component))
    }

    /// Ends a part of the control plane, by its pid.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self, component: Component) -> Result<()> {
        self.supervisor().stop(component.name())
    }

    /// Addresses of the control plane's machine.
    fn control_addresses(&self) -> Vec<std::net::IpAddr> {
        self.spec().family.addresses(underlay::CONTROL_PLANE)
    }

    /// Certificates and kubeconfigs of the control plane.
    pub(super) fn issue(&self, authority: &Authority) -> Result<()> {
        let mut addresses = self.control_addresses();
        addresses.push("10.96.0.1".parse()?);
        if self.spec().family == IpFamily::Dual {
            addresses.push("fd00:10:96::1".parse()?);
        }
        authority.issue(&api_server(addresses))?;
        let clients = [
            Subject::client("admin", "admin", "system:masters"),
            Subject::client("controller-manager", "system:kube-controller-manager", "towpath"),
            Subject::client("scheduler", "system:kube-scheduler", "towpath"),
            Subject::client("proxy", "system:kube-proxy", "towpath"),
            Subject::client("kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
        ];
        for client in &clients {
            authority.issue(client)?;
            authority.kubeconfig(client.file, &server(), &self.pki_dir().join(format!("{}.conf", client.file)))?;
        }
        Ok(())
    }

    fn program(&self, component: Component) -> Program {
        let words = match component {
            Component::Etcd => self.etcd(),
            Component::ApiServer => self.api_server(),
            Component::ControllerManager => self.controller_manager(),
            Component::Scheduler => vec![
                self.tools().kubernetes("kube-scheduler"),
                format!("--kubeconfig={}", self.pki_file("scheduler.conf")),
                "--leader-elect=false".into(),
            ],
            Component::Forward => vec![
                self.supervisor().launcher.display().to_string(),
                "forward".into(),
                "--netns".into(),
                underlay::netns(self.name(), ROLE),
                "--to".into(),
                format!("{}:{API_PORT}", underlay::ipv4(underlay::CONTROL_PLANE)),
                "--port-file".into(),
                self.port_file().display().to_string(),
            ],
        };
        // The forwarder listens on the machine's loopback, and enters the namespace by itself afterwards.
        let role = (component != Component::Forward).then(|| ROLE.to_owned());
        Program { name: component.name().to_owned(), group: "control-plane".into(), role, command: words }
    }

    pub(super) fn port_file(&self) -> PathBuf {
        self.dir().join("forward.port")
    }

    fn pki_file(&self, name: &str) -> String {
        self.pki_dir().join(name).display().to_string()
    }

    fn etcd(&self) -> Vec<String> {
        let mut words = vec![self.tools().etcd(), format!("--data-dir={}", self.dir().join("etcd").display())];
        // A test cluster need not survive a power failure; without fsync etcd is several times as fast.
        words.extend(
            [
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ]
            .map(str::to_owned),
        );
        words
    }

    fn api_server(&self) -> Vec<String> {
        let Spec { family, .. } = self.spec();
        let mut words = vec![
            self.tools().kubernetes("kube-apiserver"),
            format!("--service-cluster-ip-range={}", family.service_range()),
            format!("--advertise-address={}", underlay::ipv4(underlay::CONTROL_PLANE)),
            format!("--secure-port={API_PORT}"),
            format!("--service-account-key-file={}", self.pki_file("sa.pub")),
            format!("--service-account-signing-key-file={}", self.pki_file("sa.key")),
            format!("--client-ca-file={}", self.pki_file("ca.crt")),
            format!("--tls-cert-file={}", self.pki_file("apiserver.crt")),
            format!("--tls-private-key-file={}", self.pki_file("apiserver.key")),
            format!("--kubelet-client-certificate={}", self.pki_file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", self.pki_file("kubelet-client.key")),
            format!("--cert-dir={}", self.pki_dir().display()),
        ];
        words.extend(
            [
                "--etcd-servers=http://127.0.0.1:2379",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=Node,RBAC",
                "--allow-privileged",
                "--enable-admission-plugins=NodeRestriction",
                "--kubelet-preferred-address-types=InternalIP",
                // Deleted and created again within a test, names must not linger.
                "--shutdown-delay-duration=0s",
            ]
            .map(str::to_owned),
        );
        words
    }

    fn controller_manager(&self) -> Vec<String> {
        let Spec { family, .. } = self.spec();
        let mut words = vec![
            self.tools().kubernetes("kube-controller-manager"),
            format!("--kubeconfig={}", self.pki_file("controller-manager.conf")),
            format!("--service-account-private-key-file={}", self.pki_file("sa.key")),
            format!("--root-ca-file={}", self.pki_file("ca.crt")),
            format!("--cluster-signing-cert-file={}", self.pki_file("ca.crt")),
            format!("--cluster-signing-key-file={}", self.pki_file("ca.key")),
            format!("--cluster-cidr={}", family.pod_range()),
            format!("--service-cluster-ip-range={}", family.service_range()),
        ];
        words.extend(
            [
                "--allocate-node-cidrs",
                "--use-service-account-credentials",
                "--leader-elect=false",
                // A lost node is NotReady within 15 s, so that scenarios about it stay short.
                "--node-monitor-grace-period=15s",
                "--node-monitor-period=2s",
            ]
            .map(str::to_owned),
        );
        words
    }
}

/// The API server's URL inside the cluster.
pub(crate) fn server() -> String {
    format!("https://{}:{API_PORT}", underlay::ipv4(underlay::CONTROL_PLANE))
}
