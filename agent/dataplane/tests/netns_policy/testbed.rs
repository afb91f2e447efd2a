//! The test network: namespaces for the node, each of its pods, and everything beyond its uplink.

use std::collections::BTreeMap;

use towpath_core::{
    names::IfName,
    ruleset::{Installed, Ruleset, diff},
};
use towpath_dataplane::{
    nfnetlink::{MessageType, NfnetlinkRequest, NfnetlinkSocket},
    nft::{KernelNft, Nft, Ownership},
};
use towpath_podlink::{PodLink, PodLinkSpec, netns::Netns};

use crate::{
    cluster::{Cluster, LOCAL, Location, TestEndpoint, endpoint},
    support::Namespace,
};

/// The node under test, its pods and its table.
pub(crate) struct Testbed {
    pub(crate) node: Namespace,
    /// The other node, its pods and the outside.
    external: Namespace,
    pods: BTreeMap<&'static str, Namespace>,
    pub(crate) cluster: Cluster,
    nft: Option<KernelNft>,
    /// The last applied ruleset.
    pub(crate) rules: Ruleset,
    have: Option<Installed>,
}

impl Testbed {
    /// A testbed without policies, with its table applied.
    pub(crate) fn new() -> Self {
        Self::owned(Ownership::Exclusive)
    }

    /// The same, with a table of this ownership.
    pub(crate) fn owned(ownership: Ownership) -> Self {
        let node = Namespace::new();
        let nft = node.run(|| KernelNft::open_as(ownership).unwrap());
        let mut testbed = Self {
            node,
            external: Namespace::new(),
            pods: BTreeMap::new(),
            cluster: Cluster::new(),
            nft: Some(nft),
            rules: Ruleset::default(),
            have: None,
        };
        testbed.create_links();
        for name in LOCAL {
            testbed.add_pod(endpoint(name));
        }
        testbed.pods["client"].sh("ip addr add 10.244.2.9/32 dev lo; ip addr add fd00:244:2::9/128 dev lo nodad");
        // kube-proxy's part: DNAT of a Service's address, and masquerade of a pod that reaches itself through it.
        testbed.node.sh("nft -f - <<'END'
            table inet proxy {
                chain prerouting { type nat hook prerouting priority -100;
                    ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.244.1.2:8080
                    ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.244.1.2:5353
                    ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [fd00:244:1::2]:8080
                    ip6 daddr fd00:96::1 udp dport 53 dnat ip6 to [fd00:244:1::2]:5353
                }
                chain postrouting { type nat hook postrouting priority 90;
                    ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade
                    ip6 saddr fd00:244:1::2 ip6 daddr fd00:244:1::2 masquerade
                }
            }
END");
        testbed.apply();
        testbed
    }

    fn create_links(&self) {
        // `ip` does not have the file open: it opens it by the id of this process.
        let netns = self.external.path().to_string_lossy().replace("self", &std::process::id().to_string());
        self.node.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {netns}
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
             sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0
             ip link set lo up; ip link set eth0 up
             ip addr add 172.30.0.11/24 dev eth0; ip addr add fd00:172::11/64 dev eth0 nodad
             ip route add default via 172.30.0.12; ip route add default via fd00:172::12"
        ));
        self.external.sh("ip link set lo up; ip link set eth0 up
             ip addr add 172.30.0.12/24 dev eth0; ip addr add fd00:172::12/64 dev eth0 nodad
             for a in 10.244.2.2 10.244.2.3 10.244.2.4 198.51.100.7 198.51.100.130 203.0.113.9; do
                 ip addr add $a/32 dev lo; done
             for a in fd00:244:2::2 fd00:244:2::3 fd00:244:2::4 2001:db8::7 2001:db8::8007 2001:db8:f::9; do
                 ip addr add $a/128 dev lo nodad; done
             for net in 10.244.1.0/24 10.96.0.0/16; do ip route add $net via 172.30.0.11; done
             for net in fd00:244:1::/64 fd00:96::/64; do ip route add $net via fd00:172::11; done");
    }

    /// Creates the pod's namespace and link, as the CNI plugin does.
    fn add_pod(&mut self, endpoint: &'static TestEndpoint) {
        let (namespace, interface) = (Namespace::new(), endpoint.interface());
        let spec = PodLinkSpec {
            host: interface.clone(),
            pod: IfName::new("eth0").unwrap(),
            addresses: endpoint.addresses(),
            mtu: 1450,
        };
        self.node.run(|| {
            let netns = Netns::open(&namespace.path()).unwrap();
            PodLink::create(&netns, &spec).unwrap().connect(&spec).unwrap();
        });
        self.pods.insert(endpoint.name, namespace);
    }

    /// The network namespace of an endpoint.
    pub(crate) fn namespace_of(&self, endpoint: &TestEndpoint) -> &Namespace {
        match endpoint.location {
            Location::Pod(_, pod) => &self.pods[pod],
            Location::Node => &self.node,
            Location::External => &self.external,
        }
    }

    /// Applies the difference between the wanted table and the last applied one.
    pub(crate) fn apply(&mut self) {
        self.rules = self.cluster.want();
        let transaction = diff(&self.rules, self.have.as_ref());
        let Self { node, nft, .. } = self;
        let nft = nft.as_mut().expect("the table was not released");
        node.run(|| nft.apply(&transaction)).unwrap_or_else(|error| panic!("{error}\n{transaction}"));
        self.have = Some(self.rules.installed());
    }

    /// Closes the socket that owns the table, as an agent that exits.
    pub(crate) fn release_table(&mut self) {
        self.nft = None;
    }

    /// Flushes the node's conntrack entries, so that no packet belongs to an earlier connection.
    pub(crate) fn flush_conntrack(&self) {
        // NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE: without a condition, all
        // (linux/netfilter/nfnetlink_conntrack.h).
        let delete = MessageType { subsystem: 1, number: 2 };
        self.node.run(|| NfnetlinkSocket::open().unwrap().execute(&NfnetlinkRequest::new(delete, 0)).unwrap());
    }
}
