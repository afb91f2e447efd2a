//! The CNI install: the plugin, the node file that the plugin reads, and the configuration list of the container runtime.
//!
//! All are replaced atomically: a runtime sees the old file or the new one, whole. Files are synced to the disk, so a thread
//! of its own writes them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;
use towpath_local::{NodeState, Paths};
use towpath_node::{CniNetwork, Input};

use crate::input::Arrival;

/// The plugin in our image.
const IMAGE_PLUGIN: &str = "/opt/towpath/cni/towpath";
/// Where containerd and CRI-O look for plugins by default.
const PLUGIN_DIR: &str = "/opt/cni/bin";
/// Where they look for configuration lists.
pub(crate) const CONFIG_DIR: &str = "/etc/cni/net.d";

/// File name of the configuration list. Runtimes take the first in lexical order.
pub const CONFLIST: &str = "10-towpath.conflist";
/// File name of the plugin, and its `type` in the list.
pub const PLUGIN: &str = "towpath";
/// The network's name: Canal's, so that its address files can be taken over.
const NETWORK: &str = "k8s-pod-network";
/// How long the plugin may take to print its version. It takes milliseconds.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two checks whether the plugin has ended.
const POLL: Duration = Duration::from_millis(5);

/// A failed step of the install.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum InstallError {
    /// A file could not be read.
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// A file could not be written or renamed.
    #[error("write {path}: check that the directory is mounted writable in the agent's pod and has free space")]
    Write { path: PathBuf, source: io::Error },
    /// A file could not be removed.
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    /// The plugin could not be run.
    #[error("run {path} --version: check that the image is built for this node's architecture")]
    Run { path: PathBuf, source: io::Error },
    /// The plugin did not end, and was killed.
    #[error("{path} --version did not end within {limit:?} and was killed: check the image and the node's load")]
    Timeout { path: PathBuf, limit: Duration },
    /// The plugin is of another version than the agent.
    #[error("{path} --version prints {answer:?} instead of {expected:?}: the image's plugin and agent differ")]
    Version {
        path: PathBuf,
        answer: String,
        /// The agent's version.
        expected: String,
    },
}

/// Starts the thread that writes the CNI files, for one network after the other. It ends with the sender.
///
/// # Errors
/// If the thread cannot be started.
pub fn spawn(paths: Paths, to: UnboundedSender<Arrival>) -> io::Result<Sender<CniNetwork>> {
    let (networks, queue) = channel::<CniNetwork>();
    let work = move || {
        queue.iter().all(|network| {
            let result = install(&paths, &network).map_err(|error| format!("{error:#}"));
            to.send(Arrival::Input(Input::CniInstalled(network, result))).is_ok()
        })
    };
    thread::Builder::new().name("cni-install".to_owned()).spawn(work)?;
    Ok(networks)
}

/// The plugin and its node file come first, and last the list by which the runtime reports the network as ready.
fn install(paths: &Paths, network: &CniNetwork) -> anyhow::Result<()> {
    NodeState { pod_cidrs: network.pod_cidrs.clone(), mtu: network.mtu }.write(paths)?;
    plugin(Path::new(IMAGE_PLUGIN), Path::new(PLUGIN_DIR), VERSION_TIMEOUT)?;
    Ok(write_conflist(Path::new(CONFIG_DIR))?)
}

/// Copies the image's plugin into the host's plugin directory unless the same bytes are there. Before, it is run to see that
/// it is of the agent's version; it is killed if it does not end within the limit.
///
/// # Errors
/// See [`InstallError`]. On an error the earlier plugin, if any, is still in its place.
pub fn plugin(from: &Path, dir: &Path, limit: Duration) -> Result<(), InstallError> {
    let path = dir.join(PLUGIN);
    let bytes = fs::read(from).map_err(|source| InstallError::Read { path: from.to_owned(), source })?;
    if fs::read(&path).ok().as_ref() == Some(&bytes) {
        return Ok(());
    }
    check_version(from, limit)?;
    replace(&path, &bytes, 0o755)
}

fn check_version(path: &Path, limit: Duration) -> Result<(), InstallError> {
    let failed = |source| InstallError::Run { path: path.to_owned(), source };
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let status = wait(&mut child, limit).map_err(failed)?;
    if status.is_none() {
        return Err(InstallError::Timeout { path: path.to_owned(), limit });
    }
    let mut answer = [0; 256];
    let length = child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read(&mut answer)).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer[..length]).trim().to_owned();
    let expected = format!("towpath {}", env!("CARGO_PKG_VERSION"));
    if answer == expected { Ok(()) } else { Err(InstallError::Version { path: path.to_owned(), answer, expected }) }
}

/// Waits for the end of a process; kills it at the limit, and returns `None` then.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            return child.wait().map(|_| None);
        }
        thread::sleep(POLL);
    }
}

/// Writes the configuration list, unless it is there already. The kubelet then reports the node's network as ready.
///
/// `cniVersions` (CNI 1.1, section 1) lets a runtime use the newest version that it supports; older runtimes read `cniVersion`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_conflist(dir: &Path) -> Result<(), InstallError> {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{ "type": PLUGIN }],
    });
    let path = dir.join(CONFLIST);
    let text = format!("{list:#}\n");
    if fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
        Ok(())
    } else {
        replace(&path, text.as_bytes(), 0o600)
    }
}

/// Removes the configuration list. Running pods keep their network; no pod is added any more.
///
/// # Errors
/// If it exists and cannot be removed.
pub fn remove_conflist(dir: &Path) -> Result<(), InstallError> {
    let path = dir.join(CONFLIST);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(InstallError::Remove { path, source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes beside the target and renames: on the same file system that is atomic (POSIX rename).
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes read only .conf, .conflist and .json in that directory, so they ignore the half-written file.
    let tmp = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        match fs::remove_file(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&tmp, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|source| InstallError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn the_conflist_is_private_and_written_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        write_conflist(dir.path()).unwrap();
        let path = dir.path().join(CONFLIST);
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.permissions().mode() & 0o777, 0o600);
        let list: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&list["name"], &list["plugins"][0]["type"]), (&json!("k8s-pod-network"), &json!("towpath")));

        write_conflist(dir.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino(), "the same file, not a new one");
        fs::write(&path, "{").unwrap();
        write_conflist(dir.path()).unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), first.ino(), "a damaged list is replaced");

        remove_conflist(dir.path()).unwrap();
        remove_conflist(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_plugin_of_another_version_is_refused_and_the_installed_one_stays() {
        let (image, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = image.path().join(PLUGIN);
        let script = |version: &str| {
            fs::write(&source, format!("#!/bin/sh\necho towpath {version}\n")).unwrap();
            fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script(env!("CARGO_PKG_VERSION"));
        plugin(&source, host.path(), VERSION_TIMEOUT).unwrap();
        let installed = fs::read(host.path().join(PLUGIN)).unwrap();

        script("99.0.0");
        assert!(matches!(plugin(&source, host.path(), VERSION_TIMEOUT), Err(InstallError::Version { .. })));
        assert_eq!(fs::read(host.path().join(PLUGIN)).unwrap(), installed);
    }
    #[test]
    fn a_plugin_that_does_not_end_is_killed_and_not_installed() {
        let (image, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, pid) = (image.path().join(PLUGIN), image.path().join("pid"));
        fs::write(&source, format!("#!/bin/sh\necho $$ > {}\nexec sleep 60\n", pid.display())).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        let start = Instant::now();
        let error = plugin(&source, host.path(), Duration::from_secs(2)).unwrap_err();
        assert!(matches!(error, InstallError::Timeout { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30), "it is not waited for");
        let pid = fs::read_to_string(&pid).unwrap();
        assert!(!Path::new("/proc").join(pid.trim()).exists(), "it does not run any more");
        assert!(!host.path().join(PLUGIN).exists());
    }
}
