use super::*;

fn applied(name: &str, facts: i32) -> ObjectEvent<i32> {
    ObjectEvent::Applied(name.to_owned(), facts)
}

fn listed(name: &str, facts: i32) -> ObjectEvent<i32> {
    ObjectEvent::Listed(name.to_owned(), facts)
}

fn deleted(name: &str) -> ObjectEvent<i32> {
    ObjectEvent::Deleted(name.to_owned())
}

fn undecodable(name: &str) -> ObjectEvent<i32> {
    ObjectEvent::Undecodable(name.to_owned())
}

fn listed_undecodable(name: &str) -> ObjectEvent<i32> {
    ObjectEvent::ListedUndecodable(name.to_owned())
}

/// A store that has been listed.
fn store(objects: &[(&str, i32)]) -> Store<i32> {
    let mut store = Store::default();
    let objects = objects.iter().map(|(name, facts)| listed(name, *facts));
    assert_eq!(list(&mut store, objects), Effect::Changed, "the first list is news, even an empty one");
    store
}

fn list(store: &mut Store<i32>, objects: impl IntoIterator<Item = ObjectEvent<i32>>) -> Effect {
    store.apply(ObjectEvent::ListStarted);
    for object in objects {
        assert_eq!(store.apply(object), Effect::Unchanged, "a list counts when it is complete");
    }
    store.apply(ObjectEvent::ListDone)
}

#[test]
fn a_list_is_in_force_only_when_it_is_complete() {
    let mut store = Store::default();
    store.apply(ObjectEvent::ListStarted);
    store.apply(listed("a", 1));
    assert!(!store.is_synced() && store.is_empty(), "half a list is no list");
    store.apply(ObjectEvent::ListDone);
    assert!(store.is_synced() && store.get("a") == Some(&1));
}

#[test]
fn a_second_list_deletes_what_it_does_not_contain() {
    let mut store = store(&[("a", 1), ("b", 2)]);
    store.apply(ObjectEvent::ListStarted);
    store.apply(listed("b", 2));
    assert_eq!(store.len(), 2, "the old list holds until the new one is complete");
    assert_eq!(store.apply(ObjectEvent::ListDone), Effect::Changed);
    assert_eq!(store.iter().collect::<Vec<_>>(), [("b", &2)]);
}

#[test]
fn only_what_changes_the_facts_counts_as_a_change() {
    let cases = [
        (applied("a", 1), Effect::Unchanged, "the same facts again"),
        (applied("a", 2), Effect::Changed, "other facts"),
        (deleted("x"), Effect::Unchanged, "never known"),
        (deleted("a"), Effect::Changed, "known"),
        (undecodable("a"), Effect::Changed, "no longer decodable"),
        (ObjectEvent::NotServed, Effect::Changed, "the kind is gone"),
    ];
    for (event, want, why) in cases {
        assert_eq!(store(&[("a", 1)]).apply(event), want, "{why}");
    }
    let mut same = store(&[("a", 1)]);
    assert_eq!(list(&mut same, [listed("a", 1)]), Effect::Unchanged, "the same list again");
}

#[test]
fn an_undecodable_object_keeps_its_last_known_facts_until_it_is_decoded_or_deleted() {
    let mut store = store(&[("a", 1)]);
    store.apply(undecodable("a"));
    assert_eq!(store.entry("a"), Some(&Entry::LastKnown(1)));
    assert_eq!(store.get("a"), Some(&1));
    assert_eq!(store.apply(undecodable("a")), Effect::Unchanged, "still undecodable");
    assert_eq!(list(&mut store, [listed_undecodable("a")]), Effect::Unchanged, "a new list says the same");
    assert_eq!(store.entry("a"), Some(&Entry::LastKnown(1)), "and keeps the facts");

    let mut decoded = store.clone();
    assert_eq!(decoded.apply(applied("a", 1)), Effect::Changed, "decodable again");
    assert_eq!(decoded.entry("a"), Some(&Entry::Decoded(1)));
    let mut listed_again = store.clone();
    assert_eq!(list(&mut listed_again, [listed("a", 1)]), Effect::Changed, "decodable again, by a list");
    assert_eq!(listed_again.entry("a"), Some(&Entry::Decoded(1)));
    let mut gone = store.clone();
    assert_eq!(gone.apply(deleted("a")), Effect::Changed, "a deletion needs no decoding");
    assert!(!gone.contains("a"));
    assert_eq!(list(&mut store, []), Effect::Changed, "a list without it deletes it too");
    assert!(!store.contains("a"));
}

#[test]
fn an_object_that_was_never_decoded_exists_without_facts() {
    for (mut store, why) in
        [(store(&[]), "known since a watch event"), (Store::default(), "known since the first list")]
    {
        let effect = match store.is_synced() {
            true => store.apply(undecodable("a")),
            false => list(&mut store, [listed_undecodable("a")]),
        };
        assert_eq!(effect, Effect::Changed, "{why}");
        assert_eq!((store.entry("a"), store.get("a")), (Some(&Entry::NeverDecoded), None), "{why}");
        assert_eq!((store.len(), store.iter().count()), (1, 0), "{why}");
        assert_eq!(store.names().collect::<Vec<_>>(), ["a"], "{why}");
        assert_eq!(store.never_decoded().collect::<Vec<_>>(), ["a"], "{why}");
        assert_eq!(list(&mut store, [listed_undecodable("a")]), Effect::Unchanged, "{why}: nothing new");
        assert_eq!(store.apply(applied("a", 1)), Effect::Changed, "{why}: decoded at last");
        assert_eq!(store.never_decoded().count(), 0, "{why}");
    }
}
