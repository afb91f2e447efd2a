//! What a read-back of the kernel's table yields, in the shape in which it is compared with what is wanted.

use std::{collections::BTreeSet, fmt, str::FromStr};

use imbl::OrdMap;
use sha1::{Digest, Sha1};

use super::{BaseChain, Rule, Ruleset, Set, VerdictMap};
use crate::{
    model::ParseError,
    names::{ChainName, SetName},
};

/// What the comment of each of our rules says: a hash of the rule's text. So rules are compared without understanding
/// what nft makes of them. Six bytes: a rule is only ever compared with the one that stands in its place.
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
    /// The hash of its text.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let digest = Sha1::digest(self.to_string());
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&digest[..6]);
        Fingerprint(bytes)
    }
}

/// A chain as it was read back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstalledChain {
    /// Set for a base chain.
    pub base: Option<BaseChain>,
    /// A fingerprint per rule; `None` for a rule that is not ours.
    pub rules: Vec<Option<Fingerprint>>,
}

/// Something in our table that is not ours, or no longer as we made it: the difference removes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmanaged {
    /// A set of a kind or with elements that we do not make.
    Set(SetName),
    /// A map of a kind or with elements that we do not make.
    Map(SetName),
    /// A base chain of a kind or with a policy that we do not make.
    Chain(ChainName),
    /// Anything else, described for the log: it costs a new table.
    Other(String),
}

/// What is in our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Sets by name.
    pub sets: OrdMap<SetName, Set>,
    /// Verdict maps by name.
    pub maps: OrdMap<SetName, VerdictMap>,
    /// Chains by name.
    pub chains: OrdMap<ChainName, InstalledChain>,
    /// What must go.
    pub unmanaged: BTreeSet<Unmanaged>,
}

impl Ruleset {
    /// What it reads back as.
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
