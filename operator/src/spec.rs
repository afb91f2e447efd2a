//! Parses and validates the spec. Pure.
//!
//! The API server checks the same with the CRD's rules; this also covers objects that were stored under older rules.

use ipnet::IpNet;
use towpath_crds::NetworkConfigSpec;

/// The parsed `spec.podCIDRs`, IPv4 first; empty if they are to be discovered. Validates the other CIDRs too.
///
/// # Errors
/// One sentence per contradiction, each saying which field to change.
pub fn pod_cidrs(spec: &NetworkConfigSpec) -> Result<Vec<IpNet>, Vec<String>> {
    let mut problems = Vec::new();
    let mut cidrs = networks("podCIDRs", &spec.pod_cidrs, &mut problems);
    networks("masquerade.nonMasqueradeCIDRs", &spec.masquerade.non_masquerade_cidrs, &mut problems);
    if let Some(interface) = &spec.interface {
        networks("interface.cidrs", &interface.cidrs, &mut problems);
        let used = [!interface.names.is_empty(), !interface.cidrs.is_empty(), interface.autodetect.is_some()];
        if used.iter().filter(|&&used| used).count() > 1 {
            problems.push("interface: keep one of names, cidrs and autodetect".to_owned());
        }
    }
    for family in ["IPv4", "IPv6"] {
        if cidrs.iter().filter(|cidr| family_name(cidr) == family).count() > 1 {
            problems.push(format!("podCIDRs: keep one {family} range"));
        }
    }
    cidrs.sort_by_key(family_name);
    if problems.is_empty() { Ok(cidrs) } else { Err(problems) }
}

/// The IP family as messages name it.
#[must_use]
pub fn family_name(cidr: &IpNet) -> &'static str {
    match cidr {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

fn networks(field: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in texts {
        match text.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => networks.push(net),
            Ok(net) => problems.push(format!("{field}: {text} has host bits: write {}", net.trunc())),
            Err(_) => problems.push(format!("{field}: {text} is not a CIDR such as 10.244.0.0/16")),
        }
    }
    networks
}

#[cfg(test)]
mod tests {
    use towpath_crds::network_config::{Autodetect, Interface};

    use super::*;
    use crate::testing::nets;

    fn spec(cidrs: &[&str]) -> NetworkConfigSpec {
        NetworkConfigSpec { pod_cidrs: cidrs.iter().map(|&c| c.to_owned()).collect(), ..NetworkConfigSpec::default() }
    }

    #[test]
    fn a_contradiction_is_named_with_its_field() {
        let two_ways = Interface {
            names: vec!["eth0".to_owned()],
            autodetect: Some(Autodetect::DefaultRoute),
            ..Interface::default()
        };
        let cases = [
            (spec(&["10.244.0.0"]), "podCIDRs: 10.244.0.0 is not a CIDR such as 10.244.0.0/16"),
            (spec(&["10.244.1.7/16"]), "podCIDRs: 10.244.1.7/16 has host bits: write 10.244.0.0/16"),
            (spec(&["10.1.0.0/16", "10.2.0.0/16"]), "podCIDRs: keep one IPv4 range"),
            (
                NetworkConfigSpec { interface: Some(two_ways), ..spec(&[]) },
                "interface: keep one of names, cidrs and autodetect",
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(pod_cidrs(&spec), Err(vec![want.to_owned()]));
        }
    }

    #[test]
    fn the_order_in_which_families_are_written_makes_no_other_revision() {
        let want = Ok(nets(&["10.244.0.0/16", "fd00::/56"]));
        assert_eq!(pod_cidrs(&spec(&["fd00::/56", "10.244.0.0/16"])), want);
        assert_eq!(pod_cidrs(&spec(&["10.244.0.0/16", "fd00::/56"])), want);
    }
}
