//! Isolation of pods by direction, and the union of policies.

use crate::scenario::{Scenario, run_scenarios, scenario};

/// `policyTypes`, and the meaning of absent and empty sections.
const ISOLATION: &[Scenario<'_>] = &[
    scenario(
        "no policy at all",
        "a pod that no policy selects sends and receives every protocol",
        "",
        "db,client,remote,lab,outside,host,node > web tcp 8080|udp 53|icmp; outside > web sctp 7|plain;
         web > outside,remote,db,client,host,node tcp 80|udp 9|icmp; web > remote sctp 7|plain",
        "",
    ),
    scenario(
        "ingress alone",
        "isolation is per direction: a pod isolated for ingress still sends",
        "shop {podSelector: {}, policyTypes: [Ingress]}",
        "web > outside,client,remote,host,node tcp 80|udp 53|icmp; web > remote sctp 7|plain",
        // Without ports a pair of addresses has one conntrack entry: `plain` comes from other endpoints here.
        "client,opsweb,outside,remote,host,db > web tcp 80|udp 53|sctp 7|icmp; client,outside > web plain",
    ),
    scenario(
        "egress alone",
        "isolation is per direction: a pod isolated for egress still receives",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}",
        "client,outside,remote,host,db,node > web tcp 80|udp 53|icmp; client > web sctp 7|plain",
        "web > db,client,outside,remote,host,node tcp 80|udp 53|icmp; web > remote sctp 7|plain",
    ),
    scenario(
        "both directions",
        "a policy with both types and no rules isolates the pod in both directions",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress]}",
        "db > client tcp 80; client > db tcp 80; node > web tcp 80",
        "client,outside > web tcp 80|icmp; web > client,outside,node tcp 80|icmp",
    ),
    scenario(
        "a pod that is not selected",
        "only the selected pods are isolated",
        "shop {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]}",
        "client > web,bare tcp 80; web > outside tcp 80",
        "client,web > db tcp 80; db > web,outside tcp 80",
    ),
    scenario(
        "a pod with the same labels in another namespace",
        "a policy selects pods of its own namespace only",
        "shop {podSelector: {matchLabels: {app: web}}}",
        "client > opsweb tcp 80; outside > opsweb udp 53",
        "client > web tcp 80; outside > web udp 53",
    ),
    scenario(
        "the empty selector",
        "an empty podSelector selects all pods of the namespace, with labels or without",
        "shop {podSelector: {}}",
        "web > client,lab tcp 80; lab > client tcp 80",
        "client > web,db,bare tcp 80; web > db,bare tcp 80",
    ),
    scenario(
        "no types and no rules",
        "unset types mean Ingress always",
        "shop {podSelector: {}}",
        "web > outside,client tcp 80|icmp",
        "outside,client > web tcp 80|icmp",
    ),
    scenario(
        "no types, a rule for ingress",
        "unset types mean Ingress alone where there is no egress section",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80; web > outside tcp 81|icmp",
        "client > web tcp 81",
    ),
    scenario(
        "no types, a rule for egress",
        "unset types mean Ingress and, with an egress rule, Egress too",
        "shop {podSelector: {}, egress: [{ports: [{port: 80}]}]}",
        "web > client,outside tcp 80",
        "web > client,outside tcp 81|icmp; client > web tcp 80",
    ),
    scenario(
        "no types, an empty egress list",
        "an empty egress section does not count as one",
        "shop {podSelector: {}, egress: []}",
        "web > client tcp 80|icmp",
        "client > web tcp 80",
    ),
    scenario(
        "an empty list of types",
        "it means the same as unset types",
        "shop {podSelector: {}, policyTypes: [], egress: [{}]}",
        "web > client tcp 80|icmp",
        "client > web tcp 80",
    ),
    scenario(
        "no types, rules for both",
        "each section counts for its direction",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}]}], egress: [{ports: [{port: 81}]}]}",
        "client > web tcp 80; web > client tcp 81",
        "client > web tcp 81; web > client tcp 80",
    ),
    scenario(
        "type Egress and ingress rules",
        "with explicit types a section of another direction is ignored",
        "shop {podSelector: {}, policyTypes: [Egress], ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80|tcp 81|icmp",
        "web > client tcp 80|icmp",
    ),
    scenario(
        "type Ingress and egress rules",
        "with explicit types a section of another direction is ignored",
        "shop {podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]}",
        "web > client tcp 80|tcp 81|icmp",
        "client > web tcp 80|icmp",
    ),
    scenario(
        "an empty ingress list",
        "it denies all, as a missing list does",
        "shop {podSelector: {}, ingress: []}",
        "web > client tcp 80",
        "client,outside > web tcp 80|udp 53|icmp",
    ),
    scenario(
        "an empty egress list with its type",
        "it denies all",
        "shop {podSelector: {}, policyTypes: [Egress], egress: []}",
        "client > web tcp 80",
        "web > client,outside tcp 80|udp 53|icmp",
    ),
    scenario(
        "the empty ingress rule",
        "it allows all peers, outside included, any port and any protocol",
        "shop {podSelector: {}, ingress: [{}]}",
        "client,outside,remote,host > web tcp 1|udp 19999|sctp 7|icmp|plain",
        "",
    ),
    scenario(
        "the empty egress rule",
        "it allows all peers, outside included, any port and any protocol",
        "shop {podSelector: {}, policyTypes: [Egress], egress: [{}]}",
        "web > client,outside,remote,host,node tcp 1|udp 19999|sctp 7|icmp|plain",
        "",
    ),
    scenario(
        "an unknown type",
        "an unknown type allows nothing: the policy isolates for ingress, as with unset types",
        "shop {podSelector: {}, policyTypes: [Sideways]}",
        "web > client tcp 80",
        "client > web tcp 80",
    ),
];

/// Several policies on a pod, and both ends of a connection.
const UNION: &[Scenario<'_>] = &[
    scenario(
        "the union of two policies",
        "a connection that one of them allows is allowed",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}]}]}; shop {podSelector: {}, ingress: [{ports: [{port: 81}]}]}",
        "client > web tcp 80|tcp 81",
        "client > web tcp 82|udp 80",
    ),
    scenario(
        "the other order",
        "the order of policies has no effect",
        "shop {podSelector: {}, ingress: [{ports: [{port: 81}]}]}; shop {podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80|tcp 81",
        "client > web tcp 82|udp 80",
    ),
    scenario(
        "deny all and allow one",
        "a policy that allows nothing restricts no other policy",
        "shop {podSelector: {}}; shop {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}",
        "db > web tcp 80|icmp",
        "client,bare > web tcp 80|icmp",
    ),
    scenario(
        "allow all and deny all",
        "one policy that allows everything is enough",
        "shop {podSelector: {}, ingress: [{}]}; shop {podSelector: {}}",
        "client,outside > web tcp 80|icmp|plain",
        "",
    ),
    scenario(
        "policies of different selectors on one pod",
        "all policies that select a pod apply, whatever their selector",
        "shop {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]};
         shop {podSelector: {matchLabels: {tier: front}}, ingress: [{ports: [{port: 81}]}]};
         shop {podSelector: {matchLabels: {tier: back}}, ingress: [{ports: [{port: 82}]}]}",
        "client > web tcp 80|tcp 81; client > db tcp 82; client > bare tcp 9",
        "client > web tcp 82; client > db tcp 80|tcp 81",
    ),
    scenario(
        "the union of rules of one policy",
        "a connection that one of the rules allows is allowed",
        "shop {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]},
            {from: [{podSelector: {matchLabels: {tier: front}}}], ports: [{port: 81}]}]}",
        "db > web tcp 80; web > db tcp 81",
        "db > web tcp 81; web > db tcp 80; client > web tcp 80|tcp 81",
    ),
    scenario(
        "directions of different policies",
        "each policy isolates in its own directions",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}]}]};
         shop {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 81}]}]}",
        "client > web tcp 80; web > client tcp 81",
        "client > web tcp 81; web > client tcp 80",
    ),
    scenario(
        "the source's egress denies",
        "a connection needs the source's egress, whatever the destination's ingress allows",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]};
         shop {podSelector: {matchLabels: {app: db}}, ingress: [{}]}",
        "client > db tcp 80",
        "web > db tcp 80|icmp",
    ),
    scenario(
        "the destination's ingress denies",
        "a connection needs the destination's ingress, whatever the source's egress allows",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{}]}; shop {podSelector: {}}",
        "client > lab tcp 80",
        "client > web tcp 80|icmp",
    ),
    scenario(
        "both allow",
        "the source's egress and the destination's ingress allow",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: blue}}}]}]};
         shop {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}",
        "client > web,db tcp 80|udp 53|icmp",
        "client > lab tcp 80; lab > web tcp 80",
    ),
    scenario(
        "both allow, but other ports",
        "both ends must allow the same connection",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 82}]}]};
         shop {podSelector: {}, ingress: [{ports: [{port: 81}, {port: 82}]}]}",
        "client > web tcp 82",
        "client > web tcp 80|tcp 81",
    ),
    scenario(
        "replies of a pod with denied egress",
        "replies to allowed ingress pass, whatever the egress policies",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}]}",
        "client,outside,remote,host > web tcp 80|udp 53|icmp",
        "web > client,outside tcp 80|udp 53|icmp",
    ),
    scenario(
        "replies to a pod with denied ingress",
        "replies to allowed egress pass, whatever the ingress policies",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}",
        "web > client,outside,remote,host,node tcp 80|udp 53|icmp",
        "client,outside > web tcp 80|udp 53|icmp",
    ),
    scenario(
        "replies with both ends isolated but for the request",
        "replies pass both ends",
        "ops {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 80}]}]};
         shop {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80",
        "web > client tcp 80; client > web tcp 81",
    ),
    scenario(
        "the node and its isolated pods",
        "the node always reaches its own pods: kubelet's probes",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress]}",
        "node > web,db,bare tcp 8080|udp 53|sctp 7|icmp|plain",
        "web > node tcp 8080|udp 53|icmp; host > web tcp 8080",
    ),
    scenario(
        "a pod and its own node",
        "egress to the node's address is evaluated as to any other address",
        "shop {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.30.0.11/32}},
            {ipBlock: {cidr: 'fd00:172::11/128'}}], ports: [{port: 10250}]}]}",
        "web > node tcp 10250",
        "web > node tcp 10251|icmp; web > host tcp 10250",
    ),
    scenario(
        "a pod and itself",
        "traffic inside the pod's network namespace is not evaluated",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress]}",
        "web > web tcp 8080|udp 53|icmp",
        "web > db tcp 8080",
    ),
];

#[test]
fn pods_are_isolated_in_the_directions_of_the_policies_that_select_them() {
    run_scenarios(ISOLATION.iter().copied());
}

#[test]
fn policies_are_a_union_and_a_connection_needs_both_ends() {
    run_scenarios(UNION.iter().copied());
}
