//! The agent's configuration in the core's types, checked.

use std::net::IpAddr;

use ipnet::IpNet;
use towpath_core::{
    model::{ParseError, Vni},
    names::IfName,
    overlay::{DirectRouting, InterfaceSpec},
    policy::packet_log::DenyLog,
    table::{Masquerade, SourceToNodes},
};
use towpath_crds::{
    agent_config::AgentConfig,
    network_config::{self, Interface, MasqueradeMode, OnChange, PolicyMode},
};

/// What the operator configured for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The configuration's revision, which the status reports.
    pub revision: String,
    /// The ranges of all pods, at most one per family.
    pub pod_cidrs: Vec<IpNet>,
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// The overlay's UDP port.
    pub port: u16,
    /// Whether peers on the same link are reached without the tunnel.
    pub direct_routing: DirectRouting,
    /// The MTU of devices and pods in bytes; `None`: the uplink's, less the encapsulation.
    pub mtu: Option<u32>,
    /// How the uplink is chosen.
    pub interface: InterfaceSpec,
    /// Whether pods' packets leave the cluster with the node's address.
    pub masquerade: Masquerade,
    /// Whether policies are enforced.
    pub policy: PolicyMode,
    /// Whether established connections are evaluated again when policies change.
    pub on_change: OnChange,
    /// Whether packets that policies drop are logged.
    pub deny_log: DenyLog,
}

/// A value of the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("configuration field {field}: {problem}; correct it in the NetworkConfig")]
pub struct SettingsError {
    /// The field of the NetworkConfig's spec.
    pub field: &'static str,
    /// The value, and what is expected.
    pub problem: ParseError,
}

impl Settings {
    /// Checks and converts a configuration.
    ///
    /// # Errors
    /// For the first value that cannot be used. The API server and the operator have checked them all; this guards
    /// against a ConfigMap that was written by hand.
    pub fn new(config: &AgentConfig) -> Result<Self, SettingsError> {
        let backend = &config.backend;
        Ok(Self {
            revision: config.revision(),
            pod_cidrs: nets("podCIDRs", &config.pod_cidrs)?,
            vni: number("backend.vxlan.vni", backend.vni, "a number from 1 to 16777215", Vni::new)?,
            port: number("backend.vxlan.port", backend.port, "a port from 1 to 65535", |n: u16| (n > 0).then_some(n))?,
            direct_routing: match backend.direct_routing {
                network_config::DirectRoutingMode::Enabled => DirectRouting::Enabled,
                network_config::DirectRoutingMode::Disabled => DirectRouting::Disabled,
            },
            mtu: config.mtu.map(|mtu| number("mtu", mtu, "a number of bytes", Some::<u32>)).transpose()?,
            interface: interface(config.interface.as_ref())?,
            masquerade: match config.masquerade.mode {
                MasqueradeMode::Enabled => Masquerade::Enabled {
                    non_masquerade_cidrs: nets(
                        "masquerade.nonMasqueradeCIDRs",
                        &config.masquerade.non_masquerade_cidrs,
                    )?,
                },
                MasqueradeMode::Disabled => Masquerade::Disabled,
            },
            policy: config.policy.mode,
            on_change: config.policy.on_change,
            deny_log: match config.policy.deny_log {
                network_config::DenyLogMode::Enabled => DenyLog::Enabled,
                network_config::DenyLogMode::Disabled => DenyLog::Disabled,
            },
        })
    }

    /// The source address of pods' packets to other nodes: the pod's where the underlay routes it, else the node's.
    #[must_use]
    pub const fn source_to_nodes(&self) -> SourceToNodes {
        match self.direct_routing {
            DirectRouting::Enabled => SourceToNodes::PodAddress,
            DirectRouting::Disabled => SourceToNodes::NodeAddress,
        }
    }
}

fn interface(spec: Option<&Interface>) -> Result<InterfaceSpec, SettingsError> {
    match spec {
        Some(spec) if !spec.names.is_empty() => {
            let names = spec.names.iter().map(|name| IfName::new(name)).collect::<Result<_, _>>();
            names.map(InterfaceSpec::Names).map_err(|problem| SettingsError { field: "interface.names", problem })
        }
        Some(spec) if !spec.cidrs.is_empty() => nets("interface.cidrs", &spec.cidrs).map(InterfaceSpec::Cidrs),
        Some(_) | None => Ok(InterfaceSpec::DefaultRoute),
    }
}

/// Parses networks; a single address is a network of one.
fn nets(field: &'static str, texts: &[String]) -> Result<Vec<IpNet>, SettingsError> {
    let net = |text: &String| {
        let single = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse::<IpNet>().map(|net| net.trunc()).or_else(|_| single())
    };
    let parse = |text: &String| net(text).map_err(|_| problem(field, text, "an address range like 10.244.0.0/16"));
    texts.iter().map(parse).collect()
}

fn number<N: TryFrom<i32>, T>(
    field: &'static str,
    value: i32,
    expected: &'static str,
    check: impl Fn(N) -> Option<T>,
) -> Result<T, SettingsError> {
    N::try_from(value).ok().and_then(check).ok_or_else(|| problem(field, &value.to_string(), expected))
}

fn problem(field: &'static str, text: &str, expected: &'static str) -> SettingsError {
    SettingsError { field, problem: ParseError { text: text.to_owned(), expected } }
}

#[cfg(test)]
mod tests {
    use towpath_crds::network_config::{Autodetect, LogLevel, MasqueradeSpec, PolicySpec, VxlanBackend};

    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            pod_cidrs: vec!["10.244.0.0/16".to_owned()],
            backend: VxlanBackend::default(),
            mtu: None,
            interface: None,
            masquerade: MasqueradeSpec::default(),
            policy: PolicySpec::default(),
            log_level: LogLevel::default(),
        }
    }

    #[test]
    fn the_operators_defaults_are_flannels_numbers() {
        let settings = Settings::new(&config()).unwrap();
        assert_eq!((settings.vni.value(), settings.port, settings.mtu), (1, 8472, None));
        assert_eq!(settings.interface, InterfaceSpec::DefaultRoute);
        assert_eq!(settings.revision, config().revision());
    }

    #[test]
    fn the_way_of_choosing_the_interface_is_the_one_that_is_filled_in() {
        let with =
            |interface| Settings::new(&AgentConfig { interface: Some(interface), ..config() }).unwrap().interface;
        let names = with(Interface { names: vec!["eth1".to_owned()], ..Interface::default() });
        assert_eq!(names, InterfaceSpec::Names(vec![IfName::new("eth1").unwrap()]));
        let cidrs = with(Interface { cidrs: vec!["192.0.2.0/24".to_owned()], ..Interface::default() });
        assert_eq!(cidrs, InterfaceSpec::Cidrs(vec!["192.0.2.0/24".parse().unwrap()]));
        let auto = with(Interface { autodetect: Some(Autodetect::DefaultRoute), ..Interface::default() });
        assert_eq!(auto, InterfaceSpec::DefaultRoute);
    }

    #[test]
    fn a_value_that_cannot_be_used_is_refused_by_the_name_of_its_field() {
        let cidr = AgentConfig { pod_cidrs: vec!["10.244.0.0/33".to_owned()], ..config() };
        let vni = AgentConfig { backend: VxlanBackend { vni: 0, ..VxlanBackend::default() }, ..config() };
        let port = AgentConfig { backend: VxlanBackend { port: 65_536, ..VxlanBackend::default() }, ..config() };
        let mtu = AgentConfig { mtu: Some(-1), ..config() };
        let name = Interface { names: vec!["a/b".to_owned()], ..Interface::default() };
        let name = AgentConfig { interface: Some(name), ..config() };
        for (config, field) in
            [(cidr, "podCIDRs"), (vni, "vni"), (port, "port"), (mtu, "mtu"), (name, "interface.names")]
        {
            let error = Settings::new(&config).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
