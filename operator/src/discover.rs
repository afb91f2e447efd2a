//! Finds the pod network: the spec's word, else the smallest range per family that covers the Nodes' podCIDRs.
//!
//! A discovered network never shrinks while the NetworkConfig lives: the former value is part of the cover. It grows
//! when nodes join, each time to at least the double, so a cluster of n nodes sees about log2(n) revisions on its way;
//! a spec that names the network sees none.

use ipnet::IpNet;
use towpath_crds::config_status::{EffectiveCidrs, ValueSource};

use crate::{facts::NodeFacts, table::Table};

/// The pod network and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// At most one range per family, IPv4 first.
    pub cidrs: Vec<IpNet>,
    /// Where they came from.
    pub source: ValueSource,
}

/// The pod network, or none when neither spec nor Nodes tell.
#[must_use]
pub fn pod_network(spec: &[IpNet], nodes: &Table<NodeFacts>, former: Option<&EffectiveCidrs>) -> Option<PodNetwork> {
    if !spec.is_empty() {
        return Some(PodNetwork { cidrs: spec.to_vec(), source: ValueSource::Spec });
    }
    let former =
        former.filter(|f| f.source == ValueSource::NodePodCIDRs).map(|f| f.value.as_slice()).unwrap_or_default();
    let former = former.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok());
    let ranges: Vec<IpNet> = nodes.iter().flat_map(|(_, node)| node.pod_cidrs.iter().copied()).chain(former).collect();
    let v4 = ranges.iter().copied().filter(|r| matches!(r, IpNet::V4(_))).reduce(cover);
    let v6 = ranges.iter().copied().filter(|r| matches!(r, IpNet::V6(_))).reduce(cover);
    let cidrs: Vec<IpNet> = v4.into_iter().chain(v6).collect();
    (!cidrs.is_empty()).then_some(PodNetwork { cidrs, source: ValueSource::NodePodCIDRs })
}

/// The smallest range that contains both, which are of one family.
fn cover(a: IpNet, b: IpNet) -> IpNet {
    let mut wide = a.trunc();
    while !wide.contains(&b) {
        let Some(wider) = wide.supernet() else { return wide };
        wide = wider;
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{nets, node_table};

    #[test]
    fn the_network_is_the_specs_word_else_the_cover_of_the_nodes() {
        type Found = Option<(&'static [&'static str], ValueSource)>;
        let cases: [(&[&str], &[&[&str]], &[&str], Found, &str); 7] = [
            (
                &["10.9.0.0/16"],
                &[&["10.244.0.0/24"]],
                &[],
                Some((&["10.9.0.0/16"], ValueSource::Spec)),
                "the spec wins",
            ),
            (&[], &[&["10.244.0.0/24"]], &[], Some((&["10.244.0.0/24"], ValueSource::NodePodCIDRs)), "one node"),
            (
                &[],
                &[&["10.244.0.0/24"], &["10.244.1.0/24"], &["10.244.2.0/24"]],
                &[],
                Some((&["10.244.0.0/22"], ValueSource::NodePodCIDRs)),
                "three nodes need a /22",
            ),
            (
                &[],
                &[&["10.244.0.0/24"]],
                &["10.244.0.0/22"],
                Some((&["10.244.0.0/22"], ValueSource::NodePodCIDRs)),
                "a node that leaves does not shrink it",
            ),
            (
                &[],
                &[&["fd00:1::/64", "10.244.0.0/24"], &["fd00:1:0:1::/64", "10.244.1.0/24"]],
                &[],
                Some((&["10.244.0.0/23", "fd00:1::/63"], ValueSource::NodePodCIDRs)),
                "one range per family, IPv4 first",
            ),
            (&[], &[&[]], &[], None, "nobody tells"),
            (&[], &[], &[], None, "no nodes"),
        ];
        for (spec, nodes, former, want, why) in cases {
            let former = EffectiveCidrs {
                value: former.iter().map(|&c| c.to_owned()).collect(),
                source: ValueSource::NodePodCIDRs,
            };
            let have = pod_network(&nets(spec), &node_table(nodes), Some(&former));
            assert_eq!(have, want.map(|(cidrs, source)| PodNetwork { cidrs: nets(cidrs), source }), "{why}");
        }
    }

    #[test]
    fn a_former_spec_does_not_widen_what_is_discovered() {
        let former = EffectiveCidrs { value: vec!["10.0.0.0/8".to_owned()], source: ValueSource::Spec };
        let have = pod_network(&[], &node_table(&[&["10.244.0.0/24"]]), Some(&former)).unwrap();
        assert_eq!(have.cidrs, nets(&["10.244.0.0/24"]));
    }
}
