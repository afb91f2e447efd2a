//! Leader election on a Lease (coordination.k8s.io/v1), as client-go does it.
//!
//! Clocks of other machines are not trusted: a Lease has expired when its record has not changed for its duration by the
//! local clock. A leader that cannot renew for ten seconds becomes standby, and its reconcile is cancelled, before another
//! replica can take over. The process keeps running: a minute without the API server is no reason to restart. On shutdown
//! the Lease is released, so that the standby takes over at its next attempt.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use towpath_crds::names;

use crate::metrics::Metrics;

/// How long a Lease is valid after its last renewal, in seconds.
const LEASE_DURATION_SECONDS: i32 = 15;
/// How long a leader leads without a renewal. Shorter than the Lease's duration by more than two retry periods.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two attempts to acquire or renew.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Longest time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Whether this replica leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It follows the watches and executes no plan.
    Standby,
    /// It executes plans.
    Leading,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseAction {
    /// It does not exist: create it.
    Create,
    /// It is released or expired: take it.
    Take,
    /// This replica holds it: renew it.
    Renew,
    /// Another replica holds it: wait.
    Wait,
}

/// What to do about this Lease, whose record has not changed for `unchanged`.
fn next_action(lease: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> LeaseAction {
    let Some(lease) = lease else { return LeaseAction::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let duration = u64::try_from(lease.lease_duration_seconds.unwrap_or(LEASE_DURATION_SECONDS)).unwrap_or(0);
    match holder {
        "" => LeaseAction::Take,
        holder if holder == me => LeaseAction::Renew,
        _ if unchanged >= Duration::from_secs(duration) => LeaseAction::Take,
        _ => LeaseAction::Wait,
    }
}

/// The leader election, from the view of the replica named `me`.
pub struct Election {
    leases: Api<Lease>,
    me: String,
    metrics: Metrics,
}

/// The last observed record, and since when it has not changed.
struct ObservedRecord {
    record: Option<LeaseSpec>,
    since: Instant,
}

impl Election {
    /// An election. The client must not retry by itself: a renewal that is retried for too long is a lost Lease.
    #[must_use]
    pub fn new(client: Client, me: &str, metrics: Metrics) -> Self {
        Self { leases: Api::namespaced(client, names::NAMESPACE), me: me.to_owned(), metrics }
    }

    /// Runs until `stop` changes, then releases the Lease.
    pub async fn run(&self, leadership: &watch::Sender<Leadership>, mut stop: watch::Receiver<bool>) {
        let mut observed = ObservedRecord { record: None, since: Instant::now() };
        let mut renewed: Option<Instant> = None;
        loop {
            let started = Instant::now();
            let outcome = match timeout(REQUEST_TIMEOUT, self.acquire_or_renew(&mut observed)).await {
                Ok(Ok(leadership)) => Some(leadership),
                Ok(Err(error)) => {
                    tracing::warn!(error = %error, "lease request failed");
                    None
                }
                Err(_) => {
                    tracing::warn!(seconds = REQUEST_TIMEOUT.as_secs(), "lease request timed out");
                    None
                }
            };
            let expired = renewed.is_none_or(|at| at.elapsed() >= RENEW_DEADLINE);
            match outcome {
                Some(Leadership::Leading) => renewed = Some(started),
                Some(Leadership::Standby) => renewed = None,
                None if expired => renewed = None,
                None => {}
            }
            self.publish(leadership, if renewed.is_some() { Leadership::Leading } else { Leadership::Standby });
            tokio::select! {
                _ = stop.changed() => break,
                () = sleep(RETRY_PERIOD) => {}
            }
        }
        if renewed.is_some() {
            self.release().await;
        }
    }

    fn publish(&self, leadership: &watch::Sender<Leadership>, now: Leadership) {
        let changed = leadership.send_if_modified(|was| std::mem::replace(was, now) != now);
        if changed {
            self.metrics.leader.set(i64::from(now == Leadership::Leading));
            tracing::info!(pod = self.me, leadership = ?now, "leadership changed");
        }
    }

    async fn acquire_or_renew(&self, observed: &mut ObservedRecord) -> Result<Leadership, kube::Error> {
        let have = self.leases.get_opt(names::OPERATOR).await?;
        let record = have.as_ref().and_then(|lease| lease.spec.clone());
        if record != observed.record {
            *observed = ObservedRecord { record: record.clone(), since: Instant::now() };
        }
        let action = next_action(record.as_ref(), &self.me, observed.since.elapsed());
        let now = MicroTime(Timestamp::now());
        let former = record.unwrap_or_default();
        let spec = match action {
            LeaseAction::Wait => return Ok(Leadership::Standby),
            LeaseAction::Renew => LeaseSpec { renew_time: Some(now), ..former },
            LeaseAction::Create | LeaseAction::Take => LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: Some(LEASE_DURATION_SECONDS),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(former.lease_transitions.unwrap_or(0) + 1),
                ..LeaseSpec::default()
            },
        };
        let written = match have {
            None => self.leases.create(&PostParams::default(), &lease(spec)).await,
            // The object has the resourceVersion that was read: of two replicas the second gets a conflict.
            Some(have) => {
                let want = Lease { spec: Some(spec), ..have };
                self.leases.replace(names::OPERATOR, &PostParams::default(), &want).await
            }
        };
        match written {
            Ok(_) => Ok(Leadership::Leading),
            Err(kube::Error::Api(status)) if status.code == 409 && action != LeaseAction::Renew => {
                Ok(Leadership::Standby)
            }
            Err(error) => Err(error),
        }
    }

    async fn release(&self) {
        let release = async {
            let Some(have) = self.leases.get_opt(names::OPERATOR).await? else { return Ok(()) };
            let former = have.spec.clone().unwrap_or_default();
            if former.holder_identity.as_deref() != Some(self.me.as_str()) {
                return Ok(());
            }
            let spec = LeaseSpec { holder_identity: None, renew_time: Some(MicroTime(Timestamp::now())), ..former };
            let want = Lease { spec: Some(spec), ..have };
            self.leases.replace(names::OPERATOR, &PostParams::default(), &want).await.map(|_| ())
        };
        match timeout(REQUEST_TIMEOUT, release).await {
            Ok(Ok(())) => tracing::info!("lease released"),
            Ok(Err(error)) => tracing::warn!(error = %error, "lease not released: it expires by itself"),
            Err(_) => tracing::warn!("lease not released in time: it expires by itself"),
        }
        self.metrics.leader.set(0);
    }
}

fn lease(spec: LeaseSpec) -> Lease {
    let metadata = ObjectMeta {
        name: Some(names::OPERATOR.to_owned()),
        namespace: Some(names::NAMESPACE.to_owned()),
        ..ObjectMeta::default()
    };
    Lease { metadata, spec: Some(spec) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_if_it_is_released_or_its_record_has_not_changed_for_its_duration() {
        let held = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let free = LeaseSpec::default();
        let cases = [
            (None, 0, LeaseAction::Create, "there is none"),
            (Some(free), 0, LeaseAction::Take, "released"),
            (Some(held("")), 0, LeaseAction::Take, "released, as others write it"),
            (Some(held("me")), 0, LeaseAction::Renew, "ours"),
            (Some(held("me")), 99, LeaseAction::Renew, "ours, after a restart of the container"),
            (Some(held("other")), 14, LeaseAction::Wait, "it may still renew"),
            (Some(held("other")), 15, LeaseAction::Take, "it has expired"),
        ];
        for (lease, unchanged, want, why) in cases {
            assert_eq!(next_action(lease.as_ref(), "me", Duration::from_secs(unchanged)), want, "{why}");
        }
    }
}
