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
