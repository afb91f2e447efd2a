//! STATUS: whether pods can be added now.

use towpath_local::{NodeState, Reply, Request, ask};

use crate::{
    config::NetConf,
    error::{CniError, STATUS_LIMIT},
};

/// Asks the agent, which knows whether the overlay device and the policy rules are in force.
pub(crate) fn status(conf: &NetConf) -> Result<(), CniError> {
    match ask(&conf.paths, &Request::Status, STATUS_LIMIT).map_err(CniError::AgentAway)? {
        Reply::Ok => {}
        Reply::Error { code, msg, details } => return Err(CniError::Agent { code, msg, details }),
    }
    match NodeState::read(&conf.paths).map_err(CniError::Local)? {
        Some(_) => Ok(()),
        None => Err(CniError::NotSetUp),
    }
}
