//! Everything that can go wrong, and the number by which the runtime knows it.

use std::{error::Error, io, time::Duration};

use serde_json::{Value, json};
use towpath_core::{
    ipam::IpamError,
    model::{ParseError, PodId},
};
use towpath_local::{AddressError, AskError, LocalError};
use towpath_podlink::{PodLinkError, netns::NetnsError};

use crate::version::Version;

/// Why the plugin did not do what it was asked. The text is CNI's `msg`, the sources are its `details`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// Variables that the command needs.
    #[error("required environment variables are missing: {}", .0.join(", "))]
    MissingVariables(Vec<&'static str>),
    /// A variable with an impossible value.
    #[error("{name} is not valid")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        source: ParseError,
    },
    /// A command that CNI does not have.
    #[error("unknown CNI_COMMAND {0:?}: expected ADD, DEL, CHECK, STATUS, GC or VERSION")]
    UnknownCommand(String),
    /// Standard input cannot be read.
    #[error("read the network configuration from standard input")]
    ReadInput(#[source] io::Error),
    /// Standard input is not what it should be.
    #[error("standard input is not a network configuration in JSON")]
    Decode(#[source] serde_json::Error),
    /// The configuration lacks something or has something impossible.
    #[error("invalid network configuration: {0}")]
    Config(String),
    /// A version that we do not speak.
    #[error("incompatible CNI versions: the configuration is {0:?}, the plugin supports {supported}", supported = Version::supported())]
    IncompatibleVersion(String),
    /// A command that the configuration's version does not have.
    #[error("{verb} is of CNI {since}, but the configuration is of {version}")]
    VerbTooNew {
        /// The command.
        verb: &'static str,
        /// The first version that has it.
        since: Version,
        /// The configuration's.
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
    /// The same, asked for the status.
    #[error("the network of this node is not ready: its agent has not set it up")]
    NotSetUp,
    /// A file of the node's local state.
    #[error("use the node's local state")]
    Local(#[source] LocalError),
    /// A file of an address.
    #[error("use the node's address files")]
    Addresses(#[source] AddressError),
    /// The node has no address for the pod.
    #[error("no address for the pod on this node")]
    Ipam {
        /// Why.
        source: IpamError,
        /// Files that keep an address in use and cannot be read.
        unreadable: Vec<String>,
    },
    /// The pod has an interface of ours under another name.
    #[error("pod {pod} has the interface {ifname} on this network already; it can have one")]
    SecondInterface {
        /// The pod.
        pod: PodId,
        /// Its interface.
        ifname: String,
    },
    /// The interface is there.
    #[error("the pod has an interface {0} already")]
    InterfaceExists(String),
    /// The veth, its addresses or its routes.
    #[error("set up, read or remove the pod's interface")]
    Link(#[source] PodLinkError),
    /// The agent is away or silent.
    #[error("the agent of this node did not put the pod's rules in force")]
    Ask(#[source] AskError),
    /// The agent said no.
    #[error("{msg}")]
    Refused {
        /// Its code.
        code: u32,
        /// Its message.
        msg: String,
        /// Its details.
        details: String,
    },
    /// The agent is away, asked for its status.
    #[error("the agent of this node does not answer")]
    AgentAway(#[source] AskError),
    /// CHECK found something that is not as ADD left it.
    #[error("the pod's network is not as it was set up: {}", .0.join("; "))]
    Differs(Vec<String>),
    /// GC could not remove everything.
    #[error("not everything was removed: {}", .0.join("; "))]
    Incomplete(Vec<String>),
}

/// How long ADD waits for the agent. Long enough for an agent that restarts.
pub(crate) const ADD_LIMIT: Duration = Duration::from_secs(10);

/// How long STATUS waits for the agent.
pub(crate) const STATUS_LIMIT: Duration = Duration::from_secs(3);

impl CniError {
    /// The number (CNI specification, "Error"; 100 and above are ours).
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
            Self::Refused { code, .. } => *code,
            Self::Ipam { .. } => 100,
            Self::Link(_) => 101,
            Self::InterfaceExists(_) | Self::SecondInterface { .. } => 102,
            Self::Differs(_) => 103,
            Self::Incomplete(_) => 104,
        }
    }

    /// The answer to the runtime, in the version that it asked in.
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
    pub(crate) fn told(&self) -> String {
        match self.details() {
            details if details.is_empty() => self.to_string(),
            details => format!("{self}: {details}"),
        }
    }

    fn details(&self) -> String {
        if let Self::Refused { details, .. } = self {
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
            details += "; cannot be read and so not given back: ";
            details += &unreadable.join(", ");
        }
        details
    }
}
