//! TCP between pods of two nodes, beside a hand-made VXLAN pair on the same machine.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use towpath_e2e::cluster::IpFamily;
use towpath_e2e::{run, underlay};

use crate::namespaces::Namespaces;
use crate::report::Table;
use crate::sample::{Sample, ratios};
use crate::setup::{BenchCluster, NAMESPACE, clear, pod, start};

/// The underlay of the hand-made pair, made as a cluster's is: a bridge and a veth for each machine.
const PAIR: &str = "bench-pair";
const ROUNDS: usize = 15;
/// Length of one round of one variant, in seconds: many short rounds, because disturbances of the machine come and go.
const SECONDS: &str = "1";
/// Pings of one round of one variant.
const PINGS: usize = 500;
/// Connection tracking and address translation, as every node has them whose kube-proxy uses nftables.
const TRACKING: &str = "table ip tracking {
    chain forward { type filter hook forward priority filter; ct state established,related accept; }
    chain output { type nat hook output priority -100; ip daddr 10.96.0.0/16 dnat to 10.250.0.1; }
    chain postrouting { type nat hook postrouting priority srcnat; ip daddr != 10.0.0.0/8 masquerade; }
}";

/// Two namespaces with a path between them.
struct PathVariant {
    name: &'static str,
    from: Namespaces,
    to: Namespaces,
    address: String,
}

/// Pings of all rounds of a variant.
#[derive(Default)]
struct Pings {
    lost: usize,
    /// Each round's shortest time in microseconds: the cost of the path itself, without disturbances.
    shortest: Vec<f64>,
}

/// A running `iperf3 -s`. It ends when this value is dropped.
struct Server(Child);

/// The namespaces of the hand-made pair. They are removed when this value is dropped.
struct Pair;

/// Compares Towpath with the pair, and with the pair when it has pods as well.
pub(crate) fn measure(cluster: &BenchCluster) -> Result<Table> {
    let addresses = start(cluster, &[pod("left", "n1"), pod("right", "n2")])?;
    let pair = Pair::make()?;
    let variants = [
        PathVariant {
            name: "Towpath, pod to pod",
            from: Namespaces::of_pod(cluster, NAMESPACE, "left")?,
            to: Namespaces::of_pod(cluster, NAMESPACE, "right")?,
            address: addresses[1].clone(),
        },
        pair.variant("hand-made VXLAN pair", ["m1", "m2"], "10.250.0.2")?,
        pair.variant("… with a pod behind each end", ["pod1", "pod2"], "10.250.2.2")?,
        pair.variant("… and connection tracking", ["pod3", "pod4"], "10.250.4.2")?,
    ];
    let servers: Vec<Server> = variants.iter().map(Server::start).collect::<Result<_>>()?;
    let mut speeds: Vec<Vec<f64>> = vec![Vec::new(); variants.len()];
    let mut pings: Vec<Pings> = variants.iter().map(|_| Pings::default()).collect();
    for _ in 0..ROUNDS {
        for ((variant, speeds), pings) in variants.iter().zip(&mut speeds).zip(&mut pings) {
            speeds.push(variant.gigabits().with_context(|| format!("measure {}", variant.name))?);
            variant.ping(pings).with_context(|| format!("ping with {}", variant.name))?;
        }
    }
    drop(servers);
    clear(cluster)?;
    table(&variants, &speeds, &pings)
}

fn table(variants: &[PathVariant], speeds: &[Vec<f64>], pings: &[Pings]) -> Result<Table> {
    let mut table = Table::new(
        "TCP across nodes",
        &[
            "variant",
            "Gbit/s (min–max)",
            "Towpath's ratio to it (min–max)",
            "aim",
            "shortest ping µs (min–max)",
            "pings lost",
        ],
    );
    for (index, ((variant, measured), pings)) in variants.iter().zip(speeds).zip(pings).enumerate() {
        let speed = Sample::new(measured.iter().copied()).context("no rounds")?.spread(2);
        let ratio = ratios(&speeds[0], measured).context("no rounds")?.spread(3);
        let (ratio, aim) = if index == 0 { (String::new(), "") } else { (ratio, "≥ 0.97") };
        let time = Sample::new(pings.shortest.iter().copied()).context("no pings")?.spread(0);
        let lost = format!("{} of {}", pings.lost, PINGS * ROUNDS);
        table.row([variant.name.into(), speed, ratio, aim.into(), time, lost]);
    }
    table.note(format!(
        "{ROUNDS} rounds of {SECONDS} s per variant, in turn; iperf3 with one stream, both ends on this machine."
    ));
    table.note(
        "The pair has only its VXLAN devices. The lines below it add a veth and a hop of routing for each pod, and the \
         connection tracking that kube-proxy brings to every node.",
    );
    Ok(table)
}

impl PathVariant {
    fn gigabits(&self) -> Result<f64> {
        let said = self.from.run(|| {
            run::output(Command::new("iperf3").args([
                "-c",
                &self.address,
                "-t",
                SECONDS,
                "-J",
                "--connect-timeout",
                "3000",
            ]))
        })?;
        let result: Value = serde_json::from_str(&said).context("iperf3 printed no JSON")?;
        let bits = result["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 received nothing")?;
        Ok(bits / 1e9)
    }

    fn ping(&self, pings: &mut Pings) -> Result<()> {
        let count = PINGS.to_string();
        let said = self
            .from
            .run(|| run::output(Command::new("ping").args(["-q", "-A", "-W", "1", "-c", &count, &self.address])))?;
        let received = said.split(", ").find_map(|part| part.strip_suffix(" received")?.parse::<usize>().ok());
        pings.lost += PINGS - received.with_context(|| format!("ping printed no count: {said}"))?;
        // rtt min/avg/max/mdev = 0.024/0.028/0.031/0.002 ms
        let shortest = said.rsplit_once(" = ").and_then(|(_, times)| times.split('/').next()?.parse::<f64>().ok());
        pings.shortest.push(1e3 * shortest.with_context(|| format!("ping printed no time: {said}"))?);
        Ok(())
    }
}

impl Server {
    fn start(variant: &PathVariant) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command.args(["-s", "--forceflush"]).stdout(Stdio::piped());
        let mut server = Self(variant.to.run(|| command.spawn().context("start iperf3 -s"))?);
        let said = server.0.stdout.take().context("iperf3 has no output")?;
        let mut lines = BufReader::new(said).lines();
        let listens = lines.any(|line| line.is_ok_and(|line| line.contains("listening")));
        ensure!(listens, "iperf3 -s ended before it listened");
        // Its output must be read, or it would block.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Pair {
    /// Machines `m1` and `m2` with a VXLAN device each that knows the other, and a pod behind each: `pod1` and `pod2`;
    /// the same again with connection tracking: `m3` and `m4`.
    fn make() -> Result<Self> {
        Self::remove()?;
        // Dropped, and so removed, also when a step fails.
        let pair = Self;
        underlay::create(PAIR, IpFamily::V4)?;
        for (host, peer) in [(1, 2), (2, 1), (3, 4), (4, 3)] {
            let machine = format!("m{host}");
            underlay::join(PAIR, &machine, underlay::FIRST_NODE + host, IpFamily::V4)?;
            let (own, far) = (underlay::ipv4(underlay::FIRST_NODE + host), underlay::ipv4(underlay::FIRST_NODE + peer));
            let pod = underlay::netns(PAIR, &format!("pod{host}"));
            run::output(Command::new("ip").args(["netns", "add", &pod]))?;
            let netns = underlay::netns(PAIR, &machine);
            underlay::batch(
                &netns,
                &format!(
                    "link add vxlan1 type vxlan id 1 local {own} remote {far} dev eth0 dstport 8472 nolearning\n\
                     link set vxlan1 mtu 1450 up\n\
                     addr add 10.250.0.{host}/24 dev vxlan1\n\
                     link add pod mtu 1450 type veth peer name eth0 mtu 1450 netns {pod}\n\
                     link set pod up\n\
                     addr add 10.250.{host}.1/24 dev pod\n\
                     route add 10.250.{peer}.0/24 via 10.250.0.{peer}\n"
                ),
            )?;
            underlay::batch(
                &pod,
                &format!(
                    "link set lo up\nlink set eth0 up\naddr add 10.250.{host}.2/24 dev eth0\nroute add default via 10.250.{host}.1\n"
                ),
            )?;
            let machine = Namespaces::of_netns(&netns)?;
            machine.run(|| run::output(Command::new("sysctl").args(["-qw", "net.ipv4.ip_forward=1"])).map(drop))?;
            if host > 2 {
                machine.run(|| run::output(Command::new("nft").arg(TRACKING)).map(drop))?;
            }
        }
        Ok(pair)
    }

    fn variant(&self, name: &'static str, [from, to]: [&str; 2], address: &str) -> Result<PathVariant> {
        let namespaces = |role: &str| Namespaces::of_netns(&underlay::netns(PAIR, role));
        Ok(PathVariant { name, from: namespaces(from)?, to: namespaces(to)?, address: address.to_owned() })
    }

    fn remove() -> Result<()> {
        underlay::present(PAIR)?.iter().try_for_each(|netns| underlay::remove(netns))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Err(error) = Self::remove() {
            eprintln!("the hand-made pair: {error:#}");
        }
    }
}
