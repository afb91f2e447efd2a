#![doc = include_str!("../README.md")]

mod back_off;
pub mod denials;
mod effect;
pub mod explain;
mod input;
mod kernel;
mod log;
mod node;
pub mod plan;
mod pods;
mod revocation;
mod settings;
mod status;

pub use self::{
    effect::{
        CniCode, CniReply, Effect, KernelChange, KernelJob, KernelPart, Measurement, NetworkCondition, NodePatch,
        StatusUpdate,
    },
    input::{
        ApplyResult, Attachment, CniRequest, FailedOps, Input, KernelNotification, KernelResult, LocalPod,
        NetworkReadBack, Ticket,
    },
    log::{FailedStep, LogLine},
    node::{Identity, Node, Now, Summary},
    pods::{AddressSet, FlushRequest, FlushedAddresses, Urgency},
    revocation::{ReevaluateOutcome, ReevaluateRequest, ReevaluateSummary},
    settings::{Settings, SettingsError},
    status::CniNetwork,
};
