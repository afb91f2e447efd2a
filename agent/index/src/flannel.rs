//! flannel's annotations on Nodes: how nodes tell each other where their VTEPs are. The format is flannel's subnet
//! manager's (`pkg/subnet/kube`, v0.28), so that flanneld and we understand each other in one cluster.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::Value;
use towpath_core::model::{Family, Mac, ParseError, Vni};

/// What all of these annotations begin with.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// Says that the node's subnet comes from its Node object; always `"true"`.
pub const KUBE_SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
/// The transport: [`VXLAN`].
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// The value of [`BACKEND_TYPE`] for VXLAN.
pub const VXLAN: &str = "vxlan";

/// AnnotationNames of the annotations of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnotationNames {
    /// VNI and the VTEP's MAC, as JSON.
    pub backend_data: &'static str,
    /// Where peers reach the VTEP.
    pub public_ip: &'static str,
    /// Set by the user: what to publish as the public IP; the local device is not touched by it.
    pub public_ip_overwrite: &'static str,
    /// Set by the user: which local address to use.
    pub node_public_ip: &'static str,
}

/// The names for a family.
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

/// What a node publishes for one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VtepToPublish {
    /// Where peers reach its VTEP.
    pub public_ip: IpAddr,
    /// The VTEP's MAC.
    pub vtep_mac: Mac,
}

/// Every annotation that is ours to write, with the value that it must have; `None`: it must not be there. Annotations
/// of a family that is not published go, else peers would keep sending to it.
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

/// flannel compares these annotations as text: no spaces, this order, lower-case digits.
fn backend_data(vni: Vni, mac: Mac) -> String {
    format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#)
}

/// The content of a `backend-data` annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendData {
    /// The VNI; flannel before v0.12 does not tell.
    pub vni: Option<Vni>,
    /// The VTEP's MAC.
    pub vtep_mac: Mac,
}

impl BackendData {
    /// Reads it as Go's JSON does: names in any case and any order, others ignored.
    ///
    /// # Errors
    /// If it is not a JSON object with the MAC of one station, or if its VNI is none.
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

/// The address in an annotation of this family.
///
/// # Errors
/// If it is no address of the family that a single node can have.
pub fn parse_address(family: Family, text: &str) -> Result<IpAddr, ParseError> {
    let expected = match family {
        Family::V4 => "an IPv4 address of a node",
        Family::V6 => "an IPv6 address of a node",
    };
    let usable = |a: &IpAddr| Family::of(*a) == family && !a.is_unspecified() && !a.is_multicast() && !a.is_loopback();
    text.trim().parse().ok().filter(usable).ok_or_else(|| ParseError { text: text.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_data_is_read_as_flannel_reads_it() {
        for (text, vni, why) in [
            (r#"{"VNI":1,"VtepMAC":"AA:bb:cc:dd:ee:00"}"#, Some(1), "as flannel writes it"),
            (r#"{ "vtepMac": "aa:bb:cc:dd:ee:00", "vni": 4096, "x": [] }"#, Some(4096), "any order and case"),
            (r#"{"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, None, "old flannel tells no VNI"),
        ] {
            let data = BackendData::parse(text).unwrap();
            assert_eq!(data.vni.map(Vni::value), vni, "{why}");
            assert_eq!(data.vtep_mac.to_string(), "aa:bb:cc:dd:ee:00", "{why}");
        }
        for (text, why) in [
            ("", "empty"),
            ("null", "host-gw's"),
            ("{", "no JSON"),
            ("[]", "no object"),
            (r#"{"VNI":1}"#, "no MAC"),
            (r#"{"VNI":0,"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "zero is no VNI"),
            (r#"{"VNI":16777216,"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "25 bits"),
            (r#"{"VNI":-1,"VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "negative"),
            (r#"{"VNI":"1","VtepMAC":"aa:bb:cc:dd:ee:00"}"#, "text"),
            (r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#, "a group address"),
            (r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#, "all zero"),
            (r#"{"VNI":1,"VtepMAC":7}"#, "no text"),
        ] {
            assert!(BackendData::parse(text).is_err(), "{why}: {text}");
        }
    }

    #[test]
    fn what_is_published_is_read_back_and_a_missing_family_is_removed() {
        let vni = Vni::new(1).unwrap();
        let mac: Mac = "aa:bb:cc:dd:ee:0f".parse().unwrap();
        let published =
            BTreeMap::from([(Family::V4, VtepToPublish { public_ip: "192.0.2.1".parse().unwrap(), vtep_mac: mac })]);
        let annotations = annotations(vni, &published);
        let data = annotations[names(Family::V4).backend_data].clone().unwrap();
        assert_eq!(data, r#"{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:0f"}"#, "compact, this order, lower case");
        assert_eq!(BackendData::parse(&data).unwrap(), BackendData { vni: Some(vni), vtep_mac: mac });
        assert_eq!(annotations[names(Family::V4).public_ip].as_deref(), Some("192.0.2.1"));
        assert_eq!(annotations[names(Family::V6).backend_data], None, "IPv6 is not published: it must go");
        assert_eq!(annotations[names(Family::V6).public_ip], None);
        assert!(annotations.keys().all(|k| k.starts_with(PREFIX)));
    }

    #[test]
    fn an_address_must_be_one_that_a_node_can_have() {
        for (family, text, ok, why) in [
            (Family::V4, "192.0.2.1", true, "an address"),
            (Family::V4, " 192.0.2.1 ", true, "people leave spaces"),
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
