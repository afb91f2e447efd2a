//! Who is isolated, in which directions, and how policies add up.

use crate::scenario::{Scenario, prove, scenario};

/// The types of a policy, and what the absence of its parts means.
const ISOLATION: &[Scenario<'_>] = &[
    scenario(
        "no policy at all",
        "a pod that no policy selects talks to everybody in every protocol",
        "",
        "db,client,far,lab,outside,host,node > web tcp 8080|udp 53|icmp; outside > web sctp 7|plain;
         web > outside,far,db,client,host,node tcp 80|udp 9|icmp; web > far sctp 7|plain",
        "",
    ),
    scenario(
        "ingress alone",
        "isolation is per direction: who is isolated for ingress still sends",
        "shop {podSelector: {}, policyTypes: [Ingress]}",
        "web > outside,client,far,host,node tcp 80|udp 53|icmp; web > far sctp 7|plain",
        // Who has met in a protocol without ports is connected in it: `plain` comes from somebody else here.
        "client,opsweb,outside,far,host,db > web tcp 80|udp 53|sctp 7|icmp; client,outside > web plain",
    ),
    scenario(
        "egress alone",
        "isolation is per direction: who is isolated for egress still receives",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}",
        "client,outside,far,host,db,node > web tcp 80|udp 53|icmp; client > web sctp 7|plain",
        "web > db,client,outside,far,host,node tcp 80|udp 53|icmp; web > far sctp 7|plain",
    ),
    scenario(
        "both directions",
        "a policy without rules and with both types closes the pod",
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
        "the pod of the same labels next door",
        "a policy selects pods of its own namespace only",
        "shop {podSelector: {matchLabels: {app: web}}}",
        "client > opsweb tcp 80; outside > opsweb udp 53",
        "client > web tcp 80; outside > web udp 53",
    ),
    scenario(
        "the empty selector",
        "an empty podSelector is all pods of the namespace, those without labels too",
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
        "unset types mean Egress too where there is an egress rule, and Ingress all the same",
        "shop {podSelector: {}, egress: [{ports: [{port: 80}]}]}",
        "web > client,outside tcp 80",
        "web > client,outside tcp 81|icmp; client > web tcp 80",
    ),
    scenario(
        "no types, an empty egress list",
        "an egress section without a rule is none",
        "shop {podSelector: {}, egress: []}",
        "web > client tcp 80|icmp",
        "client > web tcp 80",
    ),
    scenario(
        "an empty list of types",
        "it is as if it was not set",
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
        "explicit types count alone: a section of another direction is nothing",
        "shop {podSelector: {}, policyTypes: [Egress], ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80|tcp 81|icmp",
        "web > client tcp 80|icmp",
    ),
    scenario(
        "type Ingress and egress rules",
        "explicit types count alone, the other way round",
        "shop {podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]}",
        "web > client tcp 80|tcp 81|icmp",
        "client > web tcp 80|icmp",
    ),
    scenario(
        "an empty ingress list",
        "it denies all, as a missing one",
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
        "it allows everybody, outside included, any port and any protocol",
        "shop {podSelector: {}, ingress: [{}]}",
        "client,outside,far,host > web tcp 1|udp 19999|sctp 7|icmp|plain",
        "",
    ),
    scenario(
        "the empty egress rule",
        "it allows everybody, outside included, any port and any protocol",
        "shop {podSelector: {}, policyTypes: [Egress], egress: [{}]}",
        "web > client,outside,far,host,node tcp 1|udp 19999|sctp 7|icmp|plain",
        "",
    ),
    scenario(
        "an unknown type",
        "what cannot be understood opens nothing: the policy isolates for ingress, as with unset types",
        "shop {podSelector: {}, policyTypes: [Sideways]}",
        "web > client tcp 80",
        "client > web tcp 80",
    ),
];

/// Several policies, and both ends of a connection.
const ADDITION: &[Scenario<'_>] = &[
    scenario(
        "two policies add up",
        "what either allows is allowed",
        "shop {podSelector: {}, ingress: [{ports: [{port: 80}]}]}; shop {podSelector: {}, ingress: [{ports: [{port: 81}]}]}",
        "client > web tcp 80|tcp 81",
        "client > web tcp 82|udp 80",
    ),
    scenario(
        "the other order",
        "the order of policies means nothing",
        "shop {podSelector: {}, ingress: [{ports: [{port: 81}]}]}; shop {podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80|tcp 81",
        "client > web tcp 82|udp 80",
    ),
    scenario(
        "deny all and allow one",
        "a policy that allows nothing takes nothing away",
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
        "what counts is whom they select, not how",
        "shop {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]};
         shop {podSelector: {matchLabels: {tier: front}}, ingress: [{ports: [{port: 81}]}]};
         shop {podSelector: {matchLabels: {tier: back}}, ingress: [{ports: [{port: 82}]}]}",
        "client > web tcp 80|tcp 81; client > db tcp 82; client > bare tcp 9",
        "client > web tcp 82; client > db tcp 80|tcp 81",
    ),
    scenario(
        "rules of one policy add up",
        "its rules are alternatives",
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
        "the sender may not",
        "a connection needs the sender's egress, whatever the receiver says",
        "shop {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]};
         shop {podSelector: {matchLabels: {app: db}}, ingress: [{}]}",
        "client > db tcp 80",
        "web > db tcp 80|icmp",
    ),
    scenario(
        "the receiver may not",
        "a connection needs the receiver's ingress, whatever the sender says",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{}]}; shop {podSelector: {}}",
        "client > lab tcp 80",
        "client > web tcp 80|icmp",
    ),
    scenario(
        "both may",
        "A's egress and B's ingress together",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {team: blue}}}]}]};
         shop {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}",
        "client > web,db tcp 80|udp 53|icmp",
        "client > lab tcp 80; lab > web tcp 80",
    ),
    scenario(
        "both may, but not the same",
        "what one end allows the other must allow, too",
        "ops {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 82}]}]};
         shop {podSelector: {}, ingress: [{ports: [{port: 81}, {port: 82}]}]}",
        "client > web tcp 82",
        "client > web tcp 80|tcp 81",
    ),
    scenario(
        "answers of a pod that may not send",
        "replies always pass: the answers to what ingress lets in, under closed egress",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}]}",
        "client,outside,far,host > web tcp 80|udp 53|icmp",
        "web > client,outside tcp 80|udp 53|icmp",
    ),
    scenario(
        "answers to a pod that may not receive",
        "replies always pass: the answers to what egress lets out, under closed ingress",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}",
        "web > client,outside,far,host,node tcp 80|udp 53|icmp",
        "client,outside > web tcp 80|udp 53|icmp",
    ),
    scenario(
        "answers with both ends closed but for the request",
        "replies pass both ends",
        "ops {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 80}]}]};
         shop {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: 80}]}]}",
        "client > web tcp 80",
        "web > client tcp 80; client > web tcp 81",
    ),
    scenario(
        "the node and its closed pods",
        "the node always reaches its own pods: kubelet's probes",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress]}",
        "node > web,db,bare tcp 8080|udp 53|sctp 7|icmp|plain",
        "web > node tcp 8080|udp 53|icmp; host > web tcp 8080",
    ),
    scenario(
        "a pod and its own node",
        "towards the node's address a pod's egress counts as towards any other",
        "shop {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 172.30.0.11/32}},
            {ipBlock: {cidr: 'fd00:172::11/128'}}], ports: [{port: 10250}]}]}",
        "web > node tcp 10250",
        "web > node tcp 10251|icmp; web > host tcp 10250",
    ),
    scenario(
        "a pod and itself",
        "what stays in the pod's own namespace meets no policy",
        "shop {podSelector: {}, policyTypes: [Ingress, Egress]}",
        "web > web tcp 8080|udp 53|icmp",
        "web > db tcp 8080",
    ),
];

#[test]
fn pods_are_isolated_in_the_directions_of_the_policies_that_select_them() {
    prove(ISOLATION.iter().copied());
}

#[test]
fn policies_add_up_and_a_connection_needs_both_ends() {
    prove(ADDITION.iter().copied());
}
