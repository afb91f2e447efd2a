//! The committed CRDs equal the generated ones. They are compared as values: emitters differ in layout.

use std::{fs, path::Path};

use serde_json::Value;
use towpath_crds::schema;

/// Above this size plain `kubectl apply` cannot keep the last applied state in an annotation.
const APPLY_LIMIT: usize = 262_144;

#[test]
fn committed_crds_equal_the_generated_ones() {
    for (name, want) in schema::crds() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/crds").join(name);
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; run `make generate`", path.display()));
        let have: Value = serde_yaml::from_str(&text).unwrap();
        assert!(have == want, "{name} is stale: run `make generate`");
        assert!(text.len() < APPLY_LIMIT / 4, "{name} is {} bytes", text.len());
    }
}

#[test]
fn every_field_has_a_description_and_every_list_and_text_a_bound() {
    for (name, crd) in schema::crds() {
        let root = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        check(root, name, Place::Root);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Field,
    Item,
}

fn check(schema: &Value, path: &str, place: Place) {
    if place != Place::Item {
        assert!(schema["description"].as_str().is_some_and(|d| d.len() > 3), "{path} has no description");
    }
    let dated = schema["format"] == "date-time";
    match schema["type"].as_str() {
        Some("string") if !dated && schema["enum"].is_null() && !path.ends_with("[]") => {
            assert!(schema["maxLength"].is_number(), "{path} has no maxLength");
        }
        Some("array") => {
            assert!(schema["maxItems"].is_number(), "{path} has no maxItems");
            check(&schema["items"], &format!("{path}[]"), Place::Item);
        }
        _ => {}
    }
    for (field, inner) in schema["properties"].as_object().into_iter().flatten() {
        // The API server owns these three.
        if place == Place::Root && ["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
            continue;
        }
        check(inner, &format!("{path}.{field}"), Place::Field);
    }
    assert!(schema["nullable"].is_null(), "{path} is nullable");
    assert!(!schema["format"].as_str().is_some_and(|f| f.starts_with('u')), "{path} has an unsigned format");
}
