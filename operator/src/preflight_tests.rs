use super::*;
use crate::{
    discover::pod_network,
    facts::UplinkFacts,
    store::ObjectEvent,
    testing::{nets, node, node_table, now, report, table},
};

struct TestCluster {
    spec: Vec<IpNet>,
    mtu: Option<i32>,
    nodes: Store<NodeFacts>,
    reports: Store<ReportFacts>,
    services: Store<Vec<IpNet>>,
}

fn cluster(spec: &[&str], pod_cidrs: &[&[&str]]) -> TestCluster {
    TestCluster {
        spec: nets(spec),
        mtu: None,
        nodes: node_table(pod_cidrs),
        reports: table([]),
        services: table([("kubernetes".to_owned(), nets(&["10.96.0.0/16"]))]),
    }
}

fn check(cluster: &TestCluster) -> PreflightOutcome {
    let network = pod_network(&cluster.spec, &cluster.nodes, None);
    run(&PreflightInputs {
        network: network.as_ref(),
        mtu: cluster.mtu,
        nodes: &cluster.nodes,
        reports: &cluster.reports,
        service_cidrs: &cluster.services,
        now: now(),
    })
}

#[test]
fn every_failure_has_its_reason_and_says_what_to_do() {
    use ConfigReason::{CIDROverlap, PodCIDRConflict, PodCIDRMissing};
    let good: &[&[&str]] = &[&["10.244.0.0/24"], &["10.244.1.0/24"]];
    let cases: [(TestCluster, Option<ConfigReason>, &str, &str); 10] = [
        (cluster(&["10.244.0.0/16"], good), None, "", "no failure"),
        (cluster(&[], good), None, "", "discovered"),
        (cluster(&[], &[&[], &[]]), Some(PodCIDRMissing), "--allocate-node-cidrs", "no node has a podCIDR"),
        (
            cluster(&["10.244.0.0/16"], &[&["10.244.0.0/24"], &[]]),
            Some(PodCIDRMissing),
            "n1 (IPv4)",
            "one node without",
        ),
        (
            cluster(&["10.244.0.0/16", "fd00::/56"], good),
            Some(PodCIDRMissing),
            "n0 (IPv6), n1 (IPv6)",
            "dual-stack wanted, nodes have one family",
        ),
        (cluster(&["10.9.0.0/16"], good), Some(PodCIDRConflict), "n0 (10.244.0.0/24)", "outside the pod network"),
        (
            cluster(&["10.244.0.0/16"], &[&["10.244.0.0/23"], &["10.244.1.0/24"]]),
            Some(PodCIDRConflict),
            "n0 (10.244.0.0/23) and n1 (10.244.1.0/24)",
            "two nodes assign the same addresses",
        ),
        (cluster(&["10.96.0.0/12"], &[]), Some(CIDROverlap), "Services (10.96.0.0/16)", "pods over Services"),
        (cluster(&["172.30.0.0/16"], &[&["172.30.1.0/24"]]), Some(CIDROverlap), "n0 (172.30.0.11)", "pods over nodes"),
        (
            cluster(&[], &[&["10.0.1.0/24"], &["192.168.1.0/24"]]),
            Some(CIDROverlap),
            "name the right one in spec.podCIDRs",
            "scattered podCIDRs have no sensible cover",
        ),
    ];
    for (cluster, want, says, why) in cases {
        let outcome = check(&cluster);
        assert_eq!(outcome.failure.as_ref().map(|f| f.reason), want, "{why}: {:?}", outcome.checks);
        let message = outcome.failure.map(|f| f.message).unwrap_or_default();
        assert!(message.contains(says), "{why}: {message}");
    }
}

#[test]
fn a_new_node_has_a_grace_period_to_get_its_pod_cidr() {
    let mut young = node(1, &[]);
    young.created = Some(now() - SignedDuration::from_secs(5));
    let mut all = cluster(&["10.244.0.0/16"], &[]);
    all.nodes = table([("old".to_owned(), node(0, &["10.244.0.0/24"])), ("young".to_owned(), young)]);
    let outcome = check(&all);
    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.replan_at, Some(now() + SignedDuration::from_secs(25)), "checks again when the grace is over");
}

#[test]
fn an_mtu_is_checked_against_the_uplinks_that_are_reported() {
    let v6 = UplinkFacts { name: "eth0".to_owned(), mtu: 1500, addresses: vec!["fd00::11".parse().unwrap()] };
    let reports = |uplink: Option<UplinkFacts>| table([("n0".to_owned(), ReportFacts { uplink, ..report("r") })]);
    let v4 = report("r").uplink;
    let cases = [
        (None, v4.clone(), None, "unset fits always"),
        (Some(1450), v4.clone(), None, "1450 + 50 = 1500"),
        (Some(1451), v4, Some("at most 1450"), "one too many"),
        (Some(1450), Some(v6.clone()), Some("at most 1430"), "an outer IPv6 header is 20 bytes longer"),
        (Some(1430), Some(v6), None, "1430 + 70 = 1500"),
        (Some(9000), None, None, "nothing known yet: skipped"),
    ];
    for (mtu, uplink, says, why) in cases {
        let mut cluster = cluster(&["10.244.0.0/16"], &[&["10.244.0.0/24"]]);
        cluster.mtu = mtu;
        cluster.reports = reports(uplink);
        let failure = check(&cluster).failure;
        assert_eq!(failure.is_some(), says.is_some(), "{why}: {failure:?}");
        if let (Some(failure), Some(says)) = (failure, says) {
            assert_eq!(failure.reason, ConfigReason::MTUTooLarge, "{why}");
            assert!(failure.message.contains(says), "{why}: {}", failure.message);
        }
    }
}

#[test]
fn a_cluster_without_service_cidr_objects_skips_the_check() {
    let mut cluster = cluster(&["10.96.0.0/12"], &[]);
    cluster.services = Store::default();
    cluster.services.apply(ObjectEvent::NotServed);
    let outcome = check(&cluster);
    assert_eq!(outcome.failure, None);
    assert_eq!(outcome.checks[3].result, CheckResult::Skipped);
}

#[test]
fn ranges_of_services_that_cannot_be_decoded_are_not_called_disjoint() {
    let mut cluster = cluster(&["10.244.0.0/16"], &[&["10.244.0.0/24"]]);
    cluster.services.apply(ObjectEvent::Undecodable("kubernetes".to_owned()));
    assert_eq!(check(&cluster).checks[3].result, CheckResult::Passed, "its last known range is disjoint");
    cluster.services.apply(ObjectEvent::Undecodable("second".to_owned()));
    assert_eq!(check(&cluster).checks[3].result, CheckResult::Skipped);
}
