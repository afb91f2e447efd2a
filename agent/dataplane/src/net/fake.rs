//! An executing fake of the kernel's network: it applies changes to a value and rejects what the kernel would reject.

use std::{fmt, io};

use nix::errno::Errno;
use towpath_core::overlay::{Kernel, NetOp, NetOpError};

use super::{ApplyError, Net, NetlinkError, ReadBackError};

/// Whether a change is rejected.
type Fault = Box<dyn Fn(&NetOp) -> bool + Send>;

/// An executing fake of [`Net`].
#[derive(Default)]
pub struct FakeNet {
    /// Its state. A test may change it by hand, as another program would.
    pub kernel: Kernel,
    /// All changes that were applied, in order.
    pub log: Vec<NetOp>,
    fault: Option<Fault>,
}

impl FakeNet {
    /// A fake with a state.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, log: Vec::new(), fault: None }
    }

    /// Rejects (EBUSY) every change for which `fault` returns true, until [`FakeNet::heal`].
    pub fn reject(&mut self, fault: impl Fn(&NetOp) -> bool + Send + 'static) {
        self.fault = Some(Box::new(fault));
    }

    /// Rejects no more than the kernel would.
    pub fn heal(&mut self) {
        self.fault = None;
    }
}

impl fmt::Debug for FakeNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeNet").field("kernel", &self.kernel).field("log", &self.log).finish_non_exhaustive()
    }
}

fn rejected(message: String, errno: Errno) -> NetlinkError {
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
                Err(rejected("fault of the test".to_owned(), Errno::EBUSY))
            } else {
                self.kernel.execute(op).map_err(|refusal| rejected(refusal.to_string(), errno(&refusal)))
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
    fn it_applies_changes_rejects_those_of_the_fault_and_heals() {
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
        net.reject(|op| matches!(op, NetOp::SetMtu { mtu: 1400, .. }));
        let failed = net.apply(&[set(1400), set(1399), NetOp::SetUp { link: IfName::new("none").unwrap() }]);
        let texts: Vec<_> = failed.iter().map(|error| format!("{error}: {}", error.source)).collect();
        assert_eq!(
            texts,
            [
                "could not set the MTU of uplink to 1400: rejected by the kernel (fault of the test)",
                "could not set none up: rejected by the kernel (there is no link none)",
            ]
        );
        assert_eq!(net.log, [set(1399)], "the others go on");
        net.heal();
        assert!(net.apply(&[set(1400)]).is_empty());
        assert_eq!(net.read_back().unwrap().links[&IfIndex(2)].mtu, 1400);
    }
}
