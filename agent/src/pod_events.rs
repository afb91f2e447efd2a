//! Events on pods, from this node's agent: best-effort, one after the other, and nobody waits for them.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc::UnboundedReceiver;
use towpath_core::{model::NodeName, policy::ir::Direction};
use towpath_crds::names;
use tracing::warn;

use crate::denials::Denial;

/// The word for programs; like the reasons of conditions it is API.
const REASON: &str = "PolicyDenied";
/// The API admits 1,024 bytes.
const MOST: usize = 1000;

/// Writes an Event for each denial, until the sender is gone. Who sends bounds their number.
pub async fn tell(client: Client, me: NodeName, mut denials: UnboundedReceiver<Denial>) {
    let reporter = Reporter { controller: format!("{}/agent", names::GROUP), instance: Some(me.0) };
    while let Some(denial) = denials.recv().await {
        if let Err(error) = write(&client, &reporter, &denial).await {
            warn!(pod = %denial.pod, %error, "event was not written");
        }
    }
}

/// A pod that is gone has no Event. The pod is read for its uid, by which people's tools find the Event.
async fn write(client: &Client, reporter: &Reporter, denial: &Denial) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &denial.pod.namespace);
    let Some(pod) = pods.get_metadata_opt(&denial.pod.name).await? else { return Ok(()) };
    let mut reference = Pod::default().object_ref(&());
    reference.name = pod.metadata.name;
    reference.namespace = pod.metadata.namespace;
    reference.uid = pod.metadata.uid;
    // A recorder takes Events of the same reason for one, whatever they say: so each has its own.
    Recorder::new(client.clone(), reporter.clone()).publish(&event(denial), &reference).await
}

fn event(denial: &Denial) -> Event {
    let action = match denial.direction {
        Direction::Ingress => "DropIngress",
        Direction::Egress => "DropEgress",
    };
    let mut note = format!("{} was dropped: {}", denial, denial.cause);
    if note.len() > MOST {
        let end = (0..=MOST).rev().find(|at| note.is_char_boundary(*at));
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
    use towpath_dataplane::nflog::Carried;

    use super::*;
    use crate::denials::{Cause, Peer};

    fn denial(direction: Direction, policy: &str) -> Denial {
        let pod = |name: &str| PodId { namespace: "a".to_owned(), name: name.to_owned() };
        let policy = PolicyId { namespace: "a".to_owned(), name: policy.to_owned() };
        Denial {
            pod: pod("web"),
            direction,
            peer: Peer { address: [10, 244, 0, 2].into(), pod: Some(pod("client")) },
            carried: Carried::Port(Protocol::Tcp, 80),
            cause: Cause::Isolated { by: vec![policy], more: 1 },
        }
    }

    #[test]
    fn an_event_says_who_was_kept_from_what_and_by_which_policy() {
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
