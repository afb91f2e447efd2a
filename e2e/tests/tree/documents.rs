//! Documents: each crate shows its README in its documentation; decision records have the four parts.

use std::path::PathBuf;

use crate::{files, packages, read, relative, root};

/// The folders of decision records, below the root.
const RECORDS: [&str; 2] = ["agent/decisions", "operator/decisions"];
/// The parts of a record, in this order.
const PARTS: [&str; 4] = ["## Context", "## Decision", "## Consequences", "## Figures"];

#[test]
fn the_documentation_of_a_crate_begins_with_its_readme() {
    let want = "#![doc = include_str!(\"../README.md\")]";
    let libraries = packages().iter().flat_map(|package| &package.targets).filter(|target| target.kind == "lib");
    let without: Vec<String> = libraries
        .filter(|target| !read(&target.source).lines().any(|line| line == want))
        .map(|target| relative(&target.source))
        .collect();
    assert!(without.is_empty(), "{want} is missing in {without:#?}");
}

#[test]
fn every_crate_has_a_readme() {
    let without: Vec<&str> = packages()
        .iter()
        .filter(|package| !package.dir.join("README.md").exists())
        .map(|package| package.name.as_str())
        .collect();
    assert!(without.is_empty(), "{without:?}");
}

/// The records of a folder, by name.
fn records(folder: &str) -> Vec<PathBuf> {
    files(&root().join(folder)).into_iter().filter(|path| !path.ends_with("README.md")).collect()
}

#[test]
fn a_decision_record_has_context_decision_consequences_and_figures() {
    for path in RECORDS.iter().flat_map(|folder| records(folder)) {
        let text = read(&path);
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, PARTS, "{}", relative(&path));
        for (part, next) in PARTS.iter().zip(PARTS.iter().skip(1).map(Some).chain([None])) {
            let body = text.split_once(part).map_or("", |(_, after)| after);
            let body = next.and_then(|next| body.split_once(next)).map_or(body, |(body, _)| body);
            assert!(!body.trim().is_empty(), "{}: {part} is empty", relative(&path));
        }
    }
}

#[test]
fn decision_records_are_numbered_without_gaps_and_titled_as_they_are_named() {
    for folder in RECORDS {
        for (index, path) in records(folder).iter().enumerate() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let number = format!("{:04}", index + 1);
            assert!(name.starts_with(&format!("{number}-")), "{}: the next number is {number}", relative(path));
            let title = read(path).lines().next().unwrap_or_default().to_owned();
            assert!(title.starts_with(&format!("# {number}: ")), "{}: # {number}: …, not {title}", relative(path));
        }
    }
}

/// Paths in backticks: lower case with a slash. Absolute paths are a node's, `target/` is not in the tree, and a dot in the
/// first part is that of an API group.
fn paths(text: &str) -> Vec<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-./".contains(&byte);
        let Some((first, _)) = word.split_once('/') else { return false };
        word.bytes().all(plain) && !["", "target"].contains(&first) && !first.trim_start_matches('.').contains('.')
    };
    quoted.filter(is_path).collect()
}

/// A path is relative to the root, to its document, to the sources beside the document, or to the agent's folder, as in the
/// decision records.
#[test]
fn documents_name_files_that_exist() {
    let documents = files(root()).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let missing: Vec<String> = documents
        .flat_map(|document| {
            let text = read(&document);
            let dir = document.parent().expect("a document is in a folder").to_owned();
            let exists = |path: &&str| {
                [root(), &dir, &dir.join("src"), &root().join("agent")].iter().any(|base| base.join(path).exists())
            };
            let missing = paths(&text).into_iter().filter(|path| !exists(path));
            missing.map(|path| format!("{}: {path}", relative(&document))).collect::<Vec<_>>()
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_path_in_a_document_is_in_backticks_and_lower_case() {
    let text = "`.ci/run`, `make unit`, `/etc/cni/net.d`, `target/image`, `apps/v1.yaml`, `networking.k8s.io/v1`, `tests/tree/`";
    assert_eq!(paths(text), [".ci/run", "apps/v1.yaml", "tests/tree/"]);
}
