//! The time to program peers over rtnetlink (one neighbour, one FDB entry and one route per peer) with 1,000 and 5,000
//! peers in the kernel, and to read them back. `cargo bench -p towpath-dataplane --bench net` prints median, minimum
//! and maximum; it has no pass or fail. It runs in its own network namespace and needs root. On a busy machine run the
//! built program with `chrt -f 10`: the kernel does all work within the system calls of the process.

#![allow(clippy::unwrap_used, reason = "a failed step ends the bench")]

use std::{
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use towpath_core::{
    model::Mac,
    names::IfName,
    overlay::{NetOp, NextHop, RouteKey},
};
use towpath_dataplane::net::{KernelNet, Net};
use towpath_podlink::sysctl::Sysctls;

const LEVELS: [(u16, usize); 2] = [(1_000, 15), (5_000, 7)];
const SINGLE_RUNS: usize = 200;

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, or `unshare -Urn`");
    let device = "ip link add uplink type veth peer name far; ip link set far up; ip addr add 172.31.0.1/16 dev uplink; ip link set uplink up
        ip link add flannel.1 type vxlan id 1 dev uplink local 172.31.0.1 dstport 8472 nolearning; ip link set flannel.1 up";
    assert!(Command::new("sh").args(["-ec", device]).status().unwrap().success());
    let mut net = KernelNet::open(Sysctls::default()).unwrap();
    let mut apply = |ops: &[NetOp]| {
        let failed = net.apply(ops);
        assert!(failed.is_empty(), "{failed:?}");
    };
    for (count, runs) in LEVELS {
        let (all, none): (Vec<_>, Vec<_>) = (0..count).map(|n| (add(n), delete(n))).unzip();
        let (all, none) = (all.concat(), none.concat());
        let (mut add_all, mut delete_all) = (Sample::default(), Sample::default());
        for _ in 0..runs {
            add_all.time(|| apply(&all));
            delete_all.time(|| apply(&none));
        }
        add_all.report(&format!("{count} peers are added"));
        delete_all.report(&format!("{count} peers are deleted"));
        apply(&all);
        let (mut add_one, mut delete_one) = (Sample::default(), Sample::default());
        for _ in 0..SINGLE_RUNS {
            add_one.time(|| apply(&add(count)));
            delete_one.time(|| apply(&delete(count)));
        }
        add_one.report(&format!("one peer added to {count}"));
        delete_one.report(&format!("one peer deleted of {count}"));
        apply(&none);
    }
    for (count, runs) in LEVELS {
        let all: Vec<_> = (0..count).flat_map(add).collect();
        assert!(net.apply(&all).is_empty());
        let mut read = Sample::default();
        for _ in 0..runs {
            read.time(|| assert_eq!(net.read_back().unwrap().neighbours.len(), usize::from(count)));
        }
        read.report(&format!("{count} peers are read back"));
        let none: Vec<_> = (0..count).flat_map(delete).collect();
        assert!(net.apply(&none).is_empty());
    }
}

#[derive(Default)]
struct Sample(Vec<Duration>);

impl Sample {
    fn time(&mut self, act: impl FnOnce()) {
        let start = Instant::now();
        act();
        self.0.push(start.elapsed());
    }

    fn report(mut self, what: &str) {
        self.0.sort_unstable();
        let at = |n: usize| self.0[n].as_secs_f64() * 1e3;
        println!("{what:<30} {:>9.3} ms ({:.3} to {:.3})", at(self.0.len() / 2), at(0), at(self.0.len() - 1));
    }
}

fn device() -> IfName {
    IfName::new("flannel.1").unwrap()
}

fn mac(n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    Mac::locally_administered([0, 0, 0, 9, high, low])
}

/// The podCIDR of peer n, counted from 10.100.0.0/24. Its node address is counted from 172.31.0.0.
fn network(n: u16) -> Ipv4Net {
    let [high, low] = n.to_be_bytes();
    format!("10.{}.{low}.0/24", 100 + u16::from(high)).parse().unwrap()
}

fn remote(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    [172, 31, high, low].into()
}

fn add(n: u16) -> Vec<NetOp> {
    let gateway = network(n).network().into();
    vec![
        NetOp::SetNeighbour { link: device(), address: gateway, mac: mac(n) },
        NetOp::SetFdb { link: device(), mac: mac(n), remote: remote(n) },
        NetOp::AddRoute { destination: network(n).into(), hop: NextHop::Onlink { gateway, link: device() } },
    ]
}

fn delete(n: u16) -> Vec<NetOp> {
    vec![
        NetOp::DeleteRoute { route: RouteKey { destination: network(n).into(), metric: 0 } },
        NetOp::DeleteFdb { link: device(), mac: mac(n), remote: remote(n) },
        NetOp::DeleteNeighbour { link: device(), address: network(n).network().into() },
    ]
}
