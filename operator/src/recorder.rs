//! Writes Events. An identical Event within minutes increments the series of the one that exists; other text creates a
//! new one.

use std::cell::RefCell;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use towpath_crds::names;

use crate::events::{EventSeverity, OperatorEvent};

/// Number of distinct Events whose recorders are kept.
const CACHED_RECORDERS: usize = 32;

/// Writes Events about any object.
pub struct EventRecorder {
    client: Client,
    reporter: Reporter,
    /// kube's recorder aggregates by reason alone, so a second revision would be recorded with the text of the first:
    /// therefore one recorder per Event. Least recently used first.
    recorders: RefCell<Vec<(OperatorEvent, Recorder)>>,
}

impl EventRecorder {
    /// A recorder; `instance` names this replica.
    #[must_use]
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: format!("{}/operator", names::GROUP), instance: Some(instance.to_owned()) };
        Self { client, reporter, recorders: RefCell::default() }
    }

    /// Emits an Event, best-effort: a failed write is logged and never stops a reconcile.
    pub async fn emit(&self, about: &ObjectReference, event: &OperatorEvent) {
        let reason = event.reason.as_str();
        tracing::info!(
            kind = about.kind,
            namespace = about.namespace,
            name = about.name,
            reason,
            note = event.note,
            "event emitted"
        );
        let record = Event {
            type_: match event.reason.severity() {
                EventSeverity::Normal => EventType::Normal,
                EventSeverity::Warning => EventType::Warning,
            },
            reason: reason.to_owned(),
            note: Some(event.note.clone()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder(event).publish(&record, about).await {
            tracing::warn!(reason, error = %error, "event not written");
        }
    }

    fn recorder(&self, event: &OperatorEvent) -> Recorder {
        let mut recorders = self.recorders.borrow_mut();
        let recorder = match recorders.iter().position(|(cached, _)| cached == event) {
            Some(position) => recorders.remove(position).1,
            None => Recorder::new(self.client.clone(), self.reporter.clone()),
        };
        if recorders.len() >= CACHED_RECORDERS {
            recorders.remove(0);
        }
        recorders.push((event.clone(), recorder.clone()));
        recorder
    }
}
