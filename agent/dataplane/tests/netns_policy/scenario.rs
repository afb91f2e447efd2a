//! A scenario, and how it is tried.

use std::collections::BTreeSet;

use towpath_core::{
    model::{Family, Protocol},
    policy::eval::{self, FlowEndpoint, eval},
    ruleset::{self, Hook, Outcome},
};

use crate::{
    cluster::{OVERLAY, Party, Place},
    probe::{Carries, Fate, Probe},
    world::World,
};

/// Policies, and what they make of packets, in words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario<'a> {
    pub(crate) name: &'a str,
    /// The sentence that it proves.
    pub(crate) why: &'a str,
    /// Namespace and spec of each policy, in YAML, divided by semicolons: `shop {podSelector: {}}`.
    pub(crate) policies: &'a str,
    /// What gets through, divided by semicolons: `client,db > web tcp 8080|icmp` are four probes.
    pub(crate) pass: &'a str,
    /// What does not.
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

/// Runs scenarios one after the other on one node, and reports all failures.
pub(crate) fn prove<'a>(scenarios: impl IntoIterator<Item = Scenario<'a>>) {
    let mut world = World::new();
    let (mut names, mut probes, mut wrong) = (BTreeSet::new(), 0, Vec::new());
    for scenario in scenarios {
        assert!(names.insert(scenario.name.to_owned()), "two scenarios are called {:?}", scenario.name);
        let policies = parts(scenario.policies).enumerate().map(|(n, text)| {
            let (namespace, spec) = text.split_once(' ').unwrap();
            (namespace, format!("p{n}"), spec)
        });
        let policies: Vec<_> = policies.collect();
        policies.iter().for_each(|(namespace, name, spec)| world.cluster.add_policy(namespace, name, spec));
        world.apply();
        world.forget_connections();
        let asked = probes_of(&scenario, &Family::ALL);
        let failures = disagreements(&mut world, &asked);
        probes += asked.len();
        if !failures.is_empty() {
            wrong.push(format!("{}: {}\n{}", scenario.name, scenario.why, failures.join("\n")));
        }
        policies.iter().for_each(|(namespace, name, _)| world.cluster.remove_policy(namespace, name));
    }
    println!("{} scenarios, {probes} probes", names.len());
    assert!(wrong.is_empty(), "{} of {} scenarios:\n{}", wrong.len(), names.len(), wrong.join("\n"));
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(';').map(str::trim).filter(|part| !part.is_empty())
}

/// Tries what should pass now and what should not.
pub(crate) fn check(world: &mut World, why: &str, pass: &str, drop: &str) {
    check_in(world, &scenario("now", why, "", pass, drop), &Family::ALL);
}

/// Tries a scenario whose policies are in force already, in these families.
pub(crate) fn check_in(world: &mut World, scenario: &Scenario<'_>, families: &[Family]) {
    let failures = disagreements(world, &probes_of(scenario, families));
    assert!(failures.is_empty(), "{}:\n{}", scenario.why, failures.join("\n"));
}

/// The probes of a scenario, each with what is expected of it.
pub(crate) fn probes_of(scenario: &Scenario<'_>, families: &[Family]) -> Vec<(Probe, Fate)> {
    let mut probes = Vec::new();
    for (texts, fate) in [(scenario.pass, Fate::Passed), (scenario.drop, Fate::Dropped)] {
        for text in parts(texts) {
            let (from, rest) = text.split_once(" > ").unwrap_or_else(|| panic!("{text}: from > to what"));
            let (to, carries) = rest.split_once(' ').unwrap_or_else(|| panic!("{text}: from > to what"));
            let pairs = from.split(',').flat_map(|from| to.split(',').map(move |to| (from, to)));
            for (from, to) in pairs {
                probes.extend(carries.split('|').flat_map(|carries| {
                    families.iter().map(move |family| (Probe::new(*family, from, to, carries), fate))
                }));
            }
        }
    }
    assert!(!probes.is_empty(), "{:?} asks nothing", scenario.name);
    probes
}

/// The probes on which not all agree.
fn disagreements(world: &mut World, probes: &[(Probe, Fate)]) -> Vec<String> {
    let mut failures = Vec::new();
    let fates = world.probe(probes);
    for ((probe, expected), fate) in probes.iter().zip(fates) {
        let (evaluated, interpreted) = (evaluate(world, probe), interpret(world, probe));
        if fate != *expected || evaluated.is_some_and(|fate| fate != *expected) || interpreted != *expected {
            let evaluated = evaluated.map_or_else(|| "is not asked".to_owned(), |fate| fate.to_string());
            failures.push(format!(
                "  {probe}: should have {expected}; kernel: {fate}; evaluator: {evaluated}; table: {interpreted}"
            ));
        }
    }
    failures
}

const fn fate(passes: bool) -> Fate {
    if passes { Fate::Passed } else { Fate::Dropped }
}

/// What the evaluator says. It knows policies, and not interfaces, guards and the node's own rights.
fn evaluate(world: &World, probe: &Probe) -> Option<Fate> {
    let guarded = probe.from.name == "forger" || probe.carries == Carries::Port(Protocol::Udp, OVERLAY);
    let is_known =
        |party: &Party| party.pod().is_none() || world.cluster.index.endpoints().contains_key(&party.interface());
    let guarded = guarded || !is_known(probe.from) || !is_known(probe.to);
    if probe.from.place == Place::Node || probe.stays_inside() || guarded {
        return None;
    }
    let probe = probe.backend();
    let end = |party: &'static Party| FlowEndpoint { address: party.address(probe.family), pod: party.pod() };
    let transport = match probe.carries {
        Carries::Port(protocol, port) => eval::FlowTransport::Port(protocol, port),
        Carries::Echo | Carries::Plain => eval::FlowTransport::Other(probe.carries.number(probe.family)),
    };
    let packet = eval::Flow { from: end(probe.from), to: end(probe.to), transport };
    Some(fate(eval(&world.cluster.snapshot(), &packet).allows()))
}

/// What the table says, hook by hook.
fn interpret(world: &World, probe: &Probe) -> Fate {
    if probe.stays_inside() {
        return Fate::Passed;
    }
    let backend = probe.backend();
    let hooks: &[Hook] = match (backend.from.place, backend.to.place) {
        (Place::Node, _) => &[Hook::Output, Hook::Postrouting],
        (_, Place::Node) => &[Hook::Prerouting, Hook::Input],
        _ => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
    };
    let passes = |hook: &Hook| {
        // A Service's address is translated behind the first hook's chains.
        let destination = if *hook == Hook::Prerouting { probe.to } else { backend.to };
        let has_input = !matches!(hook, Hook::Output | Hook::Postrouting) || backend.from.place != Place::Node;
        let packet = ruleset::Packet {
            in_interface: has_input.then(|| backend.from.interface()),
            out_interface: (!matches!(hook, Hook::Prerouting | Hook::Input)).then(|| backend.to.interface()),
            source: backend.from.address(probe.family),
            destination: destination.address(probe.family),
            transport: match backend.carries {
                Carries::Port(protocol, destination) => {
                    ruleset::Transport::Ports { protocol: protocol.number(), destination }
                }
                Carries::Echo | Carries::Plain => ruleset::Transport::Other(probe.carries.number(probe.family)),
            },
            state: None,
            mark: 0,
        };
        world.rules.interpret(*hook, &packet).unwrap() != Outcome::Dropped
    };
    fate(hooks.iter().all(passes))
}
