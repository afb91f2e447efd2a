//! The overlay with 1,000 peers: asserts the number of operations and prints their time.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::time::Instant;

use support::nodes::{DEFAULTS, Underlay};
use towpath_core::{
    model::{Mac, NodeName, NodePeer},
    overlay::diff,
};
use towpath_dataplane::net::{KernelNet, Net};
use towpath_podlink::sysctl::Sysctls;

fn peers(count: u16) -> Vec<NodePeer> {
    let peer = |n: u16| {
        let [high, low] = n.to_be_bytes();
        NodePeer {
            node: NodeName(format!("peer{n}")),
            pod_cidr: format!("10.{}.{low}.0/24", 100 + u16::from(high)).parse().unwrap(),
            public_ip: format!("172.31.{high}.{low}").parse().unwrap(),
            vtep_mac: Mac::locally_administered([0, 0, 0, 9, high, low]),
        }
    };
    (0..count).map(peer).collect()
}

#[test]
fn a_thousand_peers_are_programmed_and_one_more_needs_three_operations() {
    let underlay = Underlay::new(1);
    let node = &underlay.nodes[0];
    node.converge(DEFAULTS, &[]);
    node.namespace.run(|| {
        let mut net = KernelNet::open(Sysctls::default()).unwrap();
        let mut have = net.read_back().unwrap();
        for (count, changes) in [(1000, 3000), (1001, 3), (1000, 3), (0, 3000)] {
            let start = Instant::now();
            let want = node.want(DEFAULTS, &peers(count), &have);
            let ops = diff(&want, &have);
            let planned = start.elapsed();
            assert_eq!(ops.len(), changes, "{count} peers");
            let failed = net.apply(&ops);
            let applied = start.elapsed() - planned;
            assert!(failed.is_empty(), "{failed:#?}");
            // The agent updates its cached state without reading back; it must equal the kernel's state.
            ops.iter().for_each(|op| have.execute(op).unwrap());
            let cached = start.elapsed() - planned - applied;
            let back = net.read_back().unwrap();
            let read = start.elapsed() - planned - applied - cached;
            assert_eq!(back, have, "{count} peers");
            println!("to {count} peers: planned {planned:?}, applied {applied:?}, cached {cached:?}, read {read:?}");
        }
    });
}
