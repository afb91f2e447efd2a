//! A batch: requests that the kernel executes all or none (nf_tables only; net/netfilter/nfnetlink.c,
//! `nfnetlink_rcv_batch`). It is sent in one piece between two messages that mark its begin and end, and all answers are
//! there when the system call that sends it returns.

use netlink_packet_core::NLM_F_ACK;
use towpath_podlink::netlink::NetlinkError;

use super::{MessageType, NfnetlinkRequest, NfnetlinkSocket};

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`: netlink's own numbers, of no subsystem.
const BEGIN: MessageType = MessageType { subsystem: 0, number: 16 };
const END: MessageType = MessageType { subsystem: 0, number: 17 };

/// What the kernel does with a batch whose requests are all valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchMode {
    /// It commits the batch.
    Commit,
    /// It checks the batch and aborts: without `NFNL_MSG_BATCH_END` everything is undone.
    DryRun,
}

/// Why a batch was not executed.
#[derive(Debug)]
pub struct BatchError {
    /// The index of the first rejected request; `None` if the batch as a whole was rejected, or the socket failed.
    pub request: Option<usize>,
    /// The kernel's answer, or the error of the socket.
    pub source: NetlinkError,
}

impl NfnetlinkSocket {
    /// Executes requests of one subsystem, all or none.
    ///
    /// # Errors
    /// Which request was rejected first, and why. If the socket failed it is not known whether the batch was executed.
    pub fn batch(&mut self, subsystem: u8, requests: &[NfnetlinkRequest], mode: BatchMode) -> Result<(), BatchError> {
        let whole = |source| BatchError { request: None, source };
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let bound = |kind| NfnetlinkRequest { resource: u16::from(subsystem), ..NfnetlinkRequest::new(kind, 0) };
        let (begin, end) = (bound(BEGIN), (mode == BatchMode::Commit).then(|| bound(END)));
        // The last request alone asks for an acknowledgement; a rejected one is answered unasked.
        let flagged = requests.iter().enumerate().map(|(index, r)| (r, if index == last { NLM_F_ACK } else { 0 }));
        let all = std::iter::once((&begin, 0)).chain(flagged).chain(end.iter().map(|end| (end, 0)));
        let first = self.inner.send_batch(all).map_err(whole)?;
        let mut rejected: Option<BatchError> = None;
        let mut done = false;
        let read = self.inner.drain_acknowledgements(|sequence, result| {
            let place = sequence.wrapping_sub(first) as usize;
            // Answers to an earlier call that timed out are dropped.
            if place > requests.len() {
                return;
            }
            // The first message is the batch's own.
            let request = place.checked_sub(1);
            match result {
                Ok(()) => done |= request == Some(last),
                Err(source) => {
                    rejected.get_or_insert(BatchError { request, source });
                }
            }
        });
        match (rejected, read) {
            (Some(rejected), _) => Err(rejected),
            (None, Err(error)) => Err(whole(error)),
            (None, Ok(())) if done => Ok(()),
            (None, Ok(())) => Err(whole(NetlinkError::Timeout)),
        }
    }
}
