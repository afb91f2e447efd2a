//! What differs between two versions of a map that share their parts. It costs what differs, and not what the maps hold.

use imbl::OrdMap;

/// What differs, in the order of the keys: key, value before, value after.
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
