//! Random histories: incremental planning and incremental diffs equal those made from scratch.

use proptest::{collection::vec, option::weighted, prelude::*};

use super::*;

const NODES: usize = 5;

/// A change of the cluster: other peers, which may reuse the podCIDR, MAC or public IP of removed ones, and other pods,
/// two of which may have the same address. Occasionally another VNI or routing mode.
#[derive(Debug, Clone)]
struct ClusterChange {
    peers: Vec<NodePeer>,
    endpoints: Vec<Endpoint>,
    vni: Option<u32>,
    direct: Option<bool>,
}

impl ClusterChange {
    fn apply(&self, before: &Cluster) -> Cluster {
        let direct = match self.direct {
            None => before.direct,
            Some(true) => DirectRouting::Enabled,
            Some(false) => DirectRouting::Disabled,
        };
        let (peers, endpoints) = (self.peers.clone(), self.endpoints.clone());
        Cluster { vni: self.vni.unwrap_or(before.vni), direct, peers, endpoints, ..before.clone() }
    }
}

/// Peers of a family. No two share a podCIDR or a MAC.
fn peers(family: Family) -> impl Strategy<Value = Vec<NodePeer>> {
    let numbers = || Just((1..=NODES as u8).collect::<Vec<_>>()).prop_shuffle();
    (numbers(), numbers(), numbers(), vec(weighted(0.7, any::<bool>()), NODES)).prop_map(
        move |(cidrs, macs, hosts, presence)| {
            let remote = if family == Family::V4 { addr("198.51.100.1") } else { addr("2001:db8::1") };
            let of = |node: usize| {
                let is_remote = presence[node]?;
                Some(NodePeer {
                    node: NodeName(format!("n{node}")),
                    pod_cidr: pod_cidr(family, cidrs[node]),
                    public_ip: if is_remote { remote } else { public_ip(family, hosts[node]) },
                    vtep_mac: mac(family, macs[node]),
                })
            };
            (0..NODES).filter_map(of).collect()
        },
    )
}

fn cluster_change() -> impl Strategy<Value = ClusterChange> {
    let pods = prop::collection::btree_map(1..4u8, 1..4u8, 0..4);
    let rare = (weighted(0.1, 1..3u32), weighted(0.1, any::<bool>()));
    (peers(Family::V4), peers(Family::V6), pods, rare).prop_map(|(mut peers, v6, pods, (vni, direct))| {
        peers.extend(v6);
        let pod = |(pod, address): (&u8, &u8)| Endpoint { addresses: endpoint(*address).addresses, ..endpoint(*pod) };
        ClusterChange { peers, endpoints: pods.iter().map(pod).collect(), vni, direct }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_incremental_change_equals_a_full_diff(
        disabled in prop::option::of(0..2usize), history in vec(cluster_change(), 1..8),
    ) {
        let mut cluster = Cluster::of(3);
        if let Some(family) = disabled {
            cluster.families.remove(&Family::ALL[family]);
        }
        let mut planner = OverlayPlanner::default();
        cluster.update(&mut planner, &fresh());
        let mut kernel = converged(planner.overlay());
        for change_of_cluster in &history {
            let before = planner.overlay().clone();
            cluster = change_of_cluster.apply(&cluster);
            cluster.update(&mut planner, &fresh());
            prop_assert_eq!(planner.overlay(), &cluster.want());
            let ops = change(planner.overlay(), &before, &kernel);
            prop_assert_eq!(&ops, &diff(planner.overlay(), &kernel));
            execute(&mut kernel, &ops);
        }
    }
}
