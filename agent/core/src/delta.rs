//! The difference between two versions of a persistent map. The cost is proportional to the difference, not to the size
//! of the maps, because shared parts are skipped.

use imbl::OrdMap;

/// The entries that differ, sorted by key: key, value before, value after. `None`: the key is missing in that version.
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
