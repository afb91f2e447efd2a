//! The address files: which pod has which address, byte for byte in the format of the reference `host-local` plugin, so
//! that a node can move from it and back.
//!
//! `<ip>` holds the container's id and, after CR LF, the interface; `last_reserved_ip.<n>` the address reserved last of
//! the n-th podCIDR. Who changes a file holds `lock` with flock(2). Other files are left alone.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::endpoint::Attachment;

/// The separator that `host-local` writes between id and interface.
const SEPARATOR: &str = "\r\n";

/// The limit of an address file in bytes: it holds an id and an interface, and a larger one is somebody else's.
const MAX_BYTES: u64 = 1024;

/// An address file or the address directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The directory could not be created, read or locked.
    #[error("use the address directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// An address file or `last_reserved_ip.<n>` could not be written.
    #[error("write the address file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// An address file could not be read, so that its owner is not known.
    #[error("read the address file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// An address file could not be removed.
    #[error("remove the address file {}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

/// A network's directory of address files.
#[derive(Debug, Clone)]
pub struct AddressDir {
    dir: PathBuf,
}

/// The owner of an address, as its file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressOwner {
    /// A container, or only one interface of it. Old versions of `host-local` wrote no interface.
    Container {
        /// The container's id.
        id: String,
        /// The interface's name in the pod; `None` is any.
        ifname: Option<String>,
    },
    /// The file is empty: its writer died between creating and filling it.
    Nobody,
    /// The file cannot be read or has another content; the text says which.
    Unknown(String),
}

impl AddressOwner {
    /// Whether the address is the attachment's.
    #[must_use]
    pub fn is(&self, attachment: &Attachment) -> bool {
        match self {
            Self::Container { id, ifname } => {
                id == attachment.container_id() && ifname.as_deref().is_none_or(|n| n == attachment.ifname().as_str())
            }
            Self::Nobody | Self::Unknown(_) => false,
        }
    }

    fn parse(content: &[u8]) -> Self {
        let Ok(text) = str::from_utf8(content) else { return Self::Unknown("it is not text".to_owned()) };
        let text = text.trim();
        if text.is_empty() {
            return Self::Nobody;
        }
        let (id, ifname) = match text.split_once('\n') {
            Some((id, ifname)) => (id.trim(), Some(ifname.trim())),
            None => (text, None),
        };
        match Attachment::new(id, ifname.unwrap_or("eth0")) {
            Ok(_) => Self::Container { id: id.to_owned(), ifname: ifname.map(str::to_owned) },
            Err(error) => Self::Unknown(error.to_string()),
        }
    }
}

/// An address in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub addr: IpAddr,
    /// The owner.
    pub owner: AddressOwner,
}

/// The result of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The address is free now.
    Released,
    /// The address was free already, or belongs to another attachment.
    NotOwned,
}

impl AddressDir {
    /// The directory at a path. It need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The addresses in use, by the names of the files alone: a damaged file's address is in use as well.
    ///
    /// # Errors
    /// If the directory cannot be read. A missing one has no addresses.
    pub fn used(&self) -> Result<BTreeSet<IpAddr>, AddressError> {
        let failed = |source| AddressError::Directory { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(failed)?,
        };
        let mut used = BTreeSet::new();
        for entry in entries {
            used.extend(entry.map_err(failed)?.file_name().to_str().and_then(|n| n.parse::<IpAddr>().ok()));
        }
        Ok(used)
    }

    /// Locks the directory until the guard is dropped or the process ends, and creates it if it is missing. Waits for the
    /// process that holds the lock; it holds it only while it reads and writes files.
    ///
    /// # Errors
    /// If the directory cannot be created or locked.
    pub fn lock(&self) -> Result<LockedAddresses<'_>, AddressError> {
        let failed = |source| AddressError::Directory { path: self.dir.clone(), source };
        let open =
            || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.dir.join("lock"));
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&self.dir).and_then(|()| open()),
            file => file,
        };
        let mut file = file.map_err(failed)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(LockedAddresses { dir: self, _lock: lock }),
                Err((again, nix::Error::EINTR)) => file = again,
                Err((_, error)) => return Err(failed(error.into())),
            }
        }
    }
}

/// The locked address directory.
#[derive(Debug)]
pub struct LockedAddresses<'a> {
    dir: &'a AddressDir,
    _lock: Flock<File>,
}

impl LockedAddresses<'_> {
    /// The addresses in use: see [`AddressDir::used`].
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn used(&self) -> Result<BTreeSet<IpAddr>, AddressError> {
        self.dir.used()
    }

    /// The address reserved last of the n-th podCIDR. A damaged file counts as missing: the search then starts at the
    /// beginning of the range, and an address is at worst reused earlier.
    #[must_use]
    pub fn last_reserved(&self, n: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_file(n)).ok()?.trim().parse().ok()
    }

    /// Reserves an address of the n-th podCIDR.
    ///
    /// # Errors
    /// If its file exists or cannot be written; then nothing has changed.
    pub fn reserve(&self, n: usize, addr: IpAddr, attachment: &Attachment) -> Result<(), AddressError> {
        let path = self.file(addr);
        let failed = |path: &Path, source| AddressError::Write { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| failed(&path, source))?;
        let text = format!("{}{SEPARATOR}{}", attachment.container_id(), attachment.ifname());
        let last = self.last_file(n);
        let filled = file.write_all(text.as_bytes()).map_err(|source| failed(&path, source));
        filled.and_then(|()| write_file(&last, &addr.to_string()).map_err(|source| failed(&last, source))).inspect_err(
            |_| {
                // The first error is the one to report; a file that stays behind is released as stale.
                let _ = fs::remove_file(&path);
            },
        )
    }

    /// Releases an address if the attachment owns it. An address with an empty file is released too: its writer is dead,
    /// and the caller knows the address from the attachment's endpoint file.
    ///
    /// # Errors
    /// If the file cannot be read or removed.
    pub fn release(&self, addr: IpAddr, attachment: &Attachment) -> Result<ReleaseOutcome, AddressError> {
        match self.owner(addr) {
            Ok(Some(owner)) if owner.is(attachment) || owner == AddressOwner::Nobody => self.force_release(addr),
            Ok(_) => Ok(ReleaseOutcome::NotOwned),
            Err(source) => Err(AddressError::Read { path: self.file(addr), source }),
        }
    }

    /// Releases an address, whoever owns it.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn force_release(&self, addr: IpAddr) -> Result<ReleaseOutcome, AddressError> {
        let path = self.file(addr);
        match fs::remove_file(&path) {
            Ok(()) => Ok(ReleaseOutcome::Released),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ReleaseOutcome::NotOwned),
            Err(source) => Err(AddressError::Remove { path, source }),
        }
    }

    /// Every address in use with its owner. Reads every file: not for the common path.
    ///
    /// # Errors
    /// If the directory cannot be read. A file that cannot has [`AddressOwner::Unknown`].
    pub fn reservations(&self) -> Result<Vec<Reservation>, AddressError> {
        let used = self.used()?;
        let owned = used.into_iter().filter_map(|addr| {
            let owner = self.owner(addr).unwrap_or_else(|error| Some(AddressOwner::Unknown(error.to_string())))?;
            Some(Reservation { addr, owner })
        });
        Ok(owned.collect())
    }

    /// The owner of an address; `None` if it is free.
    fn owner(&self, addr: IpAddr) -> io::Result<Option<AddressOwner>> {
        let mut content = Vec::new();
        match File::open(self.file(addr)).and_then(|f| f.take(MAX_BYTES).read_to_end(&mut content)) {
            Ok(_) => Ok(Some(AddressOwner::parse(&content))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn file(&self, addr: IpAddr) -> PathBuf {
        self.dir.dir.join(addr.to_string())
    }

    fn last_file(&self, n: usize) -> PathBuf {
        self.dir.dir.join(format!("last_reserved_ip.{n}"))
    }
}

fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment::new(id, "eth0").unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn address_dir() -> (tempfile::TempDir, AddressDir) {
        let dir = tempfile::tempdir().unwrap();
        let addresses = AddressDir::new(dir.path().join("networks/k8s-pod-network"));
        (dir, addresses)
    }

    #[test]
    fn the_files_are_those_of_host_local() {
        let (_dir, addresses) = address_dir();
        assert_eq!(addresses.used().unwrap(), BTreeSet::new(), "no directory yet");
        let locked = addresses.lock().unwrap();
        assert_eq!(locked.last_reserved(0), None);
        locked.reserve(0, ip("10.244.1.2"), &attachment("c1")).unwrap();
        locked.reserve(1, ip("fd00::2"), &attachment("c1")).unwrap();
        let read = |name: &str| fs::read_to_string(addresses.path().join(name)).unwrap();
        assert_eq!(read("10.244.1.2"), "c1\r\neth0");
        assert_eq!(read("fd00::2"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.0"), "10.244.1.2");
        assert_eq!(read("last_reserved_ip.1"), "fd00::2");
        assert_eq!(locked.last_reserved(0), Some(ip("10.244.1.2")));
        assert_eq!(addresses.used().unwrap(), BTreeSet::from([ip("10.244.1.2"), ip("fd00::2")]));
        assert!(locked.reserve(0, ip("10.244.1.2"), &attachment("c2")).is_err(), "never twice");
        assert_eq!(read("10.244.1.2"), "c1\r\neth0", "and the first keeps it");
    }

    #[test]
    fn an_address_is_given_back_by_its_owner_only() {
        let (_dir, addresses) = address_dir();
        let locked = addresses.lock().unwrap();
        let addr = ip("10.244.1.2");
        for (content, id, released, why) in [
            ("c1\r\neth0", "c1", ReleaseOutcome::Released, "its own"),
            ("c1\r\neth0\n", "c1", ReleaseOutcome::Released, "with a trailing newline"),
            ("c1\neth0", "c1", ReleaseOutcome::Released, "an older host-local's newline"),
            ("c1", "c1", ReleaseOutcome::Released, "an older host-local's file without an interface"),
            ("c1\r\neth0", "c2", ReleaseOutcome::NotOwned, "another container's"),
            ("c1\r\nnet1", "c1", ReleaseOutcome::NotOwned, "another interface's"),
            ("", "c1", ReleaseOutcome::Released, "left empty by a crash"),
            ("\u{1}garbage/", "c1", ReleaseOutcome::NotOwned, "nobody knows whose"),
        ] {
            fs::write(addresses.path().join("10.244.1.2"), content).unwrap();
            assert_eq!(locked.release(addr, &attachment(id)).unwrap(), released, "{why}");
            assert_eq!(addresses.used().unwrap().contains(&addr), released == ReleaseOutcome::NotOwned, "{why}");
        }
        locked.force_release(addr).unwrap();
        assert_eq!(locked.release(addr, &attachment("c1")).unwrap(), ReleaseOutcome::NotOwned, "free already");
    }

    #[test]
    fn a_damaged_file_keeps_its_address_in_use_and_harms_no_other() {
        let (_dir, addresses) = address_dir();
        let locked = addresses.lock().unwrap();
        locked.reserve(0, ip("10.244.1.2"), &attachment("c1")).unwrap();
        fs::write(addresses.path().join("10.244.1.3"), [0xff, 0xfe, 0x00]).unwrap();
        fs::create_dir(addresses.path().join("10.244.1.4")).unwrap();
        fs::write(addresses.path().join("last_reserved_ip.0"), "nonsense").unwrap();
        fs::write(addresses.path().join("README"), "not an address").unwrap();
        let reservations = locked.reservations().unwrap();
        assert_eq!(reservations.len(), 3);
        assert!(reservations[0].owner.is(&attachment("c1")));
        assert!(reservations[1..].iter().all(|r| matches!(r.owner, AddressOwner::Unknown(_))), "{reservations:?}");
        assert_eq!(locked.last_reserved(0), None);
    }

    #[test]
    fn the_lock_keeps_others_out_until_it_is_dropped() {
        let (_dir, addresses) = address_dir();
        let locked = addresses.lock().unwrap();
        let other = addresses.clone();
        let waiting = std::thread::spawn(move || {
            let locked = other.lock().unwrap();
            locked.used().unwrap().len()
        });
        for n in 2..52 {
            locked.reserve(0, ip(&format!("10.244.1.{n}")), &attachment("c1")).unwrap();
        }
        drop(locked);
        assert_eq!(waiting.join().unwrap(), 50, "the other came in only afterwards");
    }
}
