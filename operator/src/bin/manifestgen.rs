//! Writes the install bundle as YAML into the given folder, by default `manifests`.

use std::{env, fs, path::PathBuf, process::ExitCode};

use towpath_crds::yaml;
use towpath_operator::install;

fn main() -> ExitCode {
    let folder = env::args_os().nth(1).map_or_else(|| PathBuf::from("manifests"), PathBuf::from);
    let path = folder.join("install.yaml");
    let texts: Result<Vec<String>, _> = install::bundle().iter().map(yaml::to_string).collect();
    let written = texts
        .map_err(|error| error.to_string())
        .and_then(|texts| fs::write(&path, texts.join("---\n")).map_err(|error| error.to_string()));
    match written {
        Ok(()) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("write {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
