//! The ear at the kernel's packet log.

use std::{error::Error, io, thread, time::Duration};

use tokio::sync::mpsc::UnboundedSender;
use towpath_core::policy::packet_log::{GROUP, SNAPLEN};
use towpath_dataplane::{
    nflog::{Batch, PacketLog},
    nfnetlink::NetlinkError,
};
use tracing::{debug, warn};

/// Pause before the log is bound again: the last agent may not have ended yet.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the thread that tells of packets that policies dropped or logged. Without it policies hold all the same, so that
/// it fails is said, and tried again.
///
/// # Errors
/// If the thread cannot be started.
pub fn listen<T: From<Batch> + Send + 'static>(to: UnboundedSender<T>) -> io::Result<()> {
    let listen = move || {
        let mut failures = 0_u32;
        while !to.is_closed() {
            let Err(error) = forward(&to, &mut failures) else { return };
            let error = &error as &dyn Error;
            if failures == 0 {
                warn!(error, "packet log not heard; packets that policies drop or log are not told of until it is");
            } else {
                debug!(error, "packet log not heard");
            }
            failures += 1;
            thread::sleep(RETRY);
        }
    };
    thread::Builder::new().name("packet-log".to_owned()).spawn(listen).map(drop)
}

/// Hands on what is heard until nobody listens any more.
fn forward<T: From<Batch>>(to: &UnboundedSender<T>, failures: &mut u32) -> Result<(), NetlinkError> {
    let mut log = PacketLog::bind(GROUP, SNAPLEN)?;
    *failures = 0;
    loop {
        let batch = log.hear(None)?;
        if batch != Batch::default() && to.send(batch.into()).is_err() {
            return Ok(());
        }
    }
}
