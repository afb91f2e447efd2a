//! The versions of the CNI specification that the plugin supports.

use std::fmt;

/// A version of the CNI specification, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// 0.3.0.
    V0_3_0,
    /// 0.3.1: as 0.3.0, with editorial changes.
    V0_3_1,
    /// 0.4.0: CHECK; prevResult in DEL.
    V0_4_0,
    /// 1.0.0: addresses without an IP version.
    V1_0_0,
    /// 1.1.0: STATUS and GC; MTU of interfaces.
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub(crate) const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The version of the result when the configuration's is not known.
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// The text in a configuration.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// `None` for an unsupported version.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }

    /// All versions, as a list in an error text.
    #[must_use]
    pub(crate) fn supported() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_parsed_from_its_text_and_newer_is_greater() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()), Some(version));
        }
        assert!(Version::ALL.is_sorted() && Version::ALL.last() == Some(&Version::NEWEST));
        for unknown in ["", "0.1.0", "0.2.0", "1.0", "2.0.0", " 1.0.0"] {
            assert_eq!(Version::parse(unknown), None, "{unknown:?}");
        }
    }
}
