//! Packets that policies dropped.

use towpath_core::{
    model::Protocol,
    policy::{
        ir::Direction,
        packet_log::{Reason, prefix},
    },
};
use towpath_dataplane::nflog::{Batch, Carried, Head, Logged};

use super::*;
use crate::denials::Line;

#[test]
fn a_dropped_packet_is_told_of_with_the_policy_that_is_known() {
    let mut world = World::settled();
    drop(world.add_pod("web", "10.244.1.2"));
    world.hear([pod_event("web"), deny_all()]);
    let head = Head {
        source: [192, 0, 2, 9].into(),
        destination: [10, 244, 1, 2].into(),
        carried: Carried::Port(Protocol::Tcp, 80),
    };
    let logged = Logged { prefix: prefix(Reason::Denied, Direction::Ingress).to_owned(), head };
    let batch = Batch { packets: vec![logged], lost: 0 };
    world.hear([Input::Denied(batch.clone())]);
    let [Findings { events, .. }] = &world.denied[..] else { panic!("{:?}", world.denied) };
    let expected = "isolated by NetworkPolicy default/deny, and no rule allows it";
    assert_eq!(events.iter().map(|denial| denial.cause.to_string()).collect::<Vec<_>>(), [expected]);
    world.hear([Input::Denied(batch)]);
    world.pass(Duration::from_secs(60));
    let [.., Findings { lines, .. }] = &world.denied[..] else { panic!("{:?}", world.denied) };
    assert!(matches!(lines[..], [Line::Again(_, 1)]), "it goes on: {lines:?}");
}
