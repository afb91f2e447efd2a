//! Scenarios: policies and the packets that they allow or deny.

use std::collections::BTreeSet;

use towpath_core::{
    model::{Family, Protocol},
    policy::eval::{self, FlowEndpoint, eval},
    ruleset::{self, Hook, Outcome},
};

use crate::{
    cluster::{Location, OVERLAY, TestEndpoint},
    probe::{Probe, ProbeOutcome, ProbeTransport},
    testbed::Testbed,
};

/// Policies and the expected outcome of packets, as text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario<'a> {
    pub(crate) name: &'a str,
    /// The statement of the API that it tests.
    pub(crate) why: &'a str,
    /// Namespace and spec of each policy, in YAML, separated by semicolons: `shop {podSelector: {}}`.
    pub(crate) policies: &'a str,
    /// The packets that pass, separated by semicolons: `client,db > web tcp 8080|icmp` are four probes.
    pub(crate) pass: &'a str,
    /// The packets that are dropped.
    pub(crate) drop: &'a str,
}

pub(crate) const fn scenario<'a>(
    name: &'a str,
    why: &'a str,
    policies: &'a str,
    pass: &'a str,
    drop: &'a str,
) -> Scenario<'a> {
    Scenario { name, why, policies, pass, drop }
}

/// Runs scenarios one after the other on one node and reports all failures.
pub(crate) fn run_scenarios<'a>(scenarios: impl IntoIterator<Item = Scenario<'a>>) {
    let mut testbed = Testbed::new();
    let (mut names, mut probes, mut failed) = (BTreeSet::new(), 0, Vec::new());
    for scenario in scenarios {
        assert!(names.insert(scenario.name.to_owned()), "two scenarios are called {:?}", scenario.name);
        let policies = parts(scenario.policies).enumerate().map(|(n, text)| {
            let (namespace, spec) = text.split_once(' ').unwrap();
            (namespace, format!("p{n}"), spec)
        });
        let policies: Vec<_> = policies.collect();
        policies.iter().for_each(|(namespace, name, spec)| testbed.cluster.add_policy(namespace, name, spec));
        testbed.apply();
        testbed.flush_conntrack();
        let sent = probes_of(&scenario, &Family::ALL);
        let failures = mismatches(&mut testbed, &sent);
        probes += sent.len();
        if !failures.is_empty() {
            failed.push(format!("{}: {}\n{}", scenario.name, scenario.why, failures.join("\n")));
        }
        policies.iter().for_each(|(namespace, name, _)| testbed.cluster.remove_policy(namespace, name));
    }
    println!("{} scenarios, {probes} probes", names.len());
    assert!(failed.is_empty(), "{} of {} scenarios failed:\n{}", failed.len(), names.len(), failed.join("\n"));
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(';').map(str::trim).filter(|part| !part.is_empty())
}

/// Checks which packets pass and which are dropped with the policies in force.
pub(crate) fn check(testbed: &mut Testbed, why: &str, pass: &str, drop: &str) {
    check_in(testbed, &scenario("now", why, "", pass, drop), &Family::ALL);
}

/// Checks a scenario whose policies are in force already, in these families.
pub(crate) fn check_in(testbed: &mut Testbed, scenario: &Scenario<'_>, families: &[Family]) {
    let failures = mismatches(testbed, &probes_of(scenario, families));
    assert!(failures.is_empty(), "{}:\n{}", scenario.why, failures.join("\n"));
}

/// The probes of a scenario, each with its expected outcome.
pub(crate) fn probes_of(scenario: &Scenario<'_>, families: &[Family]) -> Vec<(Probe, ProbeOutcome)> {
    let mut probes = Vec::new();
    for (texts, outcome) in [(scenario.pass, ProbeOutcome::Passed), (scenario.drop, ProbeOutcome::Dropped)] {
        for text in parts(texts) {
            let (from, rest) = text.split_once(" > ").unwrap_or_else(|| panic!("{text}: from > to what"));
            let (to, transport) = rest.split_once(' ').unwrap_or_else(|| panic!("{text}: from > to what"));
            let pairs = from.split(',').flat_map(|from| to.split(',').map(move |to| (from, to)));
            for (from, to) in pairs {
                probes.extend(transport.split('|').flat_map(|transport| {
                    families.iter().map(move |family| (Probe::new(*family, from, to, transport), outcome))
                }));
            }
        }
    }
    assert!(!probes.is_empty(), "scenario {:?} has no probe", scenario.name);
    probes
}

/// The probes whose outcome is not the expected one, in the kernel, the evaluator or the interpreter.
fn mismatches(testbed: &mut Testbed, probes: &[(Probe, ProbeOutcome)]) -> Vec<String> {
    let mut failures = Vec::new();
    let outcomes = testbed.probe(probes);
    for ((probe, expected), outcome) in probes.iter().zip(outcomes) {
        let (evaluated, interpreted) = (evaluate(testbed, probe), interpret(testbed, probe));
        if outcome != *expected || evaluated.is_some_and(|outcome| outcome != *expected) || interpreted != *expected {
            let evaluated = evaluated.map_or_else(|| "not applicable".to_owned(), |outcome| outcome.to_string());
            failures.push(format!(
                "  {probe}: expected {expected}; kernel: {outcome}; evaluator: {evaluated}; table: {interpreted}"
            ));
        }
    }
    failures
}

const fn outcome(passes: bool) -> ProbeOutcome {
    if passes { ProbeOutcome::Passed } else { ProbeOutcome::Dropped }
}

/// The outcome by the evaluator. It evaluates policies only: none for probes that anti-spoofing, the overlay port, an
/// unknown pod or traffic of the node decides.
fn evaluate(testbed: &Testbed, probe: &Probe) -> Option<ProbeOutcome> {
    let decided_elsewhere =
        probe.from.name == "spoofer" || probe.transport == ProbeTransport::Port(Protocol::Udp, OVERLAY);
    let is_known = |endpoint: &TestEndpoint| {
        endpoint.pod().is_none() || testbed.cluster.index.endpoints().contains_key(&endpoint.interface())
    };
    let decided_elsewhere = decided_elsewhere || !is_known(probe.from) || !is_known(probe.to);
    if probe.from.location == Location::Node || probe.stays_inside() || decided_elsewhere {
        return None;
    }
    let probe = probe.backend();
    let end =
        |endpoint: &'static TestEndpoint| FlowEndpoint { address: endpoint.address(probe.family), pod: endpoint.pod() };
    let transport = match probe.transport {
        ProbeTransport::Port(protocol, port) => eval::FlowTransport::Port(protocol, port),
        ProbeTransport::Echo | ProbeTransport::Plain => {
            eval::FlowTransport::Other(probe.transport.number(probe.family))
        }
    };
    let packet = eval::Flow { from: end(probe.from), to: end(probe.to), transport };
    Some(outcome(eval(&testbed.cluster.snapshot(), &packet).allows()))
}

/// The outcome by the interpreter of the table, hook by hook.
fn interpret(testbed: &Testbed, probe: &Probe) -> ProbeOutcome {
    if probe.stays_inside() {
        return ProbeOutcome::Passed;
    }
    let backend = probe.backend();
    let hooks: &[Hook] = match (backend.from.location, backend.to.location) {
        (Location::Node, _) => &[Hook::Output, Hook::Postrouting],
        (_, Location::Node) => &[Hook::Prerouting, Hook::Input],
        _ => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
    };
    let passes = |hook: &Hook| {
        // DNAT of a Service's address follows the chains of the prerouting hook.
        let destination = if *hook == Hook::Prerouting { probe.to } else { backend.to };
        let has_input = !matches!(hook, Hook::Output | Hook::Postrouting) || backend.from.location != Location::Node;
        let packet = ruleset::Packet {
            in_interface: has_input.then(|| backend.from.interface()),
            out_interface: (!matches!(hook, Hook::Prerouting | Hook::Input)).then(|| backend.to.interface()),
            source: backend.from.address(probe.family),
            destination: destination.address(probe.family),
            transport: match backend.transport {
                ProbeTransport::Port(protocol, destination) => {
                    ruleset::Transport::Ports { protocol: protocol.number(), destination }
                }
                ProbeTransport::Echo | ProbeTransport::Plain => {
                    ruleset::Transport::Other(probe.transport.number(probe.family))
                }
            },
            state: None,
            mark: 0,
        };
        testbed.rules.interpret(*hook, &packet).unwrap() != Outcome::Dropped
    };
    outcome(hooks.iter().all(passes))
}
