//! The CNI plugin: one call of a container runtime, answered from the node's local state.
//!
//! Everything blocks; there is one thread (and one more inside of a pod's namespace). It asks the agent of its node and
//! never the API server.

mod answer;
mod attach;
mod call;
mod check;
mod config;
mod detach;
mod error;
mod gc;
mod lease;
mod status;
mod version;

use std::io::Read;

use serde_json::Value;

use crate::{call::Call, config::NetConf, error::CniError, version::Version};

/// What goes to standard output.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Done, with nothing to say.
    Silent,
    /// Done, with a result.
    Result(Value),
    /// Not done: an error object; the process must end with a status other than zero.
    Error(Value),
}

/// Answers one call (CNI specification 1.1, section 2).
///
/// `env` looks up an environment variable; `input` is standard input.
pub fn run(env: &dyn Fn(&str) -> Option<String>, mut input: impl Read) -> Answer {
    let call = match Call::parse(env) {
        Ok(Call::Version) => return Answer::Result(answer::versions()),
        Ok(call) => call,
        Err(error) => return Answer::Error(error.answer(Version::NEWEST)),
    };
    let mut text = Vec::new();
    if let Err(error) = input.read_to_end(&mut text) {
        return Answer::Error(CniError::ReadInput(error).answer(Version::NEWEST));
    }
    match serve(&call, &text) {
        Ok(answer) => answer,
        Err(error) => Answer::Error(error.answer(NetConf::version_of(&text))),
    }
}

fn serve(call: &Call, input: &[u8]) -> Result<Answer, CniError> {
    let conf = NetConf::parse(input)?;
    let since = |verb, since| {
        let version = conf.version;
        if version >= since { Ok(()) } else { Err(CniError::VerbTooNew { verb, since, version }) }
    };
    match call {
        Call::Add { attachment, netns, pod, uid } => {
            attach::add(&conf, attachment, netns, (pod, uid.as_deref())).map(Answer::Result)
        }
        Call::Del { attachment, netns } => detach::del(&conf, attachment, netns.as_deref()).map(|()| Answer::Silent),
        Call::Check { attachment, netns } => {
            since("CHECK", Version::V0_4_0)?;
            check::check(&conf, attachment, netns).map(|()| Answer::Silent)
        }
        Call::Status => {
            since("STATUS", Version::V1_1_0)?;
            status::status(&conf).map(|()| Answer::Silent)
        }
        Call::Gc => {
            since("GC", Version::V1_1_0)?;
            gc::gc(&conf).map(|()| Answer::Silent)
        }
        Call::Version => Ok(Answer::Result(answer::versions())),
    }
}
