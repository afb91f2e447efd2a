//! Builders for Kubernetes objects and events.

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::NetworkPolicy,
};
use serde_json::{Value, json};
use towpath_core::model::NodeName;
use towpath_index::{Dirty, Event, Index, ObjectChange};

/// An object of any watched kind.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    Node(Box<Node>),
    Pod(Box<Pod>),
    Namespace(Box<Namespace>),
    NetworkPolicy(Box<NetworkPolicy>),
}

impl Object {
    pub(crate) fn applied(self) -> Event {
        self.event(ObjectChange::Applied, ObjectChange::Applied, ObjectChange::Applied, ObjectChange::Applied)
    }

    pub(crate) fn deleted(self) -> Event {
        self.event(ObjectChange::Deleted, ObjectChange::Deleted, ObjectChange::Deleted, ObjectChange::Deleted)
    }

    pub(crate) fn listed(self) -> Event {
        self.event(ObjectChange::Listed, ObjectChange::Listed, ObjectChange::Listed, ObjectChange::Listed)
    }

    /// An object of which only the name could be decoded.
    pub(crate) fn undecodable(self) -> Event {
        self.event(
            ObjectChange::Undecodable,
            ObjectChange::Undecodable,
            ObjectChange::Undecodable,
            ObjectChange::Undecodable,
        )
    }

    fn event(
        self,
        node: fn(Node) -> ObjectChange<Node>,
        pod: fn(Pod) -> ObjectChange<Pod>,
        namespace: fn(Namespace) -> ObjectChange<Namespace>,
        policy: fn(NetworkPolicy) -> ObjectChange<NetworkPolicy>,
    ) -> Event {
        match self {
            Self::Node(object) => Event::Node(Box::new(node(*object))),
            Self::Pod(object) => Event::Pod(Box::new(pod(*object))),
            Self::Namespace(object) => Event::Namespace(Box::new(namespace(*object))),
            Self::NetworkPolicy(object) => Event::NetworkPolicy(Box::new(policy(*object))),
        }
    }
}

/// An object from JSON with `kind`, `metadata` and the fields that the test needs.
pub(crate) fn object(json: Value) -> Object {
    match json["kind"].as_str() {
        Some("Node") => Object::Node(serde_json::from_value(json).unwrap()),
        Some("Pod") => Object::Pod(serde_json::from_value(json).unwrap()),
        Some("Namespace") => Object::Namespace(serde_json::from_value(json).unwrap()),
        Some("NetworkPolicy") => Object::NetworkPolicy(serde_json::from_value(json).unwrap()),
        kind => panic!("{kind:?} is not a watched kind"),
    }
}

pub(crate) fn namespace(name: &str, labels: Value) -> Object {
    object(json!({ "kind": "Namespace", "metadata": { "name": name, "labels": labels } }))
}

/// A running pod with its own network namespace.
pub(crate) fn pod(namespace: &str, name: &str, labels: Value, ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": { "containers": [], "nodeName": "me" },
        "status": { "phase": "Running", "podIPs": ips },
    })
}

pub(crate) fn policy(namespace: &str, name: &str, spec: Value) -> Object {
    object(json!({ "kind": "NetworkPolicy", "metadata": { "namespace": namespace, "name": name }, "spec": spec }))
}

pub(crate) fn me() -> NodeName {
    NodeName("me".to_owned())
}

/// One event for each watched kind.
pub(crate) fn of_every_kind(
    node: ObjectChange<Node>,
    pod: ObjectChange<Pod>,
    namespace: ObjectChange<Namespace>,
    policy: ObjectChange<NetworkPolicy>,
) -> [Event; 4] {
    [
        Event::Node(Box::new(node)),
        Event::Pod(Box::new(pod)),
        Event::Namespace(Box::new(namespace)),
        Event::NetworkPolicy(Box::new(policy)),
    ]
}

/// Applies a complete list of every kind.
pub(crate) fn list(index: &mut Index, objects: impl IntoIterator<Item = Object>) -> Dirty {
    let mut dirty = Dirty::nothing();
    let started = of_every_kind(
        ObjectChange::ListStarted,
        ObjectChange::ListStarted,
        ObjectChange::ListStarted,
        ObjectChange::ListStarted,
    );
    let done =
        of_every_kind(ObjectChange::ListDone, ObjectChange::ListDone, ObjectChange::ListDone, ObjectChange::ListDone);
    let listed = objects.into_iter().map(Object::listed);
    started.into_iter().chain(listed).chain(done).for_each(|event| dirty.merge(index.apply(event)));
    dirty
}

/// An index for which every kind has been listed, with these objects.
pub(crate) fn synced(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::new(me());
    assert_eq!(list(&mut index, objects), Dirty::everything(), "the first complete list makes all parts dirty");
    index
}
