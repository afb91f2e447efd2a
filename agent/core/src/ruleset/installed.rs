//! The kernel's table as it is read back, in a form that can be compared with the desired one.

use std::{collections::BTreeSet, fmt, str::FromStr};

use imbl::OrdMap;
use sha1::{Digest, Sha1};

use super::{BaseChain, Rule, Ruleset, Set, VerdictMap};
use crate::{
    model::ParseError,
    names::{ChainName, SetName},
};

/// Hash of a rule's nft text, stored in the comment of the installed rule. Rules are compared by fingerprint, so nothing
/// has to parse the kernel's expressions. Six bytes suffice: a rule is only compared with the one at the same position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 6]);

impl Fingerprint {
    const PREFIX: &str = "towpath:";
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new(text, "a rule's fingerprint of twelve lower-case hexadecimal digits");
        let hex = text.strip_prefix(Self::PREFIX).ok_or_else(error)?;
        if hex.len() != 12 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error());
        }
        let mut bytes = [0; 6];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| error())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

impl Rule {
    /// The first six bytes of the SHA-1 hash of the rule's nft text.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha1::digest(self.to_string());
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&digest[..6]);
        Fingerprint(bytes)
    }
}

/// A chain as read back from the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstalledChain {
    /// `None` for a regular chain.
    pub base: Option<BaseChain>,
    /// Fingerprint of each rule, in order; `None` for a rule without one, which is unmanaged.
    pub rules: Vec<Option<Fingerprint>>,
}

/// An object in our table that we did not create, or that was changed into something we never create. [`super::diff()`]
/// deletes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmanaged {
    /// A set with a declaration or elements that we never create.
    Set(SetName),
    /// A map with a declaration or elements that we never create.
    Map(SetName),
    /// A base chain with a type, hook or policy that we never create.
    Chain(ChainName),
    /// Anything else, with a description for the log. The whole table is replaced.
    Other(String),
}

/// The contents of our table as read back from the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Sets by name, unmanaged ones excluded.
    pub sets: OrdMap<SetName, Set>,
    /// Verdict maps by name, unmanaged ones excluded.
    pub maps: OrdMap<SetName, VerdictMap>,
    /// Chains by name, unmanaged ones excluded.
    pub chains: OrdMap<ChainName, InstalledChain>,
    /// Objects to delete.
    pub unmanaged: BTreeSet<Unmanaged>,
}

impl Ruleset {
    /// The ruleset as it reads back once it is installed.
    #[must_use]
    pub fn installed(&self) -> Installed {
        let chains = self.chains.iter().map(|(name, chain)| {
            let rules = chain.rules.iter().map(|rule| Some(rule.fingerprint())).collect();
            (name.clone(), InstalledChain { base: chain.base, rules })
        });
        Installed {
            sets: self.sets.clone(),
            maps: self.maps.clone(),
            chains: chains.collect(),
            unmanaged: BTreeSet::new(),
        }
    }
}
