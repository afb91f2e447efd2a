//! The first process of a node: lays out the file system, then starts containerd, kubelet and kube-proxy.
//!
//! A node has mount, PID, UTS, IPC and network namespaces of its own. `/var`, `/opt` and `/run` are its own, `/etc` is
//! the machine's with the node's changes overlaid, `/sys` and `/proc` show the node's network. All mounts live in the
//! mount namespace, and end with the last process.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::NodeSpec;
use crate::process::write_pid;
use crate::run;
use crate::wait::wait_for;

/// Where containerd listens.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// A started component with its name.
type Started = (&'static str, Child);

/// Sysctls of the machine that the kubelet sets, and their values. A file with the value is mounted over each, so that
/// the kubelet does not change the machine.
const KUBELET_SYSCTLS: [(&str, &str); 5] = [
    ("vm/overcommit_memory", "1"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Creates the node's namespaces except that of mounts, and waits for its first process in them.
///
/// # Errors
/// When a namespace cannot be created, or the first process fails.
pub fn hold(spec_file: &Path) -> Result<()> {
    let spec = read(spec_file)?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .context("create the node's namespaces")?;
    // Only a child enters the new PID namespace, as its first process.
    let mut child = Command::new(&spec.launcher)
        .args(["node-init", "--spec"])
        .arg(spec_file)
        .spawn()
        .context("start the node's first process")?;
    write_pid(&spec.pid_file, child.id())?;
    let status = child.wait()?;
    ensure!(status.success(), "node {} ended ({status})", spec.name);
    Ok(())
}

/// The node's first process: everything else on the node ends when it does.
///
/// # Errors
/// When a step fails or a component ends: the message shows the end of the component's log.
pub fn init(spec_file: &Path) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("die with the parent")?;
    let spec = read(spec_file)?;
    // The parent keeps the machine's mounts: it reads this process' pid in the machine's /proc.
    unshare(CloneFlags::CLONE_NEWNS).context("create the node's mount namespace")?;
    lay_out(&spec)?;
    let mut containerd =
        start(&spec, "containerd", &["containerd".into(), "--config".into(), spec.file("containerd.toml")])?;
    wait_for("containerd's socket", Duration::from_secs(30), || {
        if let Some(status) = containerd.1.try_wait()? {
            bail!(spec.exit_report(containerd.0, &status.to_string()));
        }
        Ok(UnixStream::connect(CONTAINERD_SOCKET).ok())
    })?;
    import(&spec)?;
    wait_for("a ready API server", Duration::from_secs(120), || Ok(spec.dir.join("admitted").exists().then_some(())))?;
    let kubelet = start(&spec, "kubelet", &spec.kubelet)?;
    let kube_proxy = start(&spec, "kube-proxy", &spec.kube_proxy)?;
    reap(&spec, &[containerd, kubelet, kube_proxy])
}

impl NodeSpec {
    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn log(&self, component: &str) -> std::path::PathBuf {
        self.log_dir.join(format!("{}-{component}.log", self.name))
    }

    fn exit_report(&self, component: &str, how: &str) -> String {
        let log = self.log(component);
        format!("{component} ended ({how}); the end of {}:\n{}", log.display(), run::log_tail(&log, run::TAIL_LINES))
    }
}

fn read(file: &Path) -> Result<NodeSpec> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))
}

fn start(spec: &NodeSpec, component: &'static str, words: &[String]) -> Result<Started> {
    let log = spec.log(component);
    let out =
        File::options().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
    let (program, arguments) = words.split_first().context("a component has a command")?;
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn();
    let child = child.with_context(|| format!("start {component}"))?;
    Ok((component, child))
}

/// Reaps processes, as the first process of a PID namespace must, until a component is among them.
fn reap(spec: &NodeSpec, components: &[Started]) -> Result<()> {
    loop {
        let (pid, how) = match waitpid(None::<Pid>, None).context("wait for the node's processes")? {
            WaitStatus::Exited(pid, code) => (pid, format!("exit status {code}")),
            WaitStatus::Signaled(pid, signal, _) => (pid, format!("signal {signal}")),
            _ => continue,
        };
        let pid = u32::try_from(pid.as_raw())?;
        if let Some((component, _)) = components.iter().find(|(_, child)| child.id() == pid) {
            bail!(spec.exit_report(component, &how));
        }
    }
}

/// Imports the test images, all at once.
fn import(spec: &NodeSpec) -> Result<()> {
    let results: Vec<Result<String>> = std::thread::scope(|scope| {
        let imports: Vec<_> = spec
            .images
            .iter()
            .map(|image| {
                scope.spawn(move || {
                    run::output(Command::new("ctr").args(["-n", "k8s.io", "images", "import"]).arg(image))
                })
            })
            .collect();
        imports
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("the import's thread panicked")))
            .collect()
    });
    results.into_iter().try_for_each(|result| result.map(drop)).context("import the test images")
}

/// Names of images in the output of `ctr images import`: `unpacking NAME (sha256:…)...done`.
pub(super) fn imported(said: &str) -> Vec<String> {
    said.lines().filter_map(|line| Some(line.strip_prefix("unpacking ")?.split_once(' ')?.0.to_owned())).collect()
}

fn lay_out(spec: &NodeSpec) -> Result<()> {
    remount("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .context("mount /proc")?;
    cover_sysctls(spec)?;
    fresh_sys(spec)?;
    // Held open, so that they can be mounted again where the node's folders cover them.
    let kept: Vec<(&Path, File)> = spec
        .keep
        .iter()
        .map(|path| Ok((path.as_path(), File::open(path)?)))
        .collect::<Result<_>>()
        .context("open kept folders")?;
    for folder in ["var/lib", "var/log", "var/tmp", "var/cache", "etc", "etc-work"] {
        let dir = spec.dir.join(folder);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    }
    if !spec.dir.join("var/run").is_symlink() {
        symlink("/run", spec.dir.join("var/run")).context("link /var/run")?;
    }
    let layers = format!("lowerdir=/etc,upperdir={},workdir={}", spec.file("etc"), spec.file("etc-work"));
    mount(Some("etc"), "/etc", Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .context("mount the node's /etc over the machine's")?;
    for own in ["var", "opt"] {
        bind(&spec.dir.join(own), &Path::new("/").join(own))?;
        mount_again(&kept)?;
    }
    mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount /run")?;
    mount_again(&kept)?;
    fs::create_dir_all("/run/lock").context("create /run/lock")?;
    fs::create_dir_all("/etc/cni/net.d").context("create /etc/cni/net.d")?;
    // Volumes that kubelet mounts must show in containers that see its folder.
    remount("/", MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    fs::write("/proc/sys/kernel/hostname", &spec.name).context("set the host name")
}

fn cover_sysctls(spec: &NodeSpec) -> Result<()> {
    let dir = spec.dir.join("sysctls");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    for (setting, value) in KUBELET_SYSCTLS {
        let file = dir.join(setting.replace('/', "."));
        fs::write(&file, format!("{value}\n")).with_context(|| format!("write {}", file.display()))?;
        bind(&file, &Path::new("/proc/sys").join(setting))?;
    }
    Ok(())
}

/// Mounts a sysfs of this network namespace, with the machine's control groups in it.
fn fresh_sys(spec: &NodeSpec) -> Result<()> {
    let aside = spec.dir.join("cgroup");
    fs::create_dir_all(&aside).with_context(|| format!("create {}", aside.display()))?;
    let groups = Path::new("/sys/fs/cgroup");
    bind(groups, &aside)?;
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount the machine's /sys")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).context("mount /sys")?;
    bind(&aside, groups)?;
    umount2(&aside, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", aside.display()))
}

/// Mounts open folders at their paths again, where those are covered.
fn mount_again(kept: &[(&Path, File)]) -> Result<()> {
    for (path, held) in kept {
        let there = fs::metadata(path).map(|now| (now.dev(), now.ino())).ok();
        let was = held.metadata()?;
        if there != Some((was.dev(), was.ino())) {
            fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
            bind(Path::new(&format!("/proc/self/fd/{}", held.as_raw_fd())), path)?;
        }
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("bind {} over {}", from.display(), to.display()))
}

fn remount(path: &str, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("change the propagation of mounts below {path}"))
}
