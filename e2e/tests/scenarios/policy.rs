//! NetworkPolicies on real traffic: each scenario makes its own namespace and pods.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use towpath_e2e::cluster::Cluster;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, Scenario};
use crate::pods::{self, HTTP, OTHER_HTTP, Pod, SharedPods, UDP};
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "an isolated pod is open to the pods, namespaces and ports that a policy names", run: ingress },
    Scenario { name: "a pod with isolated egress reaches what a policy names, including cluster DNS", run: egress },
];

/// The server that policies select, and its clients.
struct PolicyPods {
    server: Pod,
    friend: Pod,
    stranger: Pod,
    /// In another namespace.
    visitor: Pod,
}

impl PolicyPods {
    fn try_all(&self, state: &str, open: &[(&str, u16)]) -> Result<()> {
        let mut probes = Vec::new();
        for from in [&self.friend, &self.stranger, &self.visitor] {
            for (by, port) in [(Protocol::Tcp, HTTP), (Protocol::Tcp, OTHER_HTTP), (Protocol::Udp, UDP)] {
                let named = open.contains(&(from.name.as_str(), port));
                let (want, why) =
                    if named { (Answer::Open, "it is let in") } else { (Answer::Closed, "nothing lets it in") };
                probes.push(Probe { from, to: self.server.at(port), by, want, why });
            }
        }
        traffic::expect(state, &probes)
    }
}

/// Everybody and every port.
const ALL: &[(&str, u16)] = &[
    ("friend", HTTP),
    ("friend", OTHER_HTTP),
    ("friend", UDP),
    ("stranger", HTTP),
    ("stranger", OTHER_HTTP),
    ("stranger", UDP),
    ("visitor", HTTP),
    ("visitor", OTHER_HTTP),
    ("visitor", UDP),
];

/// A NetworkPolicy.
pub(crate) fn policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

fn ingress(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    pods::with_namespace(&cluster, "walls", |walls| {
        pods::with_namespace(&cluster, "visitors", |visitors| {
            let cast = start_pods(&cluster, walls, visitors)?;
            cast.try_all("everything open without a policy", ALL)?;
            closed_then_opened(&cluster, walls, &cast)?;
            labels_decide(&cluster, walls, &cast)?;
            probes_pass(&cluster, walls)?;
            cluster.kubectl(&["delete", "networkpolicy", "--all", "-n", walls])?;
            cast.try_all("everything open again without policies", ALL)
        })
    })
}

fn start_pods(cluster: &Cluster, walls: &str, visitors: &str) -> Result<PolicyPods> {
    let visitor = pods::pod("visitor", "visitor", "n3", &pods::client());
    pods::apply(cluster, visitors, &[visitor])?;
    let wanted = [
        pods::pod("server", "server", "n1", &pods::server()),
        pods::pod("friend", "friend", "n2", &pods::client()),
        // On the server's own node, where nothing crosses the overlay.
        pods::pod("stranger", "stranger", "n1", &pods::client()),
    ];
    let mut made = pods::start(cluster, walls, &wanted)?;
    let (stranger, friend) = (made.pop().context("the stranger")?, made.pop().context("the friend")?);
    let server = made.pop().context("the server")?;
    let visitor = pods::ready(cluster, visitors, &["visitor"])?.pop().context("the visitor")?;
    Ok(PolicyPods { server, friend, stranger, visitor })
}

fn closed_then_opened(cluster: &Cluster, walls: &str, cast: &PolicyPods) -> Result<()> {
    pods::apply(cluster, walls, &[policy("closed", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}))])?;
    cast.try_all("everything closed by an empty policy", &[])?;
    let to_friends = json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"role": "friend"}}}],
            "ports": [{"protocol": "TCP", "port": HTTP}],
        }],
    });
    pods::apply(cluster, walls, &[policy("to-friends", &to_friends)])?;
    cast.try_all("one port open to the friend", &[("friend", HTTP)])?;
    let to_visitors = json!({
        "podSelector": {"matchLabels": {"role": "server"}},
        "ingress": [{
            "from": [{"namespaceSelector": {"matchLabels": {"scenario": "visitors"}}}],
            "ports": [{"protocol": "UDP", "port": UDP}],
        }],
    });
    pods::apply(cluster, walls, &[policy("to-visitors", &to_visitors)])?;
    cast.try_all("a port open to each", &[("friend", HTTP), ("visitor", UDP)])
}

fn labels_decide(cluster: &Cluster, walls: &str, cast: &PolicyPods) -> Result<()> {
    let label = |role: &str| cluster.kubectl(&["label", "pod", "stranger", "-n", walls, "--overwrite", role]);
    label("role=friend")?;
    cast.try_all("one port open to who is a friend now", &[("friend", HTTP), ("stranger", HTTP), ("visitor", UDP)])?;
    label("role=stranger")?;
    cast.try_all("the stranger shut out again", &[("friend", HTTP), ("visitor", UDP)])?;
    cluster.kubectl(&["label", "namespace", "visitors", "--overwrite", "scenario=gone"])?;
    cast.try_all("a namespace of another label shut out", &[("friend", HTTP)])?;
    cluster.kubectl(&["label", "namespace", "visitors", "--overwrite", "scenario=visitors"])?;
    cast.try_all("the namespace let in again", &[("friend", HTTP), ("visitor", UDP)])
}

/// No policy may deny the probes of the node's kubelet: a server that starts under the empty policy becomes Ready.
fn probes_pass(cluster: &Cluster, walls: &str) -> Result<()> {
    pods::start(cluster, walls, &[pods::pod("probed", "probed", "n2", &pods::server())]).map(drop)
}

fn egress(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let to_dns = json!({
        "podSelector": {"matchLabels": {"role": "closed"}},
        "policyTypes": ["Egress"],
        "egress": [{
            "to": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }],
            "ports": [{"protocol": "UDP", "port": 53}],
        }],
    });
    pods::with_namespace(&cluster, "egress", |namespace| {
        pods::apply(&cluster, namespace, &[policy("to-dns", &to_dns)])?;
        let wanted =
            [pods::pod("closed", "closed", "n2", &pods::client()), pods::pod("open", "open", "n2", &pods::client())];
        let made = pods::start(&cluster, namespace, &wanted)?;
        let far: Vec<&Pod> = shared.servers.iter().collect();
        let probes = |closed: Answer| -> Vec<Probe<'_>> {
            let one = |from, to, want, why| Probe { from, to, by: Protocol::Tcp, want, why };
            let each = |server: &&Pod| {
                let to = server.at(HTTP);
                [
                    one(&made[0], to, closed, "the policy selects it"),
                    one(&made[1], to, Answer::Open, "no policy selects it"),
                ]
            };
            far.iter().flat_map(each).collect()
        };
        traffic::expect("a pod that reaches no server", &probes(Answer::Closed))?;
        names_resolve(&cluster, &made[0])?;
        cluster.kubectl(&["delete", "networkpolicy", "to-dns", "-n", namespace])?;
        traffic::expect("a pod that reaches every server again", &probes(Answer::Open))
    })
}

fn names_resolve(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let mut last = String::new();
    let resolved = wait_for("a name that resolves through the policy", Duration::from_secs(30), || {
        let said = pod.exec(cluster, &["/bin/nslookup", "kubernetes.default.svc.cluster.local"])?;
        last = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        Ok((said.status.success() && last.contains("10.96.0.1")).then_some(()))
    });
    resolved.with_context(|| last)
}
