//! Properties over random histories: incremental compilation equals compilation from scratch, and [`PolicyImpact`] covers
//! every connection whose verdict changes.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

#[path = "support/cluster.rs"]
mod cluster;

use std::{collections::BTreeSet, net::IpAddr};

use cluster::{Cluster, clusters};
use imbl::{OrdMap, OrdSet};
use proptest::{collection::vec, prelude::*, sample::Index};
use towpath_core::{
    connection::{AffectedPods, Connection, ImpactKind, PolicyImpact, Reevaluation},
    model::{Endpoint, Family},
    policy::{
        compile::{Compiler, compile},
        packet_log::DenyLog,
    },
    ruleset::{Ruleset, Transaction, Transport, change, fake::FakeTable},
    table::{CompiledPolicy, Masquerade, PolicyEnforcement, SourceToNodes, Table, TableInput},
};

/// Replaces one object with its counterpart in another cluster, or deletes it if that has none.
#[derive(Debug, Clone)]
enum Edit {
    Namespace,
    Pod,
    Endpoint,
    Policy,
    Tiers,
}

/// An edit, the cluster to copy from, and the key of the object.
type EditStep = (Edit, Index, Index);

/// Batches of edits. Each batch is one update.
fn histories() -> impl Strategy<Value = Vec<Vec<EditStep>>> {
    let edit = prop_oneof![
        2 => Just(Edit::Namespace),
        4 => Just(Edit::Pod),
        2 => Just(Edit::Endpoint),
        4 => Just(Edit::Policy),
        1 => Just(Edit::Tiers),
    ];
    let step = (edit, any::<Index>(), any::<Index>());
    vec(vec(step, 1..4), 1..30)
}

/// Copies the entry of a random key of either map, or removes it if `from` has none.
fn copy<K: Ord + Clone, V: Clone>(to: &mut OrdMap<K, V>, from: &OrdMap<K, V>, key: &Index) {
    let keys: Vec<K> = to.clone().union(from.clone()).keys().cloned().collect();
    if keys.is_empty() {
        return;
    }
    let key = key.get(&keys);
    match from.get(key) {
        Some(value) => _ = to.insert(key.clone(), value.clone()),
        None => _ = to.remove(key),
    }
}

fn edit(cluster: &mut Cluster, versions: &[Cluster], (edit, version, key): &EditStep) {
    let from = version.get(versions);
    match edit {
        Edit::Namespace => copy(&mut cluster.snapshot.namespaces, &from.snapshot.namespaces, key),
        Edit::Pod => copy(&mut cluster.snapshot.pods, &from.snapshot.pods, key),
        Edit::Endpoint => copy(&mut cluster.endpoints, &from.endpoints, key),
        Edit::Policy => {
            for (tier, from) in cluster.snapshot.tiers.iter_mut().zip(&from.snapshot.tiers) {
                copy(&mut tier.policies, &from.policies, key);
            }
        }
        Edit::Tiers => cluster.snapshot.tiers.clone_from(&from.snapshot.tiers),
    }
}

fn input<'a>(cluster: &'a Cluster, nodes: &'a OrdSet<IpAddr>, policy: CompiledPolicy) -> TableInput<'a> {
    TableInput {
        endpoints: &cluster.endpoints,
        cluster_pod_cidrs: &[],
        node_pod_cidrs: &[],
        node_addresses: nodes,
        vxlan_port: 8472,
        masquerade: Masquerade::Disabled,
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: if nodes.len() == 3 { PolicyEnforcement::Off } else { PolicyEnforcement::Enforce(policy) },
    }
}

/// Connections between every pair of addresses of which at least one belongs to a pod of this node.
fn connections(cluster: &Cluster) -> Vec<Connection> {
    let local: BTreeSet<IpAddr> = cluster.endpoints.values().flat_map(|e| e.addresses.iter().copied()).collect();
    let pods = cluster.snapshot.pods.values().flat_map(|pod| pod.addresses.iter().copied());
    let all: BTreeSet<IpAddr> = local.iter().copied().chain(pods).chain(cluster::outside()).collect();
    let transports = [Transport::Ports { protocol: 6, destination: cluster::PORTS[0] }, Transport::Other(1)];
    let pairs = local.iter().flat_map(|local| all.iter().flat_map(|other| [(*local, *other), (*other, *local)]));
    let pairs = pairs.filter(|(from, to)| Family::of(*from) == Family::of(*to));
    pairs.flat_map(|(from, to)| transports.map(|transport| Connection { from, to, transport })).collect()
}

/// Checks that the impact of a change covers every connection whose verdict changes, and that a change that denies an
/// allowed connection narrows policy.
fn check_impact(cluster: &Cluster, before: &Ruleset, after: &Ruleset) -> Result<(), TestCaseError> {
    let PolicyImpact { meaning, touched } = PolicyImpact::of(&change(after, before), after);
    prop_assert!(touched != AffectedPods::All, "the table was not recreated");
    let pods: Vec<&Endpoint> = cluster.endpoints.values().map(|endpoint| &**endpoint).collect();
    let no_addresses = BTreeSet::new();
    let [old, new] =
        [before, after].map(|table| Reevaluation::new(table, pods.iter().copied(), &no_addresses, &touched));
    for connection in connections(cluster) {
        let (was, is) = (old.denied_at(&connection).unwrap(), new.denied_at(&connection).unwrap());
        prop_assert!(was == is || new.is_about(&connection), "{connection}: {was:?} became {is:?}");
        prop_assert!(was.is_some() || is.is_none() || meaning == ImpactKind::Narrows, "{connection}: {is:?} now");
    }
    Ok(())
}

/// Commits a transaction stage by stage. Checks that no stage creates a chain and sends packets of the previous generation
/// to it, and that only the last stage changes existing objects.
fn commit(kernel: &mut FakeTable, transaction: &Transaction) -> Result<(), TestCaseError> {
    let stages = transaction.stages();
    for (n, stage) in (1..).zip(&stages) {
        let before = kernel.ruleset().unwrap();
        kernel.apply(stage).map_err(|e| TestCaseError::fail(format!("{e}\n{stage}")))?;
        let after = kernel.ruleset().unwrap();
        for (name, map) in &before.maps {
            let verdicts = after.maps.get(name).into_iter().flat_map(|map| &map.elements);
            let new = verdicts.filter(|(element, verdict)| map.elements.get(*element) != Some(*verdict));
            let mut targets = new.filter_map(|(_, verdict)| verdict.target());
            prop_assert!(targets.all(|chain| before.chains.contains_key(chain)), "{stage}");
        }
        let common = Ruleset {
            sets: after.sets.intersection(before.sets.clone()),
            maps: after.maps.intersection(before.maps.clone()),
            chains: after.chains.intersection(before.chains.clone()),
            comments: before.comments.clone(),
        };
        prop_assert!(n == stages.len() || common == before, "{stage}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_compiler_table_and_kernel_equal_those_built_from_scratch(
        versions in vec(clusters(), 2..5), history in histories(),
    ) {
        let mut cluster = versions[0].clone();
        let mut compiler = Compiler::new(DenyLog::Enabled);
        let (mut table, mut kernel, mut last) = (Table::default(), FakeTable::default(), Ruleset::default());
        kernel.apply(&Transaction::create(&last)).unwrap();
        for batch in history {
            batch.iter().for_each(|step| edit(&mut cluster, &versions, step));
            let nodes = (0..batch.len()).map(|n| IpAddr::from([172, 30, 0, n as u8])).collect();
            compiler.update(&cluster.snapshot, &cluster.endpoints);
            let fresh = compile(&cluster.snapshot, &cluster.endpoints, DenyLog::Enabled);
            prop_assert_eq!(compiler.part(), fresh.clone(), "after {:?}", batch);
            table.update(input(&cluster, &nodes, compiler.part()));
            let fresh = towpath_core::table::table(input(&cluster, &nodes, fresh));
            prop_assert_eq!(table.ruleset(), &fresh, "after {:?}", batch);
            let transaction = change(table.ruleset(), &last);
            commit(&mut kernel, &transaction)?;
            prop_assert_eq!(kernel.ruleset(), Some(fresh), "after {:?}", batch);
            last = table.ruleset().clone();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_impact_of_a_change_covers_every_connection_whose_verdict_changes(
        versions in vec(clusters(), 2..4), history in histories(),
    ) {
        let mut cluster = versions[0].clone();
        let (mut table, mut compiler) = (Table::default(), Compiler::new(DenyLog::Enabled));
        let nodes = OrdSet::new();
        let mut last = None;
        for batch in history.iter().take(10) {
            batch.iter().for_each(|step| edit(&mut cluster, &versions, step));
            compiler.update(&cluster.snapshot, &cluster.endpoints);
            table.update(input(&cluster, &nodes, compiler.part()));
            if let Some(last) = &last {
                check_impact(&cluster, last, table.ruleset())?;
            }
            last = Some(table.ruleset().clone());
        }
    }
}
