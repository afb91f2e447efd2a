//! Names of types: one name is one thing within a crate, so that a reader who finds it by its name has found it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use syn::{Attribute, Expr, Item, ItemMod, Lit, Meta};

use crate::{Package, packages, read, relative};

/// Where the types of a crate are defined, by name.
type Definitions = BTreeMap<String, Vec<String>>;

#[test]
fn a_type_name_is_unique_within_its_crate() {
    let twice: Vec<String> = packages()
        .iter()
        .flat_map(|package| {
            let found = definitions(package).into_iter().filter(|(_, places)| places.len() > 1);
            found.map(|(name, places)| format!("{}: {name} in {}", package.name, places.join(" and ")))
        })
        .collect();
    assert!(twice.is_empty(), "{} type names mean two things: {twice:#?}", twice.len());
}

/// Structs, enums, unions, traits and aliases of a crate's library and programs, tests left out.
fn definitions(package: &Package) -> Definitions {
    let mut found = Definitions::new();
    for target in package.targets.iter().filter(|target| ["lib", "bin"].contains(&target.kind.as_str())) {
        let dir = target.source.parent().expect("a source is in a folder");
        module(&target.source, dir, &mut found);
    }
    for places in found.values_mut() {
        // A module may belong to a library and to a program.
        places.sort();
        places.dedup();
    }
    found
}

/// Collects what a file defines. The files of its modules are in `dir`.
fn module(file: &Path, dir: &Path, found: &mut Definitions) {
    let parsed = syn::parse_file(&read(file)).unwrap_or_else(|error| panic!("parse {}: {error}", relative(file)));
    items(&parsed.items, file, dir, found);
}

fn items(items: &[Item], file: &Path, dir: &Path, found: &mut Definitions) {
    for item in items {
        let (name, attributes) = match item {
            Item::Struct(item) => (&item.ident, &item.attrs),
            Item::Enum(item) => (&item.ident, &item.attrs),
            Item::Union(item) => (&item.ident, &item.attrs),
            Item::Trait(item) => (&item.ident, &item.attrs),
            Item::Type(item) => (&item.ident, &item.attrs),
            Item::Mod(item) => {
                if !item.attrs.iter().any(is_test) {
                    submodule(item, file, dir, found);
                }
                continue;
            }
            _ => continue,
        };
        if !attributes.iter().any(is_test) {
            found.entry(name.to_string()).or_default().push(relative(file));
        }
    }
}

fn submodule(item: &ItemMod, file: &Path, dir: &Path, found: &mut Definitions) {
    let dir = dir.join(item.ident.to_string());
    if let Some((_, content)) = &item.content {
        return items(content, file, &dir, found);
    }
    if let Some(path) = item.attrs.iter().find_map(path) {
        let file = file.parent().expect("a source is in a folder").join(path);
        let dir = file.parent().expect("a source is in a folder").to_owned();
        return module(&file, &dir, found);
    }
    let own = dir.with_extension("rs");
    let file = if own.exists() { own } else { dir.join("mod.rs") };
    module(&file, &dir, found);
}

/// `#[cfg(test)]` and its combinations.
fn is_test(attribute: &Attribute) -> bool {
    matches!(&attribute.meta, Meta::List(list) if list.path.is_ident("cfg") && list.tokens.to_string().contains("test"))
}

/// The file that `#[path = "…"]` names.
fn path(attribute: &Attribute) -> Option<PathBuf> {
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    let Expr::Lit(value) = &pair.value else { return None };
    let Lit::Str(value) = &value.lit else { return None };
    pair.path.is_ident("path").then(|| value.value().into())
}

#[test]
fn definitions_are_found_in_modules_and_not_in_tests() {
    let source = "struct A; mod inner { enum A {} pub type B = u8; impl C for A { type D = u8; } } \
                  #[cfg(test)] mod tests { struct E; } #[cfg(all(test, unix))] struct F; trait C { type D; }";
    let mut found = Definitions::new();
    items(&syn::parse_file(source).unwrap().items, Path::new("x.rs"), Path::new("."), &mut found);
    let counts: Vec<(&str, usize)> = found.iter().map(|(name, places)| (name.as_str(), places.len())).collect();
    assert_eq!(counts, [("A", 2), ("B", 1), ("C", 1)]);
}
