//! New TCP connections per second to pods that differ in how many policies select them.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};
use serde_json::{Value, json};
use towpath_e2e::node::Node;

use crate::background::{self, Background, Part};
use crate::metrics;
use crate::namespaces::Namespaces;
use crate::process;
use crate::report::Table;
use crate::sample::{Sample, ratios};
use crate::setup::{NAMESPACE, pod, start};

const PORT: u16 = 9100;
/// Client and servers share a node: the rules are the largest part of a connection's cost then.
const NODE: &str = "n2";
const ROUNDS: usize = 150;
/// Length of one round of one variant: many short ones, because disturbances of the machine come and go.
const ROUND: Duration = Duration::from_millis(100);
const POLICY_PATH: &str = "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies";
/// Rules of the variant without lookups.
const RULES: usize = 10_000;

/// The servers, by name, with the number of policies that select each, and what the variant is called.
const VARIANTS: [(&str, usize, &str); 4] = [
    ("none", 0, "no policy"),
    ("thousand", 1000, "1,000 policies"),
    ("myriad", 10_000, "10,000 policies"),
    ("linear", 0, "no policy, and 10,000 linear rules"),
];

/// Opens connections to each server in turn.
pub(crate) fn measure(background: &mut Background<'_>) -> Result<Table> {
    background.bring(Part::Pods)?;
    let node = background.cluster.node(NODE)?;
    let pods: Vec<Value> = VARIANTS.iter().map(|(name, ..)| pod(name, NODE)).chain([pod("caller", NODE)]).collect();
    let addresses = start(background.cluster, &pods)?;
    for (name, count, _) in VARIANTS {
        select(background, &node, name, count)?;
    }
    let linear = addresses.get(3).context("the address of the last server")?;
    load_rules(&node, linear)?;
    process::agent(background.cluster.name(), NODE)?.wait_quiet()?;
    let caller = Namespaces::of_pod(background.cluster, NAMESPACE, "caller")?;
    let stop = AtomicBool::new(false);
    let rates = thread::scope(|scope| {
        let outcome = (|| {
            for (name, ..) in VARIANTS {
                let listener = Namespaces::of_pod(background.cluster, NAMESPACE, name)?.run(open)?;
                let stop = &stop;
                scope.spawn(move || serve(&listener, stop));
            }
            let mut rates: Vec<Vec<f64>> = vec![Vec::new(); VARIANTS.len()];
            for _ in 0..ROUNDS {
                for (address, rates) in addresses.iter().zip(&mut rates) {
                    rates.push(caller.run(|| call(address))?);
                }
            }
            Ok::<_, anyhow::Error>(rates)
        })();
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    node.exec(&["nft", "delete", "table", "inet", "linear"])?;
    let header =
        ["server's pod", "connections/s (min–max)", "ratio to no policy", "ratio of the 90th percentiles", "aim"];
    let mut table = Table::new("New TCP connections, one client, both pods on one node", &header);
    let sample = |measured: &[f64]| Sample::new(measured.iter().copied()).context("no rounds");
    let best = sample(&rates[0])?.percentile(90);
    for ((_, count, what), measured) in VARIANTS.iter().zip(&rates) {
        let rate = sample(measured)?;
        let ratio = ratios(measured, &rates[0]).context("no rounds")?.median();
        let aim = if *count > 0 { "≥ 0.95" } else { "" };
        let tenths = format!("{:.3}", rate.percentile(90) / best);
        table.row([(*what).into(), rate.spread(0), format!("{ratio:.3}"), tenths, aim.into()]);
    }
    table.note(format!("{ROUNDS} rounds of {} ms per variant, in turn. All policies are there all the time; each server is selected by its own.", ROUND.as_millis()));
    table.note("The 90th percentile is the rate that a tenth of the rounds reached: disturbances by other programs are smallest there.");
    table.note("Canal on such a node: 0.66 at 1,000 policies.");
    Ok(table)
}

/// Makes a server's policies: one lets the caller in, the others each let a pod of the background in on a port.
fn select(background: &Background<'_>, node: &Node, name: &str, count: usize) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let before = metrics::value(node, "towpath_agent_policies")?;
    let select = json!({"app": name});
    let mut policies: Vec<Value> = (1..count)
        .map(|index| {
            let mut policy = background::policy(&format!("{name}-{index}"), &select, index);
            policy["spec"]["ingress"][0]["from"][0]["podSelector"] =
                json!({"matchLabels": {"number": format!("n-{index}")}});
            policy
        })
        .collect();
    let mut caller = background::policy(&format!("{name}-caller"), &select, 0);
    caller["spec"]["ingress"] =
        json!([{"from": [{"podSelector": {"matchLabels": {"app": "caller"}}}], "ports": [{"port": PORT}]}]);
    policies.push(caller);
    background.api.create_all(POLICY_PATH, &policies)?;
    background::reached(node, "towpath_agent_policies", before + f64::from(u32::try_from(count)?))
}

/// Loads rules that a new connection to this address passes one by one, as in a product without lookups.
fn load_rules(node: &Node, address: &str) -> Result<()> {
    let mut text = format!(
        "table inet linear {{\n chain forward {{\n  type filter hook forward priority -10;\n  ct state established,related accept\n  ip daddr != {address} accept\n"
    );
    for index in 0..RULES {
        text += &format!("  ip saddr 198.18.{}.{} tcp dport {} accept\n", index / 250, index % 250, 10_000 + index);
    }
    text += " }\n}\n";
    let mut nft = node.command(&["nft", "-f", "-"])?.stdin(Stdio::piped()).spawn().context("start nft")?;
    nft.stdin.take().context("nft has an input")?.write_all(text.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft rejected the linear rules");
    Ok(())
}

fn open() -> Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listen in the server's pod")?;
    // As many as the kernel lets wait: a full queue would cost a client a second.
    listen(&listener, Backlog::MAXCONN)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if listener.accept().is_err() {
            // Nobody is there: the pace of looking, not a wait for something.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Opens connections for a round, each ended at once. Returns how many there were in a second.
fn call(address: &str) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < ROUND {
        let stream = TcpStream::connect((address, PORT)).with_context(|| format!("connect to {address}"))?;
        // Ended by a reset, so that its port is free at once.
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}
