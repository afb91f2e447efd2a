//! Policies hold while the agent is killed and restarted.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use towpath_e2e::api::Api;
use towpath_e2e::cluster::Cluster;
use towpath_e2e::node::Node;
use towpath_e2e::wait::wait_for;

use crate::agent::{kill_agent, no_address_leaked};
use crate::flood::Flood;
use crate::harness::{Harness, Scenario};
use crate::pods::{self, HTTP, OTHER_HTTP, Pod};
use crate::policy::policy;
use crate::status;
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "an agent is killed while policies change ten times a second: nothing that both versions deny passes",
        run: killed,
    },
    Scenario { name: "an agent that restarts with nothing changed writes nothing to the table", run: unchanged },
];

/// Time between two changes.
const PACE: Duration = Duration::from_millis(100);

/// A server on the first node, and on the second a friend and a stranger, which no policy allows.
struct PolicyPods {
    server: Pod,
    friend: Pod,
    stranger: Pod,
}

impl PolicyPods {
    fn start(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let wanted = [
            pods::pod("server", "server", "n1", &pods::server()),
            pods::pod("friend", "friend", "n2", &pods::client()),
            pods::pod("stranger", "stranger", "n2", &pods::client()),
        ];
        let made = pods::start(cluster, namespace, &wanted)?;
        let [server, friend, stranger] = made.try_into().map_err(|_| anyhow!("three pods"))?;
        Ok(Self { server, friend, stranger })
    }

    /// Waits until the friend reaches this port alone.
    fn expect_port(&self, state: &str, open: u16) -> Result<()> {
        let probe = |port| {
            let (want, why) =
                if port == open { (Answer::Open, "the last policy") } else { (Answer::Closed, "the one before") };
            Probe { from: &self.friend, to: self.server.at(port), by: Protocol::Tcp, want, why }
        };
        traffic::expect(state, &[probe(HTTP), probe(OTHER_HTTP)])
    }
}

/// Who may reach the server: a friend on one port.
fn friend_on(port: u16) -> Value {
    json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": port}]}],
    })
}

fn killed(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n1")?;
    let api = Api::open(&cluster)?;
    pods::with_namespace(&cluster, "restarts", |namespace| {
        let cast = PolicyPods::start(&cluster, namespace)?;
        let flood = Flood::start(&cast.stranger, &cast.server)?;
        flood.wait_open()?;
        pods::apply(&cluster, namespace, &[policy("flip", &friend_on(HTTP))])?;
        let passed = flood.wait_closed()?;
        let before = status::agent(&cluster, &node.name())?;
        let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/flip");
        let flip = |round: usize| {
            let port = if round.is_multiple_of(2) { OTHER_HTTP } else { HTTP };
            api.patch(&path, &json!({"spec": friend_on(port)}))
        };
        let flips = while_flipping(flip, |flips| {
            reached(flips, 10)?;
            kill_agent(&node)?;
            status::wait_new_agent(&cluster, &node.name(), &before)?;
            reached(flips, flips.load(Ordering::Relaxed) + 10)
        })?;
        cluster.progress().step(format!("  {flips} changes, {} datagrams", flood.sent()));
        ensure!(flood.arrived() == passed, "{} datagrams of a stranger arrived", flood.arrived() - passed);
        api.patch(&path, &json!({"spec": friend_on(OTHER_HTTP)}))?;
        cast.expect_port("the last of all policies", OTHER_HTTP)?;
        ensure!(flood.arrived() == passed, "{} datagrams of a stranger arrived", flood.arrived() - passed);
        // A counter that could not grow would prove nothing.
        cluster.kubectl(&["delete", "networkpolicy", "flip", "-n", namespace])?;
        flood.wait_open()
    })
}

/// Runs `act` while `flip` is called with ascending numbers. Returns how often it was.
fn while_flipping(
    flip: impl Fn(usize) -> Result<()> + Sync,
    act: impl FnOnce(&AtomicUsize) -> Result<()>,
) -> Result<usize> {
    let (stop, flips) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let flipper = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                flip(flips.load(Ordering::Relaxed))?;
                flips.fetch_add(1, Ordering::Relaxed);
                // The pace of the changes, not a wait for something.
                thread::sleep(PACE);
            }
            Ok(())
        });
        let outcome = act(&flips);
        stop.store(true, Ordering::Relaxed);
        flipper.join().map_err(|_| anyhow!("the flipper panicked"))??;
        outcome
    })?;
    Ok(flips.load(Ordering::Relaxed))
}

fn reached(flips: &AtomicUsize, count: usize) -> Result<()> {
    wait_for(&format!("{count} changes"), Duration::from_secs(30), || {
        Ok((flips.load(Ordering::Relaxed) >= count).then_some(()))
    })
}

fn unchanged(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let node = cluster.node("n1")?;
    pods::with_namespace(&cluster, "still", |namespace| {
        pods::apply(&cluster, namespace, &[policy("friends", &friend_on(HTTP))])?;
        let cast = PolicyPods::start(&cluster, namespace)?;
        let flood = Flood::start(&cast.stranger, &cast.server)?;
        cast.expect_port("a policy in force", HTTP)?;
        // Rules of earlier scenarios are removed.
        pods::settled(&cluster)?;
        for node in cluster.nodes() {
            no_address_leaked(&cluster, &node)?;
        }
        let (passed, before) = (flood.arrived(), status::agent(&cluster, &node.name())?);
        let monitor = Monitor::start(&node)?;
        kill_agent(&node)?;
        status::wait_new_agent(&cluster, &node.name(), &before)?;
        flood.go_on(1000)?;
        let written = monitor.lines();
        ensure!(written.is_empty(), "the new agent wrote: {}", written.join("; "));
        ensure!(flood.arrived() == passed, "{} datagrams of a stranger arrived", flood.arrived() - passed);
        // The monitor does see writes.
        pods::apply(&cluster, namespace, &[policy("friends", &friend_on(OTHER_HTTP))])?;
        wait_for("a write that is seen", Duration::from_secs(15), || Ok((!monitor.lines().is_empty()).then_some(())))
    })
}

/// Writes to a node's table, from `nft monitor`, which ends when this value is dropped.
struct Monitor {
    nft: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    fn start(node: &Node) -> Result<Self> {
        // Only the node's network namespace: with more, nft would not be a child that can be killed here.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", node.netns())).args(["nft", "monitor"]).stdout(Stdio::piped());
        let mut nft = command.spawn().context("start nft monitor")?;
        let said = BufReader::new(nft.stdout.take().context("nft has no output")?);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&lines);
        // It ends with nft.
        thread::spawn(move || {
            // Taking over the table is notified as an added table. It changes nothing in it.
            let ours = |line: &String| line.contains("inet towpath") && !line.starts_with("add table");
            for line in said.lines().map_while(Result::ok).filter(ours) {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { nft, lines })
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}
