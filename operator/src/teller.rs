//! Writes Events. The same words again within minutes count up the Event that is there; other words make a new one.

use std::cell::RefCell;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use towpath_crds::names;

use crate::notice::{Notice, Severity};

/// How many different notices are remembered.
const REMEMBERED: usize = 32;

/// Writes Events.
pub struct Teller {
    client: Client,
    reporter: Reporter,
    /// A recorder counts up by reason alone, so that a second revision would be told with the words of the first:
    /// therefore one recorder for each notice. The latest is last.
    told: RefCell<Vec<(Notice, Recorder)>>,
}

impl Teller {
    /// A teller; `instance` names this replica.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: format!("{}/operator", names::GROUP), instance: Some(instance.to_owned()) };
        Self { client, reporter, told: RefCell::default() }
    }

    /// Tells, best-effort: an Event that cannot be written is logged, and no reason to stop the work that it tells of.
    pub async fn tell(&self, about: &ObjectReference, notice: &Notice) {
        let reason = notice.reason.as_str();
        tracing::info!(
            kind = about.kind,
            namespace = about.namespace,
            name = about.name,
            reason,
            note = notice.note,
            "event"
        );
        let event = Event {
            type_: match notice.reason.severity() {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: reason.to_owned(),
            note: Some(notice.note.clone()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let recorder = self.recorder(notice);
        if let Err(error) = recorder.publish(&event, about).await {
            tracing::warn!(reason, error = %error, "event was not written");
        }
    }

    fn recorder(&self, notice: &Notice) -> Recorder {
        let mut told = self.told.borrow_mut();
        let recorder = match told.iter().position(|(known, _)| known == notice) {
            Some(position) => told.remove(position).1,
            None => Recorder::new(self.client.clone(), self.reporter.clone()),
        };
        if told.len() >= REMEMBERED {
            told.remove(0);
        }
        told.push((notice.clone(), recorder.clone()));
        recorder
    }
}
