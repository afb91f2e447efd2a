//! For random objects and packets, index plus evaluator and index plus compiled table give the verdict of the oracle,
//! which reads the API objects directly.
//!
//! `PROPTEST_CASES=100000` runs more clusters. A failing run prints its seed; `PROPTEST_RNG_SEED=<seed>` repeats it.

mod generate;
mod oracle;

use std::{cell::Cell, collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use serde_json::Value;
use towpath_core::{
    model::{Endpoint, Family, PodId, Protocol},
    names::IfName,
    policy::{
        eval::{Flow, FlowEndpoint, FlowTransport, eval},
        ir::Direction,
    },
};

use self::generate::{OTHERS, Objects, PORTS, objects};
use crate::{
    compiled::{compiled, forwards},
    objects::{object, synced},
};

/// The source or destination of a packet: a pod of this node, or an address behind the uplink.
struct End<'a> {
    endpoint: FlowEndpoint,
    pod: Option<&'a Value>,
    interface: IfName,
}

fn id(pod: &Value) -> PodId {
    let text = |field| pod["metadata"][field].as_str().unwrap().to_owned();
    PodId { namespace: text("namespace"), name: text("name") }
}

/// The pods with an endpoint on this node. No two of them have the same address.
fn local(objects: &Objects) -> Vec<&Value> {
    let mut used = BTreeSet::new();
    let mut is_free = |pod: &Value| oracle::addresses(pod).into_iter().all(|address| used.insert(address));
    let here = |pod: &&Value| pod["spec"]["nodeName"] == "me" && oracle::is_endpoint(pod);
    objects.pods.iter().filter(here).filter(|pod| is_free(pod)).collect()
}

fn endpoints(pods: &[&Value]) -> OrdMap<IfName, Arc<Endpoint>> {
    let endpoint = |pod: &&Value| {
        let addresses = oracle::addresses(pod);
        let pod = id(pod);
        let interface = IfName::of_pod(&pod.namespace, &pod.name);
        (interface.clone(), Arc::new(Endpoint { pod, interface, addresses }))
    };
    pods.iter().map(endpoint).collect()
}

fn ends<'a>(objects: &'a Objects, local: &[&'a Value], family: Family) -> Vec<End<'a>> {
    let mut ends = Vec::new();
    for pod in local {
        let interface = IfName::of_pod(&id(pod).namespace, &id(pod).name);
        ends.extend(oracle::addresses(pod).into_iter().map(|address| End {
            endpoint: FlowEndpoint { address, pod: Some(id(pod)) },
            pod: Some(pod),
            interface: interface.clone(),
        }));
    }
    let known: BTreeSet<IpAddr> = ends.iter().map(|end| end.endpoint.address).collect();
    let remote = OTHERS.iter().map(|other| other.parse().unwrap());
    let remote: BTreeSet<IpAddr> = remote.chain(objects.pods.iter().flat_map(oracle::addresses)).collect();
    ends.extend(remote.difference(&known).map(|address| End {
        endpoint: FlowEndpoint { address: *address, pod: None },
        pod: None,
        interface: IfName::new("eth0").unwrap(),
    }));
    ends.retain(|end| Family::of(end.endpoint.address) == family);
    ends
}

fn transports() -> Vec<FlowTransport> {
    let mut transports = vec![FlowTransport::Other(1)];
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        transports.extend(PORTS.map(|port| FlowTransport::Port(protocol, port)));
    }
    transports
}

/// Checks all packets. Returns how many are allowed and how many are denied.
fn check(objects: &Objects) -> Result<[usize; 2], TestCaseError> {
    let all = objects.namespaces.iter().chain(&objects.pods).chain(&objects.policies);
    let index = synced(all.cloned().map(object));
    let snapshot = index.snapshot().unwrap();
    let local = local(objects);
    let rules = compiled(snapshot, &endpoints(&local));
    let mut counts = [0, 0];
    for family in Family::ALL {
        let ends = ends(objects, &local, family);
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
        for (from, to) in pairs.filter(|(from, to)| from.pod.is_some() || to.pod.is_some()) {
            for transport in transports() {
                let allows = |direction, end: &End<'_>, other: &End<'_>| {
                    end.pod.is_none_or(|pod| oracle::allows(objects, direction, pod, other.endpoint.address, transport))
                };
                let expected = allows(Direction::Egress, from, to) && allows(Direction::Ingress, to, from);
                let packet = Flow { from: from.endpoint.clone(), to: to.endpoint.clone(), transport };
                let verdict = eval(snapshot, &packet);
                prop_assert_eq!(verdict.allows(), expected, "{:?}: evaluator says {:?}", packet, verdict);
                prop_assert_eq!(
                    forwards(&rules, [&from.interface, &to.interface], &packet),
                    expected,
                    "{:?}, compiled",
                    packet
                );
                counts[usize::from(!expected)] += 1;
            }
        }
    }
    Ok(counts)
}

#[test]
fn the_verdicts_match_the_oracle_for_objects_of_every_form() {
    let mut config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    if let Some(cases) = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()) {
        config.cases = cases;
    }
    if matches!(config.rng_seed, RngSeed::Random) {
        use std::hash::{BuildHasher, RandomState};
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(()));
    }
    println!("clusters: {}, seed: {:?}", config.cases, config.rng_seed);
    let (passed, dropped) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::new(config).run(&objects(), |objects| {
        let [pass, drop] = check(&objects)?;
        passed.set(passed.get() + pass);
        dropped.set(dropped.get() + drop);
        Ok(())
    });
    println!("packets allowed: {}, denied: {}", passed.get(), dropped.get());
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    assert!(passed.get() >= 10_000 && dropped.get() >= 10_000, "too few packets of one kind for a meaningful result");
}
