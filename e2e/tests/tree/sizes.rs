//! Files stay short enough to be read in one sitting.

use crate::{files, read, relative, root};

/// Most lines of a source file. About 300 is the aim.
const MOST: usize = 500;

#[test]
fn no_source_file_is_longer_than_500_lines() {
    let sources = files(root()).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs"));
    let long: Vec<String> = sources
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > MOST)
        .map(|(lines, path)| format!("{} has {lines} lines", relative(&path)))
        .collect();
    assert!(long.is_empty(), "split by subject: {long:#?}");
}
