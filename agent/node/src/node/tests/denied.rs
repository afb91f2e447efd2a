//! Packets that policies dropped.

use towpath_core::{
    model::Protocol,
    policy::{ir::Direction, packet_log::Reason},
};

use super::*;
use crate::{
    Input,
    denials::{DenialReport, PacketBatch, PacketLine, PacketRecord},
    explain::{PacketTuple, Payload},
};

#[test]
fn a_dropped_packet_is_reported_with_the_policy_that_denies_it() {
    let mut world = World::settled();
    world.add_pod("web", "10.244.1.2");
    world.feed([pod_event("web"), deny_all()]);
    let tuple = PacketTuple {
        source: [192, 0, 2, 9].into(),
        destination: [10, 244, 1, 2].into(),
        payload: Payload::Port(Protocol::Tcp, 80),
    };
    let packet = PacketRecord { reason: Reason::Denied, direction: Direction::Ingress, tuple };
    let batch = PacketBatch { packets: vec![packet], lost: 0 };
    world.feed([Input::Packets(batch.clone())]);
    let [DenialReport { events, .. }] = &world.reports[..] else { panic!("{:?}", world.reports) };
    let expected = "isolated by NetworkPolicy default/deny, and no rule allows it";
    assert_eq!(events.iter().map(|denial| denial.cause.to_string()).collect::<Vec<_>>(), [expected]);
    world.feed([Input::Packets(batch)]);
    world.pass(Duration::from_secs(60));
    let [.., DenialReport { denied, .. }] = &world.reports[..] else { panic!("{:?}", world.reports) };
    assert!(matches!(denied[..], [PacketLine::Continued(_, 1)]), "it goes on: {denied:?}");
}
