//! Label selectors: the semantics of Kubernetes' `matchLabels` and `matchExpressions`.
//!
//! A selector is a normalised value: the order of its requirements does not matter, and equal selectors print the same
//! text. Set names are hashes of that text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::model::Labels;

/// A requirement on the labels of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// The label exists and has one of these values.
    In(String, BTreeSet<String>),
    /// The label does not exist, or has none of these values.
    NotIn(String, BTreeSet<String>),
    /// The label exists.
    Exists(String),
    /// The label does not exist.
    DoesNotExist(String),
    /// All of these requirements are met. An empty set matches every object.
    And(BTreeSet<Self>),
}

impl Selector {
    /// Matches every object.
    #[must_use]
    pub const fn everything() -> Self {
        Self::And(BTreeSet::new())
    }

    /// The label exists and has exactly this value.
    #[must_use]
    pub fn equals(key: &str, value: &str) -> Self {
        Self::In(key.to_owned(), BTreeSet::from([value.to_owned()]))
    }

    /// All of the given selectors hold; a single one is itself.
    #[must_use]
    pub fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut parts: BTreeSet<Self> = parts.into_iter().collect();
        match parts.len() {
            1 => parts.pop_first().unwrap_or_else(Self::everything),
            _ => Self::And(parts),
        }
    }

    /// Whether an object with these labels matches.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::And(parts) => parts.iter().all(|p| p.matches(labels)),
        }
    }

    /// A label and its possible values, if every matching object has this label with one of these values. An index by
    /// label uses it. With several candidates it is the one with the fewest values.
    #[must_use]
    pub fn required(&self) -> Option<(&str, &BTreeSet<String>)> {
        match self {
            Self::In(key, values) => Some((key, values)),
            Self::NotIn(..) | Self::Exists(_) | Self::DoesNotExist(_) => None,
            Self::And(parts) => parts.iter().filter_map(Self::required).min_by_key(|(_, values)| values.len()),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) => write!(f, "{key:?} in {values:?}"),
            Self::NotIn(key, values) => write!(f, "{key:?} not in {values:?}"),
            Self::Exists(key) => write!(f, "has {key:?}"),
            Self::DoesNotExist(key) => write!(f, "not has {key:?}"),
            Self::And(parts) if parts.is_empty() => f.write_str("all"),
            Self::And(parts) => {
                f.write_str("(")?;
                for (n, part) in parts.iter().enumerate() {
                    write!(f, "{}{part}", if n == 0 { "" } else { " and " })?;
                }
                f.write_str(")")
            }
        }
    }
}

impl From<&BTreeMap<String, String>> for Selector {
    /// `matchLabels`: each label has exactly this value.
    fn from(labels: &Labels) -> Self {
        Self::all(labels.iter().map(|(k, v)| Self::equals(k, v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn set(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    #[test]
    fn a_selector_has_the_semantics_of_kubernetes() {
        let a = || "app".to_owned();
        for (selector, of, matches, why) in [
            (Selector::everything(), &[][..], true, "an empty selector selects everything"),
            (Selector::equals("app", "web"), &[("app", "web")], true, "the value is equal"),
            (Selector::equals("app", "web"), &[("app", "db")], false, "the value differs"),
            (Selector::equals("app", "web"), &[], false, "the label is absent"),
            (Selector::In(a(), set(&["web", "db"])), &[("app", "db")], true, "one of several"),
            (Selector::In(a(), set(&[])), &[("app", "db")], false, "In with no values matches nothing"),
            (Selector::NotIn(a(), set(&["web"])), &[("app", "web")], false, "excluded"),
            (Selector::NotIn(a(), set(&["web"])), &[("app", "db")], true, "another value"),
            (Selector::NotIn(a(), set(&["web"])), &[], true, "NotIn matches when the label is absent"),
            (Selector::Exists(a()), &[("app", "")], true, "an empty value is a value"),
            (Selector::Exists(a()), &[("tier", "x")], false, "another label"),
            (Selector::DoesNotExist(a()), &[("tier", "x")], true, "the label is absent"),
            (Selector::DoesNotExist(a()), &[("app", "x")], false, "the label is present"),
            (
                Selector::all([Selector::equals("app", "web"), Selector::Exists("tier".into())]),
                &[("app", "web")],
                false,
                "one of two requirements is not met",
            ),
            (
                Selector::all([Selector::equals("app", "web"), Selector::Exists("tier".into())]),
                &[("app", "web"), ("tier", "1")],
                true,
                "both requirements are met",
            ),
        ] {
            assert_eq!(selector.matches(&labels(of)), matches, "{why}: {selector} on {of:?}");
        }
    }

    #[test]
    fn equal_selectors_print_the_same_and_different_ones_do_not() {
        let (a, b) = (Selector::equals("a", "1"), Selector::Exists("b".into()));
        let one = Selector::all([a.clone(), b.clone()]);
        let other = Selector::all([b.clone(), a.clone()]);
        assert_eq!(one.to_string(), other.to_string());
        assert_eq!(Selector::all([a.clone()]), a, "a list of one requirement is that requirement");
        let quoted = Selector::equals("a", "1\" in {\"b");
        assert_ne!(quoted.to_string(), Selector::In("a".into(), set(&["1", "b"])).to_string(), "text is quoted");
    }

    #[test]
    fn the_required_label_is_the_one_with_the_fewest_values() {
        let wide = Selector::In("a".into(), set(&["1", "2"]));
        let narrow = Selector::equals("b", "3");
        assert_eq!(Selector::all([wide, narrow]).required().map(|(k, _)| k), Some("b"));
        assert_eq!(Selector::NotIn("a".into(), set(&["1"])).required(), None);
        assert_eq!(Selector::everything().required(), None);
    }
}
