//! Writes the CRDs as YAML, one file each, into the given folder, by default `manifests/crds`.

use std::{env, fs, path::PathBuf, process::ExitCode};

use towpath_crds::{schema, yaml};

fn main() -> ExitCode {
    let folder = env::args_os().nth(1).map_or_else(|| PathBuf::from("manifests/crds"), PathBuf::from);
    for (name, crd) in schema::crds() {
        let path = folder.join(name);
        let written = yaml::to_string(&crd).map_err(|error| error.to_string()).and_then(|text| {
            fs::create_dir_all(&folder).and_then(|()| fs::write(&path, text)).map_err(|error| error.to_string())
        });
        if let Err(error) = written {
            eprintln!("write {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("{}", path.display());
    }
    ExitCode::SUCCESS
}
