//! Two generations of policies in turn, under a flood of new connections.

use towpath_core::model::Family;

use crate::{
    flood::{Clock, flood},
    probe::{Fate, Probe},
    world::World,
};

const FLIPS: u64 = 200;

/// Odd generations allow `client`, even ones `opsweb`; all of them `far`, and none `lab`.
fn allows(name: &str, generation: u64) -> bool {
    match name {
        "far" => true,
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
          {{{all}, podSelector: {{matchLabels: {{app: far}}}}}}]}}]}}"
    )
}

/// Each generation's verdicts on connections that begin right after its commit has returned, in both families.
fn asked(generation: u64) -> Vec<(Probe, Fate)> {
    let names = ["client", "opsweb", "far", "lab"];
    let fate = |name| if allows(name, generation) { Fate::Passed } else { Fate::Dropped };
    let probe = |name| Family::ALL.map(|family| (Probe::new(family, name, "web", "tcp 8080"), fate(name)));
    names.into_iter().flat_map(probe).collect()
}

#[test]
fn a_flood_sees_the_old_or_the_new_and_never_the_old_behind_the_commit() {
    let (mut world, clock) = (World::new(), Clock::default());
    world.cluster.add_policy("shop", "p", &spec(0));
    world.apply();
    let flood = flood(&mut world, &["client", "opsweb", "far", "lab"], "far", &clock, |world| {
        for generation in 1..=FLIPS {
            let asked = asked(generation);
            let fates = world.probe_behind(&asked, |world| {
                world.cluster.add_policy("shop", "p", &spec(generation));
                clock.begins(generation);
                world.apply();
                clock.has_committed(generation);
            });
            for ((probe, expected), fate) in asked.into_iter().zip(fates) {
                assert_eq!(fate, expected, "generation {generation}: {probe}");
            }
        }
    });
    flood.has_all_of("far");
    for arrival in &flood.arrivals {
        let held = (arrival.sent..=arrival.came).any(|generation| allows(arrival.from, generation));
        assert!(held, "no generation that could hold lets it through: {arrival:?}");
    }
    for name in ["client", "opsweb"] {
        assert!(flood.arrived(name) > 0, "{name} gets through at times");
        assert!(flood.arrived(name) < flood.sent[name], "{name} does not get through at times");
    }
    println!("{FLIPS} flips; sent {:?}, {} came", flood.sent, flood.arrivals.len());
}
