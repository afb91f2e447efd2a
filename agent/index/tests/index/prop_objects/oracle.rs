//! The oracle: evaluates NetworkPolicy on the API objects, without the index and the intermediate representation. Invalid
//! parts match nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use towpath_core::{
    model::Protocol,
    policy::{eval::FlowTransport, ir::Direction},
};

use super::generate::Objects;

/// Whether the policies of a pod allow a packet from (ingress) or to (egress) the peer address.
pub(super) fn allows(
    objects: &Objects,
    direction: Direction,
    pod: &Value,
    peer: IpAddr,
    packet: FlowTransport,
) -> bool {
    let case = Case { objects, direction, pod, peer, packet };
    let mut isolating = objects.policies.iter().filter(|policy| case.isolates(policy)).peekable();
    isolating.peek().is_none() || isolating.any(|policy| case.policy_allows(policy))
}

/// Whether the pod has its own network namespace and has not finished.
pub(super) fn is_endpoint(pod: &Value) -> bool {
    let ended = ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase);
    !ended && pod["spec"]["hostNetwork"] != true
}

pub(super) fn addresses(pod: &Value) -> Vec<IpAddr> {
    items(&pod["status"]["podIPs"]).map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect()
}

struct Case<'a> {
    objects: &'a Objects,
    direction: Direction,
    pod: &'a Value,
    peer: IpAddr,
    packet: FlowTransport,
}

impl<'a> Case<'a> {
    fn isolates(&self, policy: &Value) -> bool {
        let spec = &policy["spec"];
        let is_of_type = |name: &str| items(&spec["policyTypes"]).any(|each| each == name);
        let is_unset = !is_of_type("Ingress") && !is_of_type("Egress");
        let has_direction = match self.direction {
            Direction::Ingress => is_unset || is_of_type("Ingress"),
            Direction::Egress => is_of_type("Egress") || (is_unset && items(&spec["egress"]).next().is_some()),
        };
        has_direction
            && policy["metadata"]["namespace"] == self.pod["metadata"]["namespace"]
            && requirements(&spec["podSelector"])
                .all(|part| holds(&part, &self.pod["metadata"]["labels"]) != Some(false))
    }

    /// Whether a rule of the policy allows the packet. A policy with an invalid pod selector allows nothing.
    fn policy_allows(&self, policy: &Value) -> bool {
        let spec = &policy["spec"];
        let is_valid = requirements(&spec["podSelector"]).all(|part| holds(&part, &Value::Null).is_some());
        let (rules, peers) = match self.direction {
            Direction::Ingress => (&spec["ingress"], "from"),
            Direction::Egress => (&spec["egress"], "to"),
        };
        is_valid && items(rules).any(|rule| self.rule_allows(policy, &rule[peers], &rule["ports"]))
    }

    fn rule_allows(&self, policy: &Value, peers: &Value, ports: &Value) -> bool {
        let here: Vec<&Value> = self.pods_at_peer().collect();
        if items(peers).next().is_none() {
            return self.ports_match(ports, &here);
        }
        items(peers).any(|peer| match peer.get("ipBlock") {
            Some(block) => {
                peer.as_object().unwrap().len() == 1 && contains(block, self.peer) && self.ports_match(ports, &here)
            }
            None => {
                let found = here.iter().copied().filter(|pod| self.selects(policy, peer, pod));
                let found: Vec<&Value> = found.collect();
                !found.is_empty() && self.ports_match(ports, &found)
            }
        })
    }

    fn pods_at_peer(&self) -> impl Iterator<Item = &'a Value> {
        let peer = self.peer;
        self.objects.pods.iter().filter(move |pod| is_endpoint(pod) && addresses(pod).contains(&peer))
    }

    fn selects(&self, policy: &Value, peer: &Value, pod: &Value) -> bool {
        let (namespace, own) = (&pod["metadata"]["namespace"], &policy["metadata"]["namespace"]);
        let namespace_matches = match peer.get("namespaceSelector") {
            None => peer.get("podSelector").is_some() && namespace == own,
            Some(selector) => {
                let mut known = self.objects.namespaces.iter();
                let known = known.find(|known| known["metadata"]["name"] == *namespace);
                known.is_some_and(|known| matches(selector, &known["metadata"]["labels"]))
            }
        };
        namespace_matches && matches(&peer["podSelector"], &pod["metadata"]["labels"])
    }

    /// Whether the ports match. A port name is looked up in the pods at the packet's destination.
    fn ports_match(&self, ports: &Value, peers: &[&Value]) -> bool {
        let destinations = match self.direction {
            Direction::Ingress => &[self.pod],
            Direction::Egress => peers,
        };
        items(ports).next().is_none() || items(ports).any(|port| self.port_matches(port, destinations))
    }

    fn port_matches(&self, port: &Value, destinations: &[&Value]) -> bool {
        let FlowTransport::Port(protocol, number) = self.packet else { return false };
        if protocol_of(port) != Some(protocol) {
            return false;
        }
        match (&port["port"], port["endPort"].as_u64()) {
            (Value::Null, None) => true,
            (Value::String(name), None) => destinations.iter().any(|pod| {
                let of = |field: &str| pod["spec"][field].as_array().cloned().unwrap_or_default();
                let containers = of("containers").into_iter().chain(of("initContainers"));
                let ports = containers.flat_map(|container| container["ports"].as_array().cloned().unwrap_or_default());
                ports.into_iter().any(|port| {
                    port["name"] == **name && port["containerPort"] == number && protocol_of(&port) == Some(protocol)
                })
            }),
            (Value::Number(first), last) => {
                let first = first.as_u64().unwrap();
                first > 0 && (first..=last.unwrap_or(first)).contains(&u64::from(number))
            }
            _ => false,
        }
    }
}

fn protocol_of(port: &Value) -> Option<Protocol> {
    match port["protocol"].as_str() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// The items of a list, or none if it is missing.
fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn matches(selector: &Value, labels: &Value) -> bool {
    requirements(selector).all(|part| holds(&part, labels) == Some(true))
}

/// The requirements of a selector: key, operator, values.
fn requirements(selector: &Value) -> impl Iterator<Item = (String, String, Vec<Value>)> {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let equal = labels.map(|(key, value)| (key.clone(), "In".to_owned(), vec![value.clone()]));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let listed = items(&selector["matchExpressions"]);
    let listed = listed.map(move |e| (text(&e["key"]), text(&e["operator"]), items(&e["values"]).cloned().collect()));
    equal.chain(listed)
}

/// Whether a requirement is met; `None` if it is invalid.
fn holds((key, operator, values): &(String, String, Vec<Value>), labels: &Value) -> Option<bool> {
    let label = labels.get(key);
    match (operator.as_str(), values.is_empty()) {
        ("In", false) => Some(label.is_some_and(|label| values.contains(label))),
        ("NotIn", false) => Some(label.is_none_or(|label| !values.contains(label))),
        ("Exists", true) => Some(label.is_some()),
        ("DoesNotExist", true) => Some(label.is_none()),
        _ => None,
    }
}

fn contains(block: &Value, address: IpAddr) -> bool {
    let net = |text: &Value| text.as_str().unwrap().parse::<IpNet>().ok();
    let except: Option<Vec<IpNet>> = items(&block["except"]).map(net).collect();
    let (Some(net), Some(except)) = (net(&block["cidr"]), except) else { return false };
    net.contains(&address) && !except.iter().any(|exception| exception.contains(&address))
}
