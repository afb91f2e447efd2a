//! Writes the node's log lines: what happened, on what, what follows, what to do.

use towpath_node::{
    FailedStep, LogLine,
    denials::PacketLine,
    explain::{Denial, LoggedPacket},
};
use tracing::{debug, error, info, warn};

/// Writes a line at its level: a warning needs a look, an error needs action.
pub(crate) fn write(line: &LogLine) {
    match line {
        LogLine::Failed { step, error, retry_in, first } => {
            let retry_ms = retry_in.as_millis();
            let failed = match step {
                FailedStep::ReadBack => "kernel state not read back; tried again",
                FailedStep::Apply => "kernel not changed, or only in part; tried again",
                FailedStep::Reevaluate => "established connections not evaluated again; tried again",
                FailedStep::Flush => "conntrack entries of addresses not flushed; tried again before a pod gets one",
            };
            // The first failure in a row is enough to know.
            if *first {
                warn!(error, retry_ms, "{failed}");
            } else {
                debug!(error, retry_ms, "{failed}");
            }
        }
        LogLine::CniReady { mtu } => info!(mtu, "CNI ready: pods can be added"),
        LogLine::CniNotReady { error } => {
            error!(error, "CNI not ready: its files are not written, so that no pod can be added; tried again");
        }
        LogLine::ConditionChanged { condition, status, reason, detail } => {
            info!(condition, status, reason, detail, "condition changed");
        }
        LogLine::DriftRepaired { repairs, first } => {
            info!(repairs, first, "kernel objects of ours were changed by another process; repaired");
        }
        LogLine::PodVanished { attachment } => {
            info!(pod = %attachment, "endpoint file removed without a DEL; the pod's rules are removed");
        }
        LogLine::PodTimedOut { attachment, reason } => {
            warn!(pod = %attachment, reason, "pod admission timed out; the runtime tries again");
        }
        LogLine::Revoked { count, took, examples } => {
            info!(revoked = count, took_ms = took.as_millis(), examples, "connections revoked: policies deny them now");
        }
        LogLine::Restored { count, took } => {
            info!(restored = count, took_ms = took.as_millis(), "connections restored: policies allow them again");
        }
    }
}

/// Writes a line about denied packets.
pub(crate) fn write_denied(line: &PacketLine<Denial>) {
    match line {
        PacketLine::First(denial, packets) => {
            let Denial { pod, direction, peer, payload, cause } = denial;
            info!(%pod, %direction, %peer, %payload, %cause, packets, "packets denied");
        }
        PacketLine::Continued(denial, packets) => {
            let Denial { pod, direction, peer, payload, cause } = denial;
            info!(%pod, %direction, %peer, %payload, %cause, packets, "packets denied, continued");
        }
        PacketLine::Suppressed(packets) => info!(packets, "packets denied, of more kinds than are logged one by one"),
    }
}

/// Writes a line about packets that policy rules log.
pub(crate) fn write_logged(line: &PacketLine<LoggedPacket>) {
    match line {
        PacketLine::First(packet, packets) => {
            let LoggedPacket { pod, direction, peer, payload, cause: by } = packet;
            info!(%pod, %direction, %peer, %payload, %by, packets, "packets logged by policy");
        }
        PacketLine::Continued(packet, packets) => {
            let LoggedPacket { pod, direction, peer, payload, cause: by } = packet;
            info!(%pod, %direction, %peer, %payload, %by, packets, "packets logged by policy, continued");
        }
        PacketLine::Suppressed(packets) => {
            info!(packets, "packets logged by policy, of more kinds than are logged one by one");
        }
    }
}

#[cfg(test)]
mod tests;
