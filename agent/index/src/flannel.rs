//! flannel's annotations on Nodes, with which nodes publish their VTEPs to their peers. The format is that of flannel's
//! Kubernetes subnet manager (`pkg/subnet/kube`, v0.28), so nodes with flanneld and with Towpath interoperate.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;
use towpath_core::model::{Family, Mac, ParseError, Vni};

/// The common prefix of flannel's annotations.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// Marks a node whose subnet comes from its Node object. Always `"true"`.
pub const KUBE_SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
/// The flannel backend of the node: [`VXLAN`].
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// The value of [`BACKEND_TYPE`] for VXLAN.
pub const VXLAN: &str = "vxlan";

/// The annotation names of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnotationNames {
    /// VNI and VTEP MAC, as JSON.
    pub backend_data: &'static str,
    /// The underlay address of the VTEP.
    pub public_ip: &'static str,
    /// Set by the user: the public IP to publish. It does not change the local address of the VXLAN device.
    pub public_ip_overwrite: &'static str,
    /// Set by the user: the local underlay address to use.
    pub node_public_ip: &'static str,
}

/// The annotation names of a family.
#[must_use]
pub const fn names(family: Family) -> AnnotationNames {
    match family {
        Family::V4 => AnnotationNames {
            backend_data: "flannel.alpha.coreos.com/backend-data",
            public_ip: "flannel.alpha.coreos.com/public-ip",
            public_ip_overwrite: "flannel.alpha.coreos.com/public-ip-overwrite",
            node_public_ip: "flannel.alpha.coreos.com/node-public-ip",
        },
        Family::V6 => AnnotationNames {
            backend_data: "flannel.alpha.coreos.com/backend-v6-data",
            public_ip: "flannel.alpha.coreos.com/public-ipv6",
            public_ip_overwrite: "flannel.alpha.coreos.com/public-ipv6-overwrite",
            node_public_ip: "flannel.alpha.coreos.com/node-public-ipv6",
        },
    }
}

/// The VTEP that this node publishes for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VtepToPublish {
    /// The underlay address at which peers reach the VTEP.
    pub public_ip: IpAddr,
    /// The MAC address of the VXLAN device.
    pub vtep_mac: Mac,
}

/// All annotations that this agent writes, with their desired values; `None` means that the annotation must not exist.
/// Annotations of a family without VTEP are removed, because peers would otherwise keep sending to it.
#[must_use]
pub fn annotations(vni: Vni, published: &BTreeMap<Family, VtepToPublish>) -> BTreeMap<&'static str, Option<String>> {
    let mut annotations =
        BTreeMap::from([(KUBE_SUBNET_MANAGER, Some("true".to_owned())), (BACKEND_TYPE, Some(VXLAN.to_owned()))]);
    for family in Family::ALL {
        let published = published.get(&family);
        let names = names(family);
        annotations.insert(names.backend_data, published.map(|p| backend_data(vni, p.vtep_mac)));
        annotations.insert(names.public_ip, published.map(|p| p.public_ip.to_string()));
    }
    annotations
}

/// flannel compares this annotation as text: no spaces, this order of fields, lower-case digits.
fn backend_data(vni: Vni, mac: Mac) -> String {
    format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)
}

/// The content of a `backend-data` annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendData {
    /// The VNI; flannel before v0.12 does not publish it.
    pub vni: Option<Vni>,
    /// The MAC address of the VTEP.
    pub vtep_mac: Mac,
}

impl BackendData {
    /// Parses it as Go's `encoding/json` does: field names in any case and order, unknown fields ignored.
    ///
    /// # Errors
    /// If it is not a JSON object with a unicast MAC address, or if its VNI is invalid.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError {
            text: text.to_owned(),
            expected: r#"flannel's backend data like {"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}"#,
        };
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return Err(error()) };
        let field = |name: &str| fields.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v);
        let vtep_mac = field("VtepMAC").and_then(Value::as_str).and_then(|mac| mac.parse::<Mac>().ok());
        let vtep_mac = vtep_mac.filter(|mac| mac.is_unicast()).ok_or_else(error)?;
        let vni = match field("VNI") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                Some(number.and_then(Vni::new).ok_or_else(error)?)
            }
        };
        Ok(Self { vni, vtep_mac })
    }
}

/// Parses the address in an annotation of this family. Surrounding white space is ignored.
///
/// # Errors
/// If it is not an address of the family, or if it is unspecified, multicast or loopback.
pub fn parse_address(family: Family, text: &str) -> Result<IpAddr, ParseError> {
    let expected = match family {
        Family::V4 => "an IPv4 address that a node can have",
        Family::V6 => "an IPv6 address that a node can have",
    };
    let usable = |a: &IpAddr| Family::of(*a) == family && !a.is_unspecified() && !a.is_multicast() && !a.is_loopback();
    text.trim().parse().ok().filter(usable).ok_or_else(|| ParseError { text: text.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_data_is_parsed_as_flannel_does() {
        for (text, vni, why) in [
            (r#"{"VNI":1,"VtepMAC":"AA:bb:cc:dd:ee:00"}"#, Some(1), "as flannel writes it"),
            (r#"{ "vtepMac": "aa:bb:cc:dd:ee:00", "vni": 4096, "x": [] }"#, Some(4096), "any order and case"),
            (r#"{"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, None, "old flannel publishes no VNI"),
        ] {
            let data = BackendData::parse(text).unwrap();
            assert_eq!(data.vni.map(Vni::value), vni, "{why}");
            assert_eq!(data.vtep_mac.to_string(), "aa:bb:cc:dd:ee:00", "{why}");
        }
        for (text, why) in [
            ("", "empty"),
            ("null", "written by the host-gw backend"),
            ("{", "not JSON"),
            ("[]", "not an object"),
            (r#"{"VNI":1}"#, "no MAC"),
            (r#"{"VNI":0,"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "VNI zero"),
            (r#"{"VNI":16777216,"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "25 bits"),
            (r#"{"VNI":-1,"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "negative"),
            (r#"{"VNI":"1","VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "text"),
            (r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#, "a group address"),
            (r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#, "all zero"),
            (r#"{"VNI":1,"VtepMAC":7}"#, "a number"),
        ] {
            assert!(BackendData::parse(text).is_err(), "{why}: {text}");
        }
    }

    #[test]
    fn published_annotations_are_parsed_back_and_those_of_a_missing_family_are_removed() {
        let vni = Vni::new(1).unwrap();
        let mac: Mac = "aa:bb:cc:dd:ee:0f".parse().unwrap();
        let published =
            BTreeMap::from([(Family::V4, VtepToPublish { public_ip: "192.0.2.1".parse().unwrap(), vtep_mac: mac })]);
        let annotations = annotations(vni, &published);
        let data = annotations[names(Family::V4).backend_data].clone().unwrap();
        assert_eq!(data, r#"{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:0f"}"#, "compact, this order, lower case");
        assert_eq!(BackendData::parse(&data).unwrap(), BackendData { vni: Some(vni), vtep_mac: mac });
        assert_eq!(annotations[names(Family::V4).public_ip].as_deref(), Some("192.0.2.1"));
        assert_eq!(annotations[names(Family::V6).backend_data], None, "IPv6 is not published, so it is removed");
        assert_eq!(annotations[names(Family::V6).public_ip], None);
        assert!(annotations.keys().all(|k| k.starts_with(PREFIX)));
    }

    #[test]
    fn only_addresses_that_a_node_can_have_are_accepted() {
        for (family, text, ok, why) in [
            (Family::V4, "192.0.2.1", true, "an address"),
            (Family::V4, " 192.0.2.1 ", true, "with white space"),
            (Family::V4, "2001:db8::1", false, "the other family"),
            (Family::V6, "2001:db8::1", true, "an address"),
            (Family::V4, "0.0.0.0", false, "unspecified"),
            (Family::V4, "224.0.0.1", false, "multicast"),
            (Family::V6, "::1", false, "loopback"),
            (Family::V4, "node-1", false, "a name"),
        ] {
            assert_eq!(parse_address(family, text).is_ok(), ok, "{why}");
        }
    }
}
