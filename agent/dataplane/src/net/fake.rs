//! A kernel for tests: it carries out changes on a value, with the real one's refusals, and fails where it is told to.

use std::{fmt, io};

use nix::errno::Errno;
use towpath_core::overlay::{Kernel, Op, Refusal};

use super::{ApplyError, Net, NetlinkError, ReadBackError};

/// Says of a change whether it is refused.
type Fault = Box<dyn Fn(&Op) -> bool + Send>;

/// An executing fake of [`Net`].
#[derive(Default)]
pub struct FakeNet {
    /// What it holds. A test may change it by hand, as another program would.
    pub kernel: Kernel,
    /// All changes that were carried out, in order.
    pub log: Vec<Op>,
    fault: Option<Fault>,
}

impl FakeNet {
    /// One that holds something.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, log: Vec::new(), fault: None }
    }

    /// Refuses (EBUSY) all changes of which the function says so, until [`FakeNet::heal`].
    pub fn refuse(&mut self, fault: impl Fn(&Op) -> bool + Send + 'static) {
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
    NetlinkError::Refused { message: Some(message), source: io::Error::from(errno) }
}

fn errno(refusal: &Refusal) -> Errno {
    match refusal {
        Refusal::NoLink(_) => Errno::ENODEV,
        Refusal::LinkDown(_) => Errno::ENETDOWN,
        Refusal::GatewayElsewhere => Errno::EINVAL,
        Refusal::Exists => Errno::EEXIST,
        Refusal::Missing => Errno::ENOENT,
        Refusal::WrongKind(_) => Errno::EOPNOTSUPP,
    }
}

impl Net for FakeNet {
    fn read_back(&mut self) -> Result<Kernel, ReadBackError> {
        Ok(self.kernel.clone())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<ApplyError> {
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
