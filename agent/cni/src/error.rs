//! The plugin's errors and their CNI error codes.

use std::{error::Error, io, time::Duration};

use serde_json::{Value, json};
use towpath_core::{
    ipam::IpamError,
    model::{ParseError, PodId},
};
use towpath_local::{AddressError, AskError, LocalError};
use towpath_podlink::{PodLinkError, netns::NetnsError};

use crate::version::Version;

/// An error of the plugin. The text is CNI's `msg`, the sources are its `details`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// Variables that the command requires are not set.
    #[error("required environment variables are missing: {}", .0.join(", "))]
    MissingVariables(Vec<&'static str>),
    /// A variable has an invalid value.
    #[error("{name} is not valid")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        source: ParseError,
    },
    /// CNI has no such command.
    #[error("unknown CNI_COMMAND {0:?}: expected ADD, DEL, CHECK, STATUS, GC or VERSION")]
    UnknownCommand(String),
    /// Standard input cannot be read.
    #[error("read the network configuration from standard input")]
    ReadInput(#[source] io::Error),
    /// Standard input is not a network configuration in JSON.
    #[error("standard input is not a network configuration in JSON")]
    Decode(#[source] serde_json::Error),
    /// The configuration lacks a value or has an invalid one.
    #[error("invalid network configuration: {0}")]
    Config(String),
    /// The plugin does not support the configuration's version.
    #[error("incompatible CNI versions: the configuration is {0:?}, the plugin supports {supported}", supported = Version::supported())]
    IncompatibleVersion(String),
    /// The configuration's version does not have the command.
    #[error("{verb} needs CNI {since}, but the configuration has cniVersion {version}")]
    VerbTooNew {
        /// The command, as in `CNI_COMMAND`.
        verb: &'static str,
        /// The first version that has it.
        since: Version,
        /// The configuration's version.
        version: Version,
    },
    /// The pod's network namespace cannot be used.
    #[error("use the pod's network namespace")]
    Netns(#[source] NetnsError),
    /// The agent has not set up the node.
    #[error(
        "the network of this node is not ready: its agent has not set it up yet; see the towpath-agent pod of this node"
    )]
    NodeNotReady,
    /// The same, as the answer to STATUS.
    #[error("the network of this node is not ready: its agent has not set it up")]
    NotSetUp,
    /// A file of the node's local state could not be used.
    #[error("use the node's local state")]
    Local(#[source] LocalError),
    /// An address file could not be used.
    #[error("use the node's address files")]
    Addresses(#[source] AddressError),
    /// The node has no address for the pod.
    #[error("no address for the pod on this node")]
    Ipam {
        /// The reason.
        source: IpamError,
        /// Addresses that stay in use because their files cannot be read.
        unreadable: Vec<String>,
    },
    /// The pod has an interface on this network under another name.
    #[error("pod {pod} has the interface {ifname} on this network already; it can have only one")]
    SecondInterface {
        /// The pod.
        pod: PodId,
        /// The name of its interface.
        ifname: String,
    },
    /// The interface exists.
    #[error("interface {0} exists in the pod already")]
    InterfaceExists(String),
    /// The veth, its addresses or its routes could not be set up, read or removed.
    #[error("set up, read or remove the pod's interface")]
    Link(#[source] PodLinkError),
    /// The agent is not running or does not answer ADD.
    #[error("the agent of this node did not put the pod's policy rules in force")]
    Ask(#[source] AskError),
    /// The agent answered with an error, which is passed on.
    #[error("{msg}")]
    Agent {
        /// The agent's CNI error code.
        code: u32,
        /// The agent's message.
        msg: String,
        /// The agent's details; may be empty.
        details: String,
    },
    /// The agent is not running or does not answer STATUS.
    #[error("the agent of this node does not answer")]
    AgentAway(#[source] AskError),
    /// CHECK found differences.
    #[error("the pod's network differs from what was set up: {}", .0.join("; "))]
    Differs(Vec<String>),
    /// GC could not remove everything.
    #[error("not removed: {}", .0.join("; "))]
    Incomplete(Vec<String>),
}

/// How long ADD waits for the agent: long enough for one that restarts.
pub(crate) const ADD_LIMIT: Duration = Duration::from_secs(10);

/// How long STATUS waits for the agent.
pub(crate) const STATUS_LIMIT: Duration = Duration::from_secs(3);

impl CniError {
    /// The error code (CNI specification, "Error"; 100 and above are ours).
    #[must_use]
    pub(crate) const fn code(&self) -> u32 {
        match self {
            Self::IncompatibleVersion(_) | Self::VerbTooNew { .. } => 1,
            Self::MissingVariables(_) | Self::BadVariable { .. } | Self::UnknownCommand(_) => 4,
            Self::ReadInput(_) | Self::Local(_) | Self::Addresses(_) => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::Netns(_) => 8,
            Self::NodeNotReady | Self::Ask(_) => 11,
            Self::AgentAway(_) | Self::NotSetUp => 50,
            Self::Agent { code, .. } => *code,
            Self::Ipam { .. } => 100,
            Self::Link(_) => 101,
            Self::InterfaceExists(_) | Self::SecondInterface { .. } => 102,
            Self::Differs(_) => 103,
            Self::Incomplete(_) => 104,
        }
    }

    /// The error object for the runtime, with the configuration's version.
    #[must_use]
    pub(crate) fn answer(&self, version: Version) -> Value {
        let details = self.details();
        let mut answer = json!({"cniVersion": version.as_str(), "code": self.code(), "msg": self.to_string()});
        if !details.is_empty() {
            answer["details"] = details.into();
        }
        answer
    }

    /// Message and details on one line, for a list of errors.
    #[must_use]
    pub(crate) fn with_details(&self) -> String {
        match self.details() {
            details if details.is_empty() => self.to_string(),
            details => format!("{self}: {details}"),
        }
    }

    fn details(&self) -> String {
        if let Self::Agent { details, .. } = self {
            return details.clone();
        }
        let mut parts = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            parts.push(error.to_string());
            cause = error.source();
        }
        let mut details = parts.join(": ");
        if let Self::Ipam { unreadable, .. } = self
            && !unreadable.is_empty()
        {
            details += "; in use because their files cannot be read: ";
            details += &unreadable.join(", ");
        }
        details
    }
}
