//! The committed bundle equals the generated one, and the samples are valid. Objects are compared as values.

use std::{fs, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;
use towpath_crds::NetworkConfig;
use towpath_operator::install;

fn manifests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

#[test]
fn the_committed_bundle_equals_the_generated_one() {
    let path = manifests().join("install.yaml");
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; run `make generate`", path.display()));
    let have: Vec<Value> =
        serde_yaml::Deserializer::from_str(&text).map(|doc| Value::deserialize(doc).unwrap()).collect();
    let want = install::bundle();
    assert_eq!(have.len(), want.len(), "install.yaml is stale: run `make generate`");
    for (have, want) in have.iter().zip(&want) {
        assert!(have == want, "install.yaml is stale: run `make generate`");
    }
}

#[test]
fn every_sample_is_a_network_config() {
    for entry in fs::read_dir(manifests().join("samples")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let config: NetworkConfig =
            serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let spec = towpath_operator::spec::pod_cidrs(&config.spec);
        assert!(spec.is_ok(), "{}: {spec:?}", path.display());
    }
}
