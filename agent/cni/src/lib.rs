#![doc = include_str!("../README.md")]

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

/// The output of one call, for standard output.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Success without a result: nothing is printed.
    Silent,
    /// Success with a result object.
    Result(Value),
    /// Failure: an error object; the process must exit with a status other than zero.
    Error(Value),
}

/// Answers one call (CNI specification 1.1, section 2).
///
/// `env` looks up an environment variable; `input` is standard input.
pub fn run(env: &dyn Fn(&str) -> Option<String>, mut input: impl Read) -> Answer {
    let call = match Call::parse(env) {
        Ok(Call::Version) => return Answer::Result(answer::versions()),
        Err(error @ CniError::MissingVariables(_)) => return Answer::Error(error.answer(Version::NEWEST)),
        call => call,
    };
    let mut text = Vec::new();
    if let Err(error) = input.read_to_end(&mut text) {
        return Answer::Error(CniError::ReadInput(error).answer(Version::NEWEST));
    }
    match serve(call, &text) {
        Ok(answer) => answer,
        Err(error) => Answer::Error(error.answer(NetConf::version_of(&text))),
    }
}

/// The order of the reference plugins: a bad configuration is reported before a variable with a bad value.
fn serve(call: Result<Call, CniError>, input: &[u8]) -> Result<Answer, CniError> {
    let conf = NetConf::parse(input)?;
    let call = call?;
    let since = |verb, since| {
        let version = conf.version;
        if version >= since { Ok(()) } else { Err(CniError::VerbTooNew { verb, since, version }) }
    };
    match &call {
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
