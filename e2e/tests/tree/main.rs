//! Tests over the source tree: what review would have to catch otherwise.

mod directions;
mod documents;
mod sizes;
mod targets;
mod types;
mod versions;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

/// The checkout's top folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The text of a file below the root.
fn file(path: &str) -> String {
    read(&root().join(path))
}

/// Runs cargo in the root and returns its standard output.
fn cargo(words: &[&str]) -> String {
    let out = Command::new(env!("CARGO")).current_dir(root()).args(words).output().expect("cargo starts");
    assert!(out.status.success(), "cargo {}: {}", words.join(" "), String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("cargo prints UTF-8")
}

/// A crate of the workspace.
struct Package {
    name: String,
    /// Folder of its Cargo.toml.
    dir: PathBuf,
    /// The version of Rust that its Cargo.toml declares.
    rust_version: String,
    targets: Vec<Target>,
}

/// What cargo builds from a package: a library, a program, a test.
struct Target {
    name: String,
    /// `lib`, `bin`, `test`, `bench`, …
    kind: String,
    /// The root of its source.
    source: PathBuf,
}

/// The crates of the workspace.
fn packages() -> &'static [Package] {
    static PACKAGES: OnceLock<Vec<Package>> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let text = cargo(&["metadata", "--locked", "--no-deps", "--format-version", "1"]);
        let metadata: Value = serde_json::from_str(&text).expect("cargo metadata prints JSON");
        metadata["packages"].as_array().expect("packages").iter().map(package).collect()
    })
}

fn package(value: &Value) -> Package {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let target = |value: &Value| Target {
        name: text(&value["name"]),
        kind: text(&value["kind"][0]),
        source: text(&value["src_path"]).into(),
    };
    let manifest = PathBuf::from(text(&value["manifest_path"]));
    Package {
        name: text(&value["name"]),
        dir: manifest.parent().expect("a manifest is in a folder").to_owned(),
        rust_version: text(&value["rust_version"]),
        targets: value["targets"].as_array().expect("targets").iter().map(target).collect(),
    }
}

/// Every file below `dir` that git would track: build output and hidden folders of tools are left out.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("list {}: {error}", dir.display())) {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                found.extend(files(&path));
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A path as people write it: relative to the root.
fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
