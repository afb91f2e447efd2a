//! What the schema of the `nftables` crate 0.6 cannot say and our table needs: flags of a table, comments of chains, maps of
//! verdicts, `notrack` and the flags of `masquerade` as nft prints them, and rules that hold such statements.

use nftables::{
    expr::Expression,
    schema::{Chain, NfListObject, SetTypeValue},
    stmt::Statement,
    types::NfFamily,
};
use serde::Serialize;

/// A document of nft: a list of objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NftDocument {
    pub(super) nftables: Vec<ExportedObject>,
}

/// An object, in the crate's words where it has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum ExportedObject {
    Schema(NfListObject<'static>),
    Extension(ObjectExtension),
}

/// Objects that the crate lacks, or lacks a part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ObjectExtension {
    Table(FlaggedTable),
    Chain(CommentedChain),
    Map(NamedVerdictMap),
    Rule(ExportedRule),
}

/// A table with its flags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FlaggedTable {
    pub(super) family: NfFamily,
    pub(super) name: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) flags: Vec<FlagName>,
}

/// A flag of a table, as nft 1.1 names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FlagName {
    Owner,
    Persist,
}

/// A chain with its comment, which nft 1.0.6 neither prints nor reads in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct CommentedChain {
    #[serde(flatten)]
    pub(super) chain: Chain<'static>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comment: Option<String>,
}

/// A named map of verdicts; the crate's maps have no such type of values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct NamedVerdictMap {
    pub(super) family: NfFamily,
    pub(super) name: String,
    pub(super) table: &'static str,
    #[serde(rename = "type")]
    pub(super) key: SetTypeValue<'static>,
    pub(super) map: VerdictType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) comment: Option<String>,
    /// The crate's verdict expressions print as `"accept"`, which nft does not take: so statements.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) elem: Vec<(Expression<'static>, Statement<'static>)>,
}

/// The type of a map's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VerdictType {
    Verdict,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ExportedRule {
    pub(super) family: NfFamily,
    pub(super) table: &'static str,
    pub(super) chain: String,
    pub(super) comment: String,
    pub(super) expr: Vec<RuleStatement>,
}

/// A statement, in the crate's words where it has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum RuleStatement {
    Schema(Box<Statement<'static>>),
    Extension(StatementExtension),
}

/// Statements that the crate prints as nft does not take them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatementExtension {
    /// `{"notrack": null}`
    NoTrack(()),
    /// `{"masquerade": {"flags": "fully-random"}}`
    Masquerade { flags: MasqueradeFlag },
}

/// A flag of `masquerade`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum MasqueradeFlag {
    FullyRandom,
}
