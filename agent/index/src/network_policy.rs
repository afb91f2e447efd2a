//! Translates NetworkPolicy to `towpath_core::policy::ir`.
//!
//! A part that is invalid or unknown is rejected: it allows nothing, the rest of the policy stays in force, and the policy
//! isolates the pods it selects. The API server validates most of this, but objects can be older than its validation,
//! and a newer API server can accept fields and values that this agent does not know.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec},
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};
use towpath_core::{
    policy::ir::{
        Direction, IpBlock, NamespaceSelector, PodSelector, Policy, PolicyId, PolicyRule, RejectedPart, RuleAction,
        RulePeer, RulePeers, RulePort, RulePorts,
    },
    selector::Selector,
};

use crate::pod::protocol;

/// Namespace and name; `None` if the object lacks one of them.
pub(crate) fn id(policy: &NetworkPolicy) -> Option<PolicyId> {
    Some(PolicyId { namespace: policy.metadata.namespace.clone()?, name: policy.metadata.name.clone()? })
}

/// Translates the policy. Returns the rejected parts as well.
pub(crate) fn convert(id: &PolicyId, policy: NetworkPolicy) -> (Policy, Vec<RejectedPart>) {
    let mut reader = PolicyReader { id, rejected: Vec::new() };
    let policy = reader.policy(&policy.spec.unwrap_or_default());
    (policy, reader.rejected)
}

struct PolicyReader<'a> {
    id: &'a PolicyId,
    rejected: Vec<RejectedPart>,
}

impl PolicyReader<'_> {
    fn reject(&mut self, path: &str, reason: impl Into<String>) {
        self.rejected.push(RejectedPart { policy: self.id.clone(), path: path.to_owned(), reason: reason.into() });
    }

    fn policy(&mut self, spec: &NetworkPolicySpec) -> Policy {
        let directions = self.directions(spec);
        let (pods, subject) = match spec.pod_selector.as_ref().map(parse_selector) {
            None => (Selector::everything(), SubjectSelector::Exact),
            Some((selector, None)) => (selector, SubjectSelector::Exact),
            Some((selector, Some((field, reason)))) => {
                let path = format!("spec.podSelector.{field}");
                self.reject(
                &path,
                format!(
                "{reason}; until it is corrected, the policy isolates every pod that its other requirements select and allows nothing"
                ),
                );
                (selector, SubjectSelector::Wider)
            }
        };
        let mut rules = |direction| {
            let rules = self.rules(spec, direction);
            // The policy may select more pods than intended. Its rules would allow peers to these pods, so all are ignored.
            directions.contains(&direction).then_some(match subject {
                SubjectSelector::Exact => rules,
                SubjectSelector::Wider => Vec::new(),
            })
        };
        let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
        let namespaces = NamespaceSelector::Named(self.id.namespace.clone());
        // NetworkPolicies are additive, so they all have the same order.
        Policy { order: 0, subject: PodSelector { namespaces, pods }, ingress, egress }
    }

    fn directions(&mut self, spec: &NetworkPolicySpec) -> BTreeSet<Direction> {
        let mut directions = BTreeSet::new();
        for (n, name) in spec.policy_types.iter().flatten().enumerate() {
            match name.as_str() {
                "Ingress" => directions.insert(Direction::Ingress),
                "Egress" => directions.insert(Direction::Egress),
                other => {
                    self.reject(
                        &format!("spec.policyTypes[{n}]"),
                        format!("{other:?} is not a policy type and is ignored; use Ingress or Egress"),
                    );
                    false
                }
            };
        }
        if directions.is_empty() {
            directions.insert(Direction::Ingress);
            if spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()) {
                directions.insert(Direction::Egress);
            }
        }
        directions
    }

    fn rules(&mut self, spec: &NetworkPolicySpec, direction: Direction) -> Vec<PolicyRule> {
        match direction {
            Direction::Ingress => {
                let rules = spec.ingress.iter().flatten().enumerate();
                rules.map(|(n, r)| self.rule(&format!("spec.ingress[{n}]"), ("from", &r.from), &r.ports)).collect()
            }
            Direction::Egress => {
                let rules = spec.egress.iter().flatten().enumerate();
                rules.map(|(n, r)| self.rule(&format!("spec.egress[{n}]"), ("to", &r.to), &r.ports)).collect()
            }
        }
    }

    fn rule(
        &mut self,
        path: &str,
        (field, peers): (&str, &Option<Vec<NetworkPolicyPeer>>),
        ports: &Option<Vec<NetworkPolicyPort>>,
    ) -> PolicyRule {
        let peers = match peers.as_deref() {
            None | Some([]) => RulePeers::Any,
            Some(peers) => {
                let read = |(n, peer)| self.peer(&format!("{path}.{field}[{n}]"), peer);
                RulePeers::Of(peers.iter().enumerate().filter_map(read).collect())
            }
        };
        let ports = match ports.as_deref() {
            None | Some([]) => RulePorts::Any,
            Some(ports) => {
                let read = |(n, port)| self.port(&format!("{path}.ports[{n}]"), port);
                RulePorts::Of(ports.iter().enumerate().filter_map(read).collect())
            }
        };
        PolicyRule { action: RuleAction::Allow, peers, ports }
    }

    fn peer(&mut self, path: &str, peer: &NetworkPolicyPeer) -> Option<RulePeer> {
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => self.block(&format!("{path}.ipBlock"), block).map(RulePeer::IpBlock),
            (None, None, None) => {
                self.reject(
                    path,
                    "a peer requires an ipBlock, a namespaceSelector or a podSelector; this peer matches nothing",
                );
                None
            }
            (Some(_), _, _) => {
                self.reject(
                path,
                "ipBlock cannot be combined with selectors; this peer matches nothing: move the selectors to a peer of their own",
                );
                None
            }
            (None, namespaces, pods) => {
                let namespaces = match namespaces {
                    None => NamespaceSelector::Named(self.id.namespace.clone()),
                    Some(selector) => {
                        NamespaceSelector::Matching(self.selector(&format!("{path}.namespaceSelector"), selector)?)
                    }
                };
                let pods = match pods {
                    None => Selector::everything(),
                    Some(selector) => self.selector(&format!("{path}.podSelector"), selector)?,
                };
                Some(RulePeer::Pods(PodSelector { namespaces, pods }))
            }
        }
    }

    fn selector(&mut self, path: &str, selector: &LabelSelector) -> Option<Selector> {
        match parse_selector(selector) {
            (selector, None) => Some(selector),
            (_, Some((field, reason))) => {
                self.reject(&format!("{path}.{field}"), format!("{reason}; the peer matches nothing"));
                None
            }
        }
    }

    fn block(&mut self, path: &str, block: &IPBlock) -> Option<IpBlock> {
        let net = self.net(&format!("{path}.cidr"), &block.cidr)?;
        let mut except = BTreeSet::new();
        for (n, text) in block.except.iter().flatten().enumerate() {
            except.insert(self.net(&format!("{path}.except[{n}]"), text)?);
        }
        Some(IpBlock { net, except })
    }

    fn net(&mut self, path: &str, text: &str) -> Option<IpNet> {
        // Parsed in two parts: `IpNet` accepts leading zeros in an address, which other parsers read as octal.
        let parts = text.split_once('/').and_then(|(address, length)| {
            let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse().ok()?);
            IpNet::new(address, length).ok()
        });
        let net = parts.map(|net| net.trunc());
        if net.is_none() {
            self.reject(
                path,
                format!("{text:?} is not a CIDR such as 10.0.0.0/8 or fd00::/64; the peer matches nothing"),
            );
        }
        net
    }

    fn port(&mut self, path: &str, port: &NetworkPolicyPort) -> Option<RulePort> {
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            let name = port.protocol.as_deref().unwrap_or_default();
            self.reject(
                &format!("{path}.protocol"),
                format!("{name:?} is not one of TCP, UDP and SCTP; the port matches nothing"),
            );
            return None;
        };
        match (&port.port, port.end_port) {
            (None, None) => Some(RulePort::Numbers(protocol, 0, u16::MAX)),
            (Some(IntOrString::String(name)), None) if is_port_name(name) => {
                Some(RulePort::Named(protocol, name.clone()))
            }
            (Some(IntOrString::String(name)), None) => {
                self.reject(
                    &format!("{path}.port"),
                    format!("{name:?} is not a valid port name; the port matches nothing"),
                );
                None
            }
            (Some(IntOrString::Int(first)), end) => {
                let last = end.unwrap_or(*first);
                let numbers = port_number(*first).zip(port_number(last)).filter(|(first, last)| first <= last);
                if numbers.is_none() {
                    self.reject(
                        path,
                        format!(
                            "{first} to {last} is not a range of ports between 1 and 65535; the port matches nothing"
                        ),
                    );
                }
                numbers.map(|(first, last)| RulePort::Numbers(protocol, first, last))
            }
            (None | Some(IntOrString::String(_)), Some(_)) => {
                self.reject(&format!("{path}.endPort"), "endPort requires a numeric port; the port matches nothing");
                None
            }
        }
    }
}

/// The translation of a policy's own pod selector.
#[derive(Clone, Copy)]
enum SubjectSelector {
    /// It selects exactly the pods that the policy names.
    Exact,
    /// Rejected requirements are missing: it may select more pods.
    Wider,
}

/// Translates a label selector without its invalid requirements. Also returns the path and reason of the first invalid
/// requirement.
fn parse_selector(selector: &LabelSelector) -> (Selector, Option<(String, String)>) {
    let mut invalid = None;
    let mut parts = Vec::new();
    for (n, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        match self::requirement(requirement) {
            Ok(part) => parts.push(part),
            Err(reason) => invalid = invalid.or(Some((format!("matchExpressions[{n}]"), reason))),
        }
    }
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| Selector::equals(key, value));
    (Selector::all(labels.chain(parts)), invalid)
}

fn requirement(requirement: &LabelSelectorRequirement) -> Result<Selector, String> {
    let key = requirement.key.clone();
    let values: BTreeSet<String> = requirement.values.iter().flatten().cloned().collect();
    match (requirement.operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Selector::In(key, values)),
        ("NotIn", false) => Ok(Selector::NotIn(key, values)),
        ("Exists", true) => Ok(Selector::Exists(key)),
        ("DoesNotExist", true) => Ok(Selector::DoesNotExist(key)),
        ("In" | "NotIn", true) => Err(format!("operator {} on key {key:?} requires values", requirement.operator)),
        ("Exists" | "DoesNotExist", false) => {
            Err(format!("operator {} on key {key:?} takes no values", requirement.operator))
        }
        (other, _) => Err(format!("{other:?} is not one of the operators In, NotIn, Exists and DoesNotExist")),
    }
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|n| *n != 0)
}

/// Port names are service names (RFC 6335, section 5.1). Checked are the length of 1 to 15 and that there is a letter.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len()) && name.bytes().any(|b| b.is_ascii_alphabetic())
}
