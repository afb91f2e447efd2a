//! Histories at random: what is wanted and what is changed do not depend on the way to it.

use proptest::{collection::vec, option::weighted, prelude::*};

use super::*;

const NODES: usize = 5;

/// A cluster later on: other peers, which may have got what others had, and other pods, two of which may have one address.
/// Now and then another VNI or mode.
#[derive(Debug, Clone)]
struct Later {
    peers: Vec<NodePeer>,
    endpoints: Vec<Endpoint>,
    vni: Option<u32>,
    direct: Option<bool>,
}

impl Later {
    fn than(&self, before: &Cluster) -> Cluster {
        let direct = match self.direct {
            None => before.direct,
            Some(true) => DirectRouting::Enabled,
            Some(false) => DirectRouting::Disabled,
        };
        let (peers, endpoints) = (self.peers.clone(), self.endpoints.clone());
        Cluster { vni: self.vni.unwrap_or(before.vni), direct, peers, endpoints, ..before.clone() }
    }
}

/// NodePeers of a family, no two of which have anything in common.
fn peers(family: Family) -> impl Strategy<Value = Vec<NodePeer>> {
    let numbers = || Just((1..=NODES as u8).collect::<Vec<_>>()).prop_shuffle();
    (numbers(), numbers(), numbers(), vec(weighted(0.7, any::<bool>()), NODES)).prop_map(
        move |(cidrs, macs, hosts, there)| {
            let far = if family == Family::V4 { addr("198.51.100.1") } else { addr("2001:db8::1") };
            let of = |node: usize| {
                let is_far = there[node]?;
                Some(NodePeer {
                    node: NodeName(format!("n{node}")),
                    pod_cidr: pod_cidr(family, cidrs[node]),
                    public_ip: if is_far { far } else { public_ip(family, hosts[node]) },
                    vtep_mac: mac(family, macs[node]),
                })
            };
            (0..NODES).filter_map(of).collect()
        },
    )
}

fn later() -> impl Strategy<Value = Later> {
    let pods = prop::collection::btree_map(1..4u8, 1..4u8, 0..4);
    let rare = (weighted(0.1, 1..3u32), weighted(0.1, any::<bool>()));
    (peers(Family::V4), peers(Family::V6), pods, rare).prop_map(|(mut peers, v6, pods, (vni, direct))| {
        peers.extend(v6);
        let pod = |(pod, address): (&u8, &u8)| Endpoint { addresses: endpoint(*address).addresses, ..endpoint(*pod) };
        Later { peers, endpoints: pods.iter().map(pod).collect(), vni, direct }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_gives_what_a_comparison_of_everything_from_nothing_gives(
        only in prop::option::of(0..2usize), history in vec(later(), 1..8),
    ) {
        let mut cluster = Cluster::of(3);
        if let Some(family) = only {
            cluster.families.remove(&Family::ALL[family]);
        }
        let mut wanted = OverlayPlanner::default();
        cluster.update(&mut wanted, &fresh());
        let mut kernel = converged(wanted.overlay());
        for step in &history {
            let before = wanted.overlay().clone();
            cluster = step.than(&cluster);
            cluster.update(&mut wanted, &fresh());
            prop_assert_eq!(wanted.overlay(), &cluster.want());
            let ops = change(wanted.overlay(), &before, &kernel);
            prop_assert_eq!(&ops, &diff(wanted.overlay(), &kernel));
            execute(&mut kernel, &ops);
        }
    }
}
