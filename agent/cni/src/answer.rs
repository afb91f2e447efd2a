//! Results as JSON, in the form of the configuration's CNI version.

use std::{net::IpAddr, path::Path};

use serde_json::{Value, json};
use towpath_core::model::{Family, Mac, host_net};
use towpath_podlink::{PodLinkSpec, link::gateway};

use crate::{config::NetConf, version::Version};

/// ADD's result: both ends of the veth, the pod's addresses on the second, and its default routes.
pub(crate) fn added(conf: &NetConf, spec: &PodLinkSpec, pod_mac: Mac, netns: &Path) -> Value {
    let interface = |name: &str, mac: Mac| {
        let mut interface = json!({"name": name, "mac": mac.to_string()});
        if conf.version >= Version::V1_1_0 {
            interface["mtu"] = spec.mtu.into();
        }
        interface
    };
    let mut pod_end = interface(spec.pod.as_str(), pod_mac);
    pod_end["sandbox"] = netns.to_string_lossy().into();
    let ips: Vec<Value> = spec.addresses.iter().map(|addr| ip(conf.version, *addr)).collect();
    let routes: Vec<Value> = spec.addresses.iter().map(|addr| default_route(Family::of(*addr))).collect();
    json!({
        "cniVersion": conf.version.as_str(),
        "interfaces": [interface(spec.host.as_str(), Mac::HOST_VETH), pod_end],
        "ips": ips,
        "routes": routes,
        "dns": conf.dns,
    })
}

fn ip(version: Version, addr: IpAddr) -> Value {
    const POD_END: usize = 1;
    let family = Family::of(addr);
    let mut ip = json!({"address": host_net(addr).to_string(), "gateway": gateway(family), "interface": POD_END});
    if version < Version::V1_0_0 {
        ip["version"] = match family {
            Family::V4 => "4".into(),
            Family::V6 => "6".into(),
        };
    }
    ip
}

fn default_route(family: Family) -> Value {
    let dst = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    json!({"dst": dst, "gw": gateway(family)})
}

/// VERSION's result.
pub(crate) fn versions() -> Value {
    let supported = Version::ALL.map(Version::as_str);
    json!({"cniVersion": Version::NEWEST.as_str(), "supportedVersions": supported})
}

#[cfg(test)]
mod tests {
    use towpath_core::names::IfName;

    use super::*;

    fn result(version: &str) -> Value {
        let text =
            format!("{{\"cniVersion\":\"{version}\",\"name\":\"n\",\"dns\":{{\"nameservers\":[\"10.96.0.10\"]}}}}");
        let conf = NetConf::parse(text.as_bytes()).unwrap();
        let spec = PodLinkSpec {
            host: IfName::new("tow0123456789a").unwrap(),
            pod: IfName::new("eth0").unwrap(),
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            mtu: 1450,
        };
        added(&conf, &spec, Mac([2, 0, 0, 0, 0, 1]), Path::new("/run/netns/x"))
    }

    #[test]
    fn a_result_has_the_form_of_the_configurations_version() {
        for (version, ip_version, mtu, why) in [
            ("0.3.0", Some("4"), None, "the oldest"),
            ("0.3.1", Some("4"), None, "addresses carry their IP version"),
            ("0.4.0", Some("4"), None, "still"),
            ("1.0.0", None, None, "no longer"),
            ("1.1.0", None, Some(1450), "interfaces carry their MTU"),
        ] {
            let result = result(version);
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0].get("version").and_then(Value::as_str), ip_version, "{version}: {why}");
            assert_eq!(result["interfaces"][1].get("mtu").and_then(Value::as_u64), mtu, "{version}: {why}");
        }
    }

    #[test]
    fn a_result_has_both_ends_both_families_and_the_dns_of_the_configuration() {
        let want = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "tow0123456789a", "mac": "ee:ee:ee:ee:ee:ee"},
                {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::2/128", "gateway": "fe80::ecee:eeff:feee:eeee", "interface": 1},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"},
            ],
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        assert_eq!(result("1.0.0"), want);
    }

    #[test]
    fn the_result_of_version_lists_all_versions() {
        let versions = versions();
        assert_eq!(versions["cniVersion"], "1.1.0");
        assert_eq!(versions["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}
