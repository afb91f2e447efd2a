//! Leader election on a Lease (coordination.k8s.io/v1), as client-go does it.
//!
//! Clocks of other machines are not trusted: a lease has expired when its record has not changed for its duration by
//! our own clock. A leader that could not renew for ten seconds stands back, and its work is cut off, before another
//! can have taken over. It stays alive: an API server that is away for a minute is no reason to restart. On a planned end the lease is released, so that the standby takes over at its next look.

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

/// How long a lease holds after its last renewal, in seconds.
const LEASE_DURATION_SECONDS: i32 = 15;
/// How long a leader goes on without a renewal. Shorter than the lease by more than two looks.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two looks.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Longest time for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Whether this replica works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It waits, and watches.
    Standby,
    /// It works.
    Leading,
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseAction {
    /// There is none: create it.
    Create,
    /// Nobody holds it, or not any more: take it.
    Take,
    /// We hold it: renew it.
    Renew,
    /// Another holds it.
    Wait,
}

/// What to do about this lease, which has not changed for `unchanged`.
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

/// Takes part in the election under the name `me`.
pub struct Election {
    leases: Api<Lease>,
    me: String,
    metrics: Metrics,
}

/// The last record observed, and since when it stands.
struct ObservedRecord {
    record: Option<LeaseSpec>,
    since: Instant,
}

impl Election {
    /// An election. The client must not retry by itself: a renewal that hangs is a lost lease.
    #[must_use]
    pub fn new(client: Client, me: &str, metrics: Metrics) -> Self {
        Self { leases: Api::namespaced(client, names::NAMESPACE), me: me.to_owned(), metrics }
    }

    /// Runs until `stop`, then releases the lease.
    pub async fn run(&self, tell: &watch::Sender<Leadership>, mut stop: watch::Receiver<bool>) {
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
                    tracing::warn!(seconds = REQUEST_TIMEOUT.as_secs(), "lease request took too long");
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
            self.publish(tell, if renewed.is_some() { Leadership::Leading } else { Leadership::Standby });
            tokio::select! {
                _ = stop.changed() => break,
                () = sleep(RETRY_PERIOD) => {}
            }
        }
        if renewed.is_some() {
            self.release().await;
        }
    }

    fn publish(&self, tell: &watch::Sender<Leadership>, now: Leadership) {
        let changed = tell.send_if_modified(|was| std::mem::replace(was, now) != now);
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
            // The object carries the version that was read: whoever comes second is refused.
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
            Ok(Err(error)) => tracing::warn!(error = %error, "lease was not released: it runs out by itself"),
            Err(_) => tracing::warn!("lease was not released in time: it runs out by itself"),
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
    fn a_lease_is_taken_only_when_nobody_holds_it_or_its_record_stands_still() {
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
            (Some(held("other")), 15, LeaseAction::Take, "it has gone"),
        ];
        for (lease, unchanged, want, why) in cases {
            assert_eq!(next_action(lease.as_ref(), "me", Duration::from_secs(unchanged)), want, "{why}");
        }
    }
}
