//! Label selectors as values: what Kubernetes' `matchLabels` and `matchExpressions` become.
//!
//! Equal selectors print the same text whatever order their parts were written in, so that the text can name what they
//! select.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::model::Labels;

/// A condition on the labels of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// The label is there and its value is one of these.
    In(String, BTreeSet<String>),
    /// The label is not there, or its value is none of these.
    NotIn(String, BTreeSet<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    DoesNotExist(String),
    /// All of these hold; of none: everything is selected.
    And(BTreeSet<Self>),
}

impl Selector {
    /// Selects everything.
    #[must_use]
    pub const fn everything() -> Self {
        Self::And(BTreeSet::new())
    }

    /// The label is there with exactly this value.
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

    /// Whether an object with these labels is selected.
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

    /// A label and the values of it that an object must have one of: what an index over labels can answer. Of several
    /// the one with the fewest values. `None` if the selector has no such part.
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
    /// `matchLabels`: every one of these labels has exactly this value.
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
    fn a_selector_means_what_kubernetes_says() {
        let a = || "app".to_owned();
        for (selector, of, matches, why) in [
            (Selector::everything(), &[][..], true, "an empty selector selects everything"),
            (Selector::equals("app", "web"), &[("app", "web")], true, "the value is equal"),
            (Selector::equals("app", "web"), &[("app", "db")], false, "the value is another"),
            (Selector::equals("app", "web"), &[], false, "the label is absent"),
            (Selector::In(a(), set(&["web", "db"])), &[("app", "db")], true, "one of several"),
            (Selector::In(a(), set(&[])), &[("app", "db")], false, "one of none"),
            (Selector::NotIn(a(), set(&["web"])), &[("app", "web")], false, "excluded"),
            (Selector::NotIn(a(), set(&["web"])), &[("app", "db")], true, "another value"),
            (Selector::NotIn(a(), set(&["web"])), &[], true, "NotIn holds when the label is absent"),
            (Selector::Exists(a()), &[("app", "")], true, "an empty value is a value"),
            (Selector::Exists(a()), &[("tier", "x")], false, "another label"),
            (Selector::DoesNotExist(a()), &[("tier", "x")], true, "the label is absent"),
            (Selector::DoesNotExist(a()), &[("app", "x")], false, "the label is there"),
            (
                Selector::all([Selector::equals("app", "web"), Selector::Exists("tier".into())]),
                &[("app", "web")],
                false,
                "all parts must hold",
            ),
            (
                Selector::all([Selector::equals("app", "web"), Selector::Exists("tier".into())]),
                &[("app", "web"), ("tier", "1")],
                true,
                "all parts hold",
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
        assert_eq!(Selector::all([a.clone()]), a, "a list of one is the one");
        let quoted = Selector::equals("a", "1\" in {\"b");
        assert_ne!(quoted.to_string(), Selector::In("a".into(), set(&["1", "b"])).to_string(), "text is quoted");
    }

    #[test]
    fn the_part_that_an_index_can_answer_is_the_narrowest() {
        let wide = Selector::In("a".into(), set(&["1", "2"]));
        let narrow = Selector::equals("b", "3");
        assert_eq!(Selector::all([wide, narrow]).required().map(|(k, _)| k), Some("b"));
        assert_eq!(Selector::NotIn("a".into(), set(&["1"])).required(), None);
        assert_eq!(Selector::everything().required(), None);
    }
}
