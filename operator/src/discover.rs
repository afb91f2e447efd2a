//! The pod network: `spec.podCIDRs`, else the smallest range per IP family that covers all Node.spec.podCIDRs. Pure.
//!
//! A discovered network never shrinks while the NetworkConfig exists: the range must cover the previous value too. When
//! nodes join it at least doubles, so a cluster that grows to n nodes goes through about log2(n) revisions. A spec that
//! names the network avoids them.

use ipnet::IpNet;
use towpath_crds::config_status::{EffectiveCidrs, ValueSource};

use crate::{facts::NodeFacts, store::Store};

/// The pod network and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// At most one CIDR per IP family, IPv4 first.
    pub cidrs: Vec<IpNet>,
    /// Where the CIDRs come from.
    pub source: ValueSource,
}

/// The pod network; `None` if neither spec nor Nodes have a CIDR. `former` is the one in the status.
#[must_use]
pub fn pod_network(spec: &[IpNet], nodes: &Store<NodeFacts>, former: Option<&EffectiveCidrs>) -> Option<PodNetwork> {
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
    fn the_network_is_that_of_the_spec_else_the_cover_of_the_nodes() {
        let cases = [
            (vec!["10.9.0.0/16"], vec![vec!["10.244.0.0/24"]], vec![], "Spec 10.9.0.0/16", "the spec wins"),
            (vec![], vec![vec!["10.244.0.0/24"]], vec![], "NodePodCIDRs 10.244.0.0/24", "one node"),
            (
                vec![],
                vec![vec!["10.244.0.0/24"], vec!["10.244.1.0/24"], vec!["10.244.2.0/24"]],
                vec![],
                "NodePodCIDRs 10.244.0.0/22",
                "three nodes need a /22",
            ),
            (
                vec![],
                vec![vec!["10.244.0.0/24"]],
                vec!["10.244.0.0/22"],
                "NodePodCIDRs 10.244.0.0/22",
                "a node that leaves does not shrink it",
            ),
            (
                vec![],
                vec![vec!["fd00:1::/64", "10.244.0.0/24"], vec!["fd00:1:0:1::/64", "10.244.1.0/24"]],
                vec![],
                "NodePodCIDRs 10.244.0.0/23 fd00:1::/63",
                "one range per family, IPv4 first",
            ),
            (vec![], vec![vec![]], vec![], "unknown", "the nodes have no podCIDR"),
            (vec![], vec![], vec![], "unknown", "no nodes"),
        ];
        for (spec, nodes, former, want, why) in cases {
            let value = former.into_iter().map(str::to_owned).collect();
            let former = EffectiveCidrs { value, source: ValueSource::NodePodCIDRs };
            let nodes: Vec<&[&str]> = nodes.iter().map(Vec::as_slice).collect();
            let have = pod_network(&nets(&spec), &node_table(&nodes), Some(&former));
            let have = have.map(|network| {
                let cidrs = network.cidrs.iter().map(ToString::to_string);
                std::iter::once(format!("{:?}", network.source)).chain(cidrs).collect::<Vec<_>>().join(" ")
            });
            assert_eq!(have.as_deref().unwrap_or("unknown"), want, "{why}");
        }
    }

    #[test]
    fn a_former_spec_does_not_widen_what_is_discovered() {
        let former = EffectiveCidrs { value: vec!["10.0.0.0/8".to_owned()], source: ValueSource::Spec };
        let have = pod_network(&[], &node_table(&[&["10.244.0.0/24"]]), Some(&former)).unwrap();
        assert_eq!(have.cidrs, nets(&["10.244.0.0/24"]));
    }
}
