//! Compiles a snapshot and interprets the table for a packet.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use towpath_core::{
    model::Endpoint,
    names::IfName,
    policy::{
        compile::compile,
        eval::{Flow, FlowTransport},
        ir::Snapshot,
        packet_log::DenyLog,
    },
    ruleset::{self, Hook, Outcome, Ruleset},
    table::{Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};

/// The table of a node with these endpoints.
pub(crate) fn compiled(snapshot: &Snapshot, endpoints: &OrdMap<IfName, Arc<Endpoint>>) -> Ruleset {
    table(TableInput {
        endpoints,
        cluster_pod_cidrs: &[],
        node_pod_cidrs: &[],
        node_addresses: &OrdSet::new(),
        vxlan_port: 8472,
        masquerade: Masquerade::Disabled,
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: PolicyEnforcement::Enforce(compile(snapshot, endpoints, DenyLog::Enabled)),
    })
}

/// Whether the node forwards a packet from one interface to the other.
pub(crate) fn forwards(rules: &Ruleset, [from, to]: [&IfName; 2], packet: &Flow) -> bool {
    let packet = ruleset::Packet {
        in_interface: Some(from.clone()),
        out_interface: Some(to.clone()),
        source: packet.from.address,
        destination: packet.to.address,
        transport: match packet.transport {
            FlowTransport::Port(protocol, destination) => {
                ruleset::Transport::Ports { protocol: protocol.number(), destination }
            }
            FlowTransport::Other(number) => ruleset::Transport::Other(number),
        },
        state: None,
        mark: 0,
    };
    rules.interpret(Hook::Forward, &packet).unwrap() == Outcome::Accepted
}
