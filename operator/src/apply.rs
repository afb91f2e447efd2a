//! Executes a plan. Only this module, the Lease and the EventRecorder write to the API.

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ConfigMap, networking::v1::NetworkPolicy};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use towpath_crds::{NetworkConfig, NetworkConfigStatus, names};

use crate::{
    events::{EventReason, OperatorEvent},
    metrics::{Metrics, WriteLabels},
    plan::{FinalizerChange, Plan, UnmanagedFields, Write},
    recorder::EventRecorder,
    rejection::Rejection,
    render::{Child, ChildKind},
};

/// The write that failed. Earlier writes stand; the next plan starts from there.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Adding or removing the finalizer.
    #[error("change the finalizer of NetworkConfig {name}")]
    Finalizer {
        /// Name of the NetworkConfig.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// Server-side apply of a child.
    #[error("apply {kind} {name}")]
    Apply {
        /// Kind of the child.
        kind: &'static str,
        /// Name of the child.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// Removal of unmanaged fields.
    #[error("remove unmanaged fields from the DaemonSet")]
    RemoveFields(#[source] Box<kube::Error>),
    /// Deletion of a child.
    #[error("delete {kind} {name}")]
    Delete {
        /// Kind of the child.
        kind: &'static str,
        /// Name of the child.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// Publication of the status.
    #[error("publish the status of NetworkConfig {name}")]
    Status {
        /// Name of the NetworkConfig.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
}

impl ApplyError {
    /// The failed write as a metric label.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Finalizer { .. } => "finalizer",
            Self::Apply { .. } => "apply",
            Self::RemoveFields(_) => "strip",
            Self::Delete { .. } => "delete",
            Self::Status { .. } => "status",
        }
    }
}

/// Executes plans, as one field manager.
pub struct Executor {
    client: Client,
    recorder: EventRecorder,
    metrics: Metrics,
}

impl Executor {
    /// An executor; `instance` names this replica in Events.
    #[must_use]
    pub fn new(client: Client, instance: &str, metrics: Metrics) -> Self {
        Self { recorder: EventRecorder::new(client.clone(), instance), client, metrics }
    }

    /// Executes the plan: adds the finalizer, writes children, status and Events, removes the finalizer.
    ///
    /// # Errors
    /// The first write that failed. Events are best-effort: a failed one is logged.
    pub async fn execute(&self, config: &NetworkConfig, plan: &Plan) -> Result<(), ApplyError> {
        if plan.finalizer == FinalizerChange::Add {
            self.finalizer(config, plan.finalizer).await?;
        }
        let written = self.writes(config, plan).await;
        // The status reports the previous failure, so it is published even if a write fails again.
        if let Some(status) = &plan.status {
            self.status(config, status).await?;
        }
        for event in &plan.events {
            self.emit(config, event).await;
        }
        for rejection in &plan.rejections {
            self.emit_on_policy(rejection).await;
        }
        written?;
        if plan.finalizer == FinalizerChange::Remove {
            self.finalizer(config, plan.finalizer).await?;
        }
        Ok(())
    }

    async fn writes(&self, config: &NetworkConfig, plan: &Plan) -> Result<(), ApplyError> {
        for planned in &plan.writes {
            self.write(&planned.write).await?;
            if let Some(event) = &planned.event {
                self.emit(config, event).await;
            }
        }
        Ok(())
    }

    async fn write(&self, write: &Write) -> Result<(), ApplyError> {
        match write {
            Write::Apply(child) => match child.kind {
                ChildKind::ConfigMap => self.apply::<ConfigMap>(child).await,
                ChildKind::DaemonSet => self.apply::<DaemonSet>(child).await,
            },
            Write::RemoveFields(unmanaged) => self.remove_fields(unmanaged).await,
            Write::Delete(ChildKind::ConfigMap, name) => self.delete::<ConfigMap>(ChildKind::ConfigMap, name).await,
            Write::Delete(ChildKind::DaemonSet, name) => self.delete::<DaemonSet>(ChildKind::DaemonSet, name).await,
        }
    }

    fn children<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), names::NAMESPACE)
    }

    fn count(&self, kind: &'static str, step: &'static str) {
        self.metrics.writes.get_or_create(&WriteLabels { kind, step }).inc();
    }

    async fn apply<K>(&self, child: &Child) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let kind = child.kind.as_str();
        self.count(kind, "apply");
        // Forced: the intent for our own objects is complete, and another manager's value is drift.
        let params = PatchParams::apply(names::OPERATOR_FIELD_MANAGER).force();
        let result = self.children::<K>().patch(&child.name, &params, &Patch::Apply(&child.value)).await;
        result.map_err(|source| ApplyError::Apply { kind, name: child.name.clone(), source })?;
        tracing::info!(kind, name = child.name, intent = child.intent, "object applied");
        Ok(())
    }

    async fn remove_fields(&self, unmanaged: &UnmanagedFields) -> Result<(), ApplyError> {
        self.count(ChildKind::DaemonSet.as_str(), "strip");
        let removals: Vec<Value> = unmanaged.fields.iter().map(|path| json!({"op": "remove", "path": path})).collect();
        // List positions are valid only for the generation that was read.
        let test = json!({"op": "test", "path": "/metadata/generation", "value": unmanaged.generation});
        let patch = std::iter::once(test).chain(removals).collect::<Value>();
        let patch = serde_json::from_value(patch)
            .map_err(|e| ApplyError::RemoveFields(Box::new(kube::Error::SerdeError(e))))?;
        let params =
            PatchParams { field_manager: Some(names::OPERATOR_FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let result = self.children::<DaemonSet>().patch(names::AGENT, &params, &Patch::<()>::Json(patch)).await;
        result.map_err(|source| ApplyError::RemoveFields(Box::new(source)))?;
        tracing::info!(fields = ?unmanaged.fields, "unmanaged fields removed");
        Ok(())
    }

    async fn delete<K>(&self, kind: ChildKind, name: &str) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let kind = kind.as_str();
        self.count(kind, "delete");
        match self.children::<K>().delete(name, &DeleteParams::background()).await {
            Ok(_) => tracing::info!(kind, name, "object deleted"),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(source) => return Err(ApplyError::Delete { kind, name: name.to_owned(), source }),
        }
        Ok(())
    }

    async fn status(&self, config: &NetworkConfig, status: &NetworkConfigStatus) -> Result<(), ApplyError> {
        self.count("NetworkConfig", "status");
        let name = config.name_any();
        let patch = json!({
            "apiVersion": names::API_VERSION,
            "kind": "NetworkConfig",
            "metadata": { "name": name },
            "status": status,
        });
        let params = PatchParams::apply(names::OPERATOR_FIELD_MANAGER).force();
        let configs: Api<NetworkConfig> = Api::all(self.client.clone());
        let result = configs.patch_status(&name, &params, &Patch::Apply(&patch)).await;
        result.map(|_| ()).map_err(|source| ApplyError::Status { name, source })
    }

    async fn finalizer(&self, config: &NetworkConfig, step: FinalizerChange) -> Result<(), ApplyError> {
        self.count("NetworkConfig", "finalizer");
        let others = config.finalizers().iter().filter(|f| *f != names::FINALIZER).cloned();
        let ours = (step == FinalizerChange::Add).then(|| names::FINALIZER.to_owned());
        let finalizers: Vec<String> = others.chain(ours).collect();
        // With the version that was read, so that a finalizer that somebody else added meanwhile is not lost.
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": config.resource_version()}});
        let name = config.name_any();
        let configs: Api<NetworkConfig> = Api::all(self.client.clone());
        match configs.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            // Already deleted, as wanted.
            Err(kube::Error::Api(status)) if status.code == 404 && step == FinalizerChange::Remove => Ok(()),
            Err(source) => Err(ApplyError::Finalizer { name, source }),
        }
    }

    async fn emit(&self, config: &NetworkConfig, event: &OperatorEvent) {
        self.count("Event", "event");
        self.recorder.emit(&config.object_ref(&()), event).await;
    }

    /// Best-effort, as every Event. The policy is read for its uid, by which `kubectl describe` finds the Event; for a
    /// deleted policy nothing is emitted.
    async fn emit_on_policy(&self, rejection: &Rejection) {
        let Rejection { namespace, name, reason } = rejection;
        let policies: Api<NetworkPolicy> = Api::namespaced(self.client.clone(), namespace);
        match policies.get_metadata_opt(name).await {
            Ok(Some(found)) => {
                let policy = NetworkPolicy { metadata: found.metadata, ..NetworkPolicy::default() };
                let note = format!("a part of this policy cannot be enforced and allows nothing: {reason}");
                let event = OperatorEvent::new(EventReason::PolicyPartRejected, note);
                self.count("Event", "event");
                self.recorder.emit(&policy.object_ref(&()), &event).await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(namespace, name, error = %error, "event not written: the policy cannot be read");
            }
        }
    }
}
