//! Policies and pods that start, end, change, or are in another namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use towpath_e2e::toolchain::AGNHOST_IMAGE;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, Scenario};
use crate::kernel;
use crate::pods::{self, HTTP, OTHER_HTTP, Pod, START, SharedPods};
use crate::policy::policy;
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a hundred pods start, and existing policies apply to the first packets of each",
        run: first_packets,
    },
    Scenario { name: "a named port in a policy resolves to each pod's own port", run: named_ports },
    Scenario {
        name: "a policy applies to its own namespace only, and host-network pods are neither isolated nor peers",
        run: other_namespaces,
    },
    Scenario { name: "a pod that has ended is no longer a peer", run: ended },
];

/// The first thing each pod does is what a policy denies, the second is what the policy allows. Late rules would let
/// the first pass; incomplete rules would drop the second.
fn first_packets(harness: &Harness) -> Result<()> {
    const WAVES: usize = 4;
    const PODS: usize = 25;
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let far = shared.far()?;
    let to_server = json!({
        "podSelector": {"matchLabels": {"role": "starter"}},
        "policyTypes": ["Egress"],
        "egress": [{
            "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "server"}}}],
            "ports": [{"protocol": "TCP", "port": HTTP}],
        }],
    });
    pods::with_namespace(&cluster, "starters", |namespace| {
        pods::apply(&cluster, namespace, &[policy("to-server", &to_server)])?;
        for wave in 0..WAVES {
            let starters: Vec<Value> = (0..PODS).map(|number| starter(wave * PODS + number, far.ip)).collect();
            pods::apply(&cluster, namespace, &starters)?;
            let phases = wait_for("every starter to end", START, || {
                let pods = cluster.list(&["pods", "-n", namespace])?;
                let mut phases: BTreeMap<String, usize> = BTreeMap::new();
                for pod in &pods {
                    *phases.entry(pod["status"]["phase"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
                }
                let ended = ["Succeeded", "Failed"].iter().filter_map(|phase| phases.get(*phase)).sum::<usize>();
                Ok((ended == (wave + 1) * PODS).then_some(phases))
            })?;
            let right = phases.get("Succeeded").copied().unwrap_or_default();
            ensure!(right == (wave + 1) * PODS, "a first packet was not handled as the policies say: {phases:?}");
        }
        Ok(())
    })
}

fn starter(number: usize, server: IpAddr) -> Value {
    let connect = |port: u16, seconds: u8| {
        format!("/agnhost connect {} --protocol=tcp --timeout={seconds}s", SocketAddr::new(server, port))
    };
    let act = format!("if {}; then exit 3; fi; {}", connect(OTHER_HTTP, 1), connect(HTTP, 3));
    let container = json!([{
        "name": "starter", "image": AGNHOST_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["/bin/sh", "-c", act],
    }]);
    let node = ["n1", "n2", "n3"][number % 3];
    let mut pod = pods::pod(&format!("starter-{number}"), "starter", node, &container);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod
}

/// Both servers listen on both ports; each pod defines what the name means.
fn named_ports(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let server = |name: &str, node: &str, port: u16| {
        let mut containers = pods::server();
        containers[0]["ports"] = json!([{"name": "web", "containerPort": port}]);
        pods::pod(name, "server", node, &containers)
    };
    let web = json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": "web"}]}],
    });
    pods::with_namespace(&cluster, "names", |namespace| {
        pods::apply(&cluster, namespace, &[policy("web", &web)])?;
        let wanted = [
            server("one", "n1", HTTP),
            server("other", "n2", OTHER_HTTP),
            pods::pod("client", "client", "n1", &pods::client()),
        ];
        let made = pods::start(&cluster, namespace, &wanted)?;
        let [one, other, client] = made.try_into().map_err(|_| anyhow!("three pods"))?;
        let probe = |to, want, why| Probe { from: &client, to, by: Protocol::Tcp, want, why };
        traffic::expect(
            "one name for two numbers",
            &[
                probe(one.at(HTTP), Answer::Open, "the first pod's number"),
                probe(one.at(OTHER_HTTP), Answer::Closed, "the other pod's number"),
                probe(other.at(OTHER_HTTP), Answer::Open, "the other pod's number"),
                probe(other.at(HTTP), Answer::Closed, "the first pod's number"),
            ],
        )
    })
}

/// Two namespaces with the same pods and labels, one of them with policies.
fn other_namespaces(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let people = [
        pods::pod("server", "server", "n1", &pods::server()),
        pods::pod("friend", "friend", "n2", &pods::client()),
        on_host("guest", "friend", "n3"),
    ];
    // It selects every pod, and allows friends.
    let friends = json!({
        "podSelector": {},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
    });
    pods::with_namespace(&cluster, "here", |here| {
        pods::with_namespace(&cluster, "there", |there| {
            pods::apply(&cluster, there, &people[..2])?;
            let made = pods::start(&cluster, here, &people)?;
            let [server, friend, guest] = made.try_into().map_err(|_| anyhow!("three pods"))?;
            let theirs = pods::ready(&cluster, there, &["server", "friend"])?;
            let [their_server, their_friend] = theirs.try_into().map_err(|_| anyhow!("two pods"))?;
            pods::apply(&cluster, here, &[policy("friends", &friends)])?;
            let tcp = |from, to: &Pod, port, want, why| Probe { from, to: to.at(port), by: Protocol::Tcp, want, why };
            traffic::expect(
                "a policy in one of two namespaces",
                &[
                    tcp(&friend, &server, HTTP, Answer::Open, "a friend of this namespace"),
                    tcp(&their_friend, &server, HTTP, Answer::Closed, "the same label in another namespace"),
                    tcp(&their_friend, &their_server, HTTP, Answer::Open, "no policy there"),
                    tcp(&friend, &their_server, HTTP, Answer::Open, "no policy there for others either"),
                    tcp(&guest, &server, HTTP, Answer::Closed, "the node's address, whatever the pod's labels"),
                    tcp(&their_friend, &guest, HOST_HTTP, Answer::Open, "the node's network is not the policy's"),
                ],
            )
        })
    })
}

/// Port of a server on a node's own network, free there.
const HOST_HTTP: u16 = 18_080;

fn on_host(name: &str, role: &str, node: &str) -> Value {
    let containers = json!([{
        "name": "server", "image": AGNHOST_IMAGE, "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", format!("--http-port={HOST_HTTP}"), "--udp-port=-1"],
    }]);
    let mut pod = pods::pod(name, role, node, &containers);
    pod["spec"]["hostNetwork"] = json!(true);
    pod
}

/// The object of a pod that has ended keeps its address, which the next pod on the node may get.
fn ended(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let from_jobs = json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "job"}}}]}],
    });
    pods::with_namespace(&cluster, "jobs", |namespace| {
        pods::apply(&cluster, namespace, &[policy("from-jobs", &from_jobs)])?;
        // It runs until the file is there.
        let mut job = pods::pod("job", "job", "n2", &pods::client());
        job["spec"]["containers"][0]["command"] =
            json!(["/bin/sh", "-c", "until [ -e /tmp/done ]; do sleep 0.2; done"]);
        job["spec"]["restartPolicy"] = json!("Never");
        let wanted = [pods::pod("server", "server", "n1", &pods::server()), job];
        let [server, job] = pods::start(&cluster, namespace, &wanted)?.try_into().map_err(|_| anyhow!("two pods"))?;
        let open = Probe { from: &job, to: server.at(HTTP), by: Protocol::Tcp, want: Answer::Open, why: "a job" };
        traffic::expect("a job that is let in", &[open])?;
        let (node, address) = (cluster.node("n1")?, job.ip.to_string());
        ensure!(kernel::table(&node)?.contains(&address), "the rules of {} do not name {address}", node.name());
        let done = job.exec(&cluster, &["/bin/sh", "-c", "touch /tmp/done"])?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        wait_for("rules without the ended pod", START, || {
            Ok((!kernel::table(&node)?.contains(&address)).then_some(()))
        })?;
        let object = cluster.get(&["pod", "job", "-n", namespace])?.context("the ended pod's object")?;
        ensure!(object["status"]["phase"] == "Succeeded", "the pod is {}", object["status"]["phase"]);
        Ok(())
    })
}
