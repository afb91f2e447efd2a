//! A kernel for tests: it carries out changes on a value, with the real one's refusals, and fails where it is told to.

use std::{fmt, io};

use nix::errno::Errno;
use towpath_core::overlay::{Kernel, NetOp, NetOpError};

use super::{ApplyError, Net, NetlinkError, ReadBackError};

/// Says of a change whether it is refused.
type Fault = Box<dyn Fn(&NetOp) -> bool + Send>;

/// An executing fake of [`Net`].
#[derive(Default)]
pub struct FakeNet {
    /// What it holds. A test may change it by hand, as another program would.
    pub kernel: Kernel,
    /// All changes that were carried out, in order.
    pub log: Vec<NetOp>,
    fault: Option<Fault>,
}

impl FakeNet {
    /// One that holds something.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, log: Vec::new(), fault: None }
    }

    /// Refuses (EBUSY) all changes of which the function says so, until [`FakeNet::heal`].
    pub fn refuse(&mut self, fault: impl Fn(&NetOp) -> bool + Send + 'static) {
        self.fault = Some(Box::new(fault));
    }

    /// Refuses nothing any more.
    pub fn heal(&mut self) {
        self.fault = None;
    }
}

impl fmt::Debug for FakeNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeNet").field("kernel", &self.kernel).field("log", &self.log).finish_non_exhaustive()
    }
}

fn refused(message: String, errno: Errno) -> NetlinkError {
    NetlinkError::Rejected { message: Some(message), source: io::Error::from(errno) }
}

fn errno(refusal: &NetOpError) -> Errno {
    match refusal {
        NetOpError::NoLink(_) => Errno::ENODEV,
        NetOpError::LinkDown(_) => Errno::ENETDOWN,
        NetOpError::GatewayOnOtherLink => Errno::EINVAL,
        NetOpError::Exists => Errno::EEXIST,
        NetOpError::NotFound => Errno::ENOENT,
        NetOpError::NotVxlan(_) => Errno::EOPNOTSUPP,
    }
}

impl Net for FakeNet {
    fn read_back(&mut self) -> Result<Kernel, ReadBackError> {
        Ok(self.kernel.clone())
    }

    fn apply(&mut self, ops: &[NetOp]) -> Vec<ApplyError> {
        let mut failed = Vec::new();
        for op in ops {
            let result = if self.fault.as_ref().is_some_and(|fault| fault(op)) {
                Err(refused("told to".to_owned(), Errno::EBUSY))
            } else {
                self.kernel.execute(op).map_err(|refusal| refused(refusal.to_string(), errno(&refusal)))
            };
            match result {
                Ok(()) => self.log.push(op.clone()),
                Err(source) => failed.push(ApplyError { op: op.clone(), advice: "", source: source.into() }),
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::{
        names::IfName,
        overlay::{IfIndex, Link, LinkKind, LinkState},
    };

    use super::*;

    #[test]
    fn it_carries_out_refuses_what_it_is_told_to_and_heals() {
        let name = IfName::new("uplink").unwrap();
        let link = Link {
            name: name.clone(),
            mac: None,
            mtu: 1500,
            state: LinkState::Up,
            kind: LinkKind::Other("device".to_owned()),
        };
        let mut net = FakeNet::new(Kernel { links: [(IfIndex(2), link)].into(), ..Kernel::default() });
        let set = |mtu| NetOp::SetMtu { link: name.clone(), mtu };
        net.refuse(|op| matches!(op, NetOp::SetMtu { mtu: 1400, .. }));
        let failed = net.apply(&[set(1400), set(1399), NetOp::SetUp { link: IfName::new("none").unwrap() }]);
        let texts: Vec<_> = failed.iter().map(|error| format!("{error}: {}", error.source)).collect();
        assert_eq!(
            texts,
            [
                "could not set the MTU of uplink to 1400: rejected by the kernel (told to)",
                "could not set none up: rejected by the kernel (there is no link none)",
            ]
        );
        assert_eq!(net.log, [set(1399)], "the others go on");
        net.heal();
        assert!(net.apply(&[set(1400)]).is_empty());
        assert_eq!(net.read_back().unwrap().links[&IfIndex(2)].mtu, 1400);
    }
}
