//! Alternates two generations of a policy under a flood of new connections.

use towpath_core::model::Family;

use crate::{
    flood::{Clock, flood},
    probe::{Probe, ProbeOutcome},
    testbed::Testbed,
};

const UPDATES: u64 = 200;

/// Odd generations allow `client`, even ones `opsweb`; all of them `remote`, and none `lab`.
fn allows(name: &str, generation: u64) -> bool {
    match name {
        "remote" => true,
        "client" => generation % 2 == 1,
        "opsweb" => generation.is_multiple_of(2),
        _ => false,
    }
}

fn spec(generation: u64) -> String {
    let app = if generation.is_multiple_of(2) { "web" } else { "client" };
    let all = "namespaceSelector: {matchLabels: {team: red}}";
    format!(
        "{{podSelector: {{}}, ingress: [{{from: [{{{all}, podSelector: {{matchLabels: {{app: {app}}}}}}},
          {{{all}, podSelector: {{matchLabels: {{app: remote}}}}}}]}}]}}"
    )
}

/// The expected outcomes of connections that start right after the commit of a generation, in both families.
fn probes(generation: u64) -> Vec<(Probe, ProbeOutcome)> {
    let names = ["client", "opsweb", "remote", "lab"];
    let outcome = |name| if allows(name, generation) { ProbeOutcome::Passed } else { ProbeOutcome::Dropped };
    let probe = |name| Family::ALL.map(|family| (Probe::new(family, name, "web", "tcp 8080"), outcome(name)));
    names.into_iter().flat_map(probe).collect()
}

#[test]
fn every_packet_meets_one_generation_and_after_the_commit_the_new_one() {
    let (mut testbed, clock) = (Testbed::new(), Clock::default());
    testbed.cluster.add_policy("shop", "p", &spec(0));
    testbed.apply();
    let flood = flood(&mut testbed, &["client", "opsweb", "remote", "lab"], "remote", &clock, |testbed| {
        for generation in 1..=UPDATES {
            let probes = probes(generation);
            let outcomes = testbed.probe_after(&probes, |testbed| {
                testbed.cluster.add_policy("shop", "p", &spec(generation));
                clock.start(generation);
                testbed.apply();
                clock.commit(generation);
            });
            for ((probe, expected), outcome) in probes.into_iter().zip(outcomes) {
                assert_eq!(outcome, expected, "generation {generation}: {probe}");
            }
        }
    });
    flood.assert_all_received("remote");
    for arrival in &flood.arrivals {
        let allowed = (arrival.sent_in..=arrival.received_in).any(|generation| allows(arrival.from, generation));
        assert!(allowed, "no generation that can be in force allows it: {arrival:?}");
    }
    for name in ["client", "opsweb"] {
        assert!(flood.received_from(name) > 0, "{name} is allowed in some generations");
        assert!(flood.received_from(name) < flood.sent[name], "{name} is denied in some generations");
    }
    println!("{UPDATES} updates; sent {:?}, {} received", flood.sent, flood.arrivals.len());
}
