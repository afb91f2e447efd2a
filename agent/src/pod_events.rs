//! Events on denied pods: best-effort, one after the other, without anything waiting for them.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc::UnboundedReceiver;
use towpath_core::{model::NodeName, policy::ir::Direction};
use towpath_crds::names;
use tracing::warn;

use towpath_node::explain::Denial;

/// The Event's reason. Like the reasons of conditions it is API.
const REASON: &str = "PolicyDenied";
/// How many bytes of a note are kept; the API allows 1,024.
const MAX_NOTE: usize = 1000;

/// Emits an Event for each denial, until the sender is dropped. The sender bounds their number.
pub async fn emit(client: Client, me: NodeName, mut denials: UnboundedReceiver<Denial>) {
    let reporter = Reporter { controller: format!("{}/agent", names::GROUP), instance: Some(me.0) };
    while let Some(denial) = denials.recv().await {
        if let Err(error) = publish(&client, &reporter, &denial).await {
            warn!(pod = %denial.pod, %error, "Event not written");
        }
    }
}

/// A pod that is deleted gets no Event. The pod is read for its UID, by which `kubectl describe` finds the Event.
async fn publish(client: &Client, reporter: &Reporter, denial: &Denial) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &denial.pod.namespace);
    let Some(pod) = pods.get_metadata_opt(&denial.pod.name).await? else { return Ok(()) };
    let mut reference = Pod::default().object_ref(&());
    reference.name = pod.metadata.name;
    reference.namespace = pod.metadata.namespace;
    reference.uid = pod.metadata.uid;
    // A recorder aggregates Events of the same reason, whatever their notes are: so each has its own.
    Recorder::new(client.clone(), reporter.clone()).publish(&event(denial), &reference).await
}

fn event(denial: &Denial) -> Event {
    let action = match denial.direction {
        Direction::Ingress => "DropIngress",
        Direction::Egress => "DropEgress",
    };
    let mut note = format!("{} was dropped: {}", denial, denial.cause);
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE).rev().find(|at| note.is_char_boundary(*at));
        note.truncate(end.unwrap_or_default());
    }
    Event {
        type_: EventType::Warning,
        reason: REASON.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::{
        model::{PodId, Protocol},
        policy::ir::PolicyId,
    };

    use super::*;
    use towpath_node::explain::{DenialCause, PacketPeer, Payload};

    fn denial(direction: Direction, policy: &str) -> Denial {
        let pod = |name: &str| PodId { namespace: "a".to_owned(), name: name.to_owned() };
        let policy = PolicyId { namespace: "a".to_owned(), name: policy.to_owned() };
        Denial {
            pod: pod("web"),
            direction,
            peer: PacketPeer { address: [10, 244, 0, 2].into(), pod: Some(pod("client")) },
            payload: Payload::Port(Protocol::Tcp, 80),
            cause: DenialCause::Isolated { by: vec![policy], more: 1 },
        }
    }

    #[test]
    fn an_event_names_peer_port_and_policy() {
        for (direction, action, note) in [
            (Direction::Ingress, "DropIngress", "from a/client (10.244.0.2), TCP port 80 was dropped: "),
            (Direction::Egress, "DropEgress", "to a/client (10.244.0.2), TCP port 80 was dropped: "),
        ] {
            let event = event(&denial(direction, "deny-all"));
            let cause = "isolated by NetworkPolicy a/deny-all and 1 more, and no rule allows it";
            assert_eq!((event.action.as_str(), event.note), (action, Some(format!("{note}{cause}"))));
        }
    }

    #[test]
    fn a_note_fits_into_an_event() {
        let note = event(&denial(Direction::Ingress, &"ä".repeat(2000))).note.unwrap();
        assert!((990..=1024).contains(&note.len()), "{}", note.len());
    }
}
