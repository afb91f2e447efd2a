//! Differences between two versions of a persistent map, at a cost proportional to the difference.

use imbl::OrdMap;

/// Iterates over the keys whose values differ, in key order: key, value before, value after.
pub fn changes<'a, K: Ord, V: PartialEq>(
    before: &'a OrdMap<K, V>,
    after: &'a OrdMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    use imbl::ordmap::DiffItem;
    before.diff(after).map(|item| match item {
        DiffItem::Add(key, value) => (key, None, Some(value)),
        DiffItem::Update { old: (_, old), new: (key, new) } => (key, Some(old), Some(new)),
        DiffItem::Remove(key, value) => (key, Some(value), None),
    })
}
