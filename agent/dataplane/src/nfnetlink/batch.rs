//! A batch: requests that the kernel carries out all or none (nf_tables only; net/netfilter/nfnetlink.c,
//! `nfnetlink_rcv_batch`). It goes out in one piece between two messages that mark its bounds, and all answers are there
//! when the system call that sends it returns.

use netlink_packet_core::{NLM_F_ACK, NLMSG_ERROR};

use super::{Kind, Request, Socket};
use towpath_podlink::netlink::{HEADER, NetlinkError, acknowledgement};

/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`: netlink's own numbers, of no subsystem.
const BEGIN: Kind = Kind { subsystem: 0, number: 16 };
const END: Kind = Kind { subsystem: 0, number: 17 };

/// What becomes of a batch whose requests are all good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is carried out.
    Commit,
    /// It is only tried: without a message that marks its end the kernel takes everything back.
    Try,
}

/// Why a batch was not carried out.
#[derive(Debug)]
pub struct BatchRefused {
    /// Which request was refused first; `None` if it was the batch as a whole, or the socket.
    pub place: Option<usize>,
    /// Why.
    pub source: NetlinkError,
}

impl Socket {
    /// Carries requests of one subsystem out, all or none.
    ///
    /// # Errors
    /// Which request was refused first, and why. If the socket failed it is not known whether the batch was carried
    /// out.
    pub fn batch(&mut self, subsystem: u8, requests: &[Request], purpose: Purpose) -> Result<(), BatchRefused> {
        let whole = |source| BatchRefused { place: None, source };
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let bound = |kind| Request { resource: u16::from(subsystem), ..Request::new(kind, 0) };
        let begin = self.next_sequence();
        let mut bytes = Vec::with_capacity(requests.iter().map(|request| request.body.len() + 20).sum::<usize>() + 64);
        bound(BEGIN).emit(0, begin, &mut bytes);
        for (place, request) in requests.iter().enumerate() {
            let sequence = self.next_sequence();
            request.emit(if place == last { NLM_F_ACK } else { 0 }, sequence, &mut bytes);
        }
        let end = self.next_sequence();
        if purpose == Purpose::Commit {
            bound(END).emit(0, end, &mut bytes);
        }
        self.send_at_once(&bytes).map_err(whole)?;
        let mut refused: Option<BatchRefused> = None;
        let mut done = false;
        let read = self.receive_all(|header, payload| {
            let place = header.sequence_number.wrapping_sub(begin) as usize;
            // What belongs to an earlier call that was given up is passed over.
            if header.message_type != NLMSG_ERROR || place > requests.len() {
                return;
            }
            // The first message is the batch's own.
            let place = place.checked_sub(1);
            match acknowledgement(payload, 4 + HEADER) {
                Ok(()) => done |= place == Some(last),
                Err(source) => {
                    refused.get_or_insert(BatchRefused { place, source });
                }
            }
        });
        match (refused, read) {
            (Some(refused), _) => Err(refused),
            (None, Err(error)) => Err(whole(error)),
            (None, Ok(())) if done => Ok(()),
            (None, Ok(())) => Err(whole(NetlinkError::Timeout)),
        }
    }
}
