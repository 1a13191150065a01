//! Files that survive a crash, locks, and scratch space that does not outlive
//! its process.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::error::StoreError;
use crate::unpack::Cancel;

/// How often a lock held by another process is tried again.
pub(crate) const LOCK_POLL: Duration = Duration::from_millis(30);

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync", dir))
}

/// Writes a whole file at once: after a crash there is the old or the new
/// content. The caller keeps other writers of the same path away.
pub(super) fn write_atomic(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&new);
        return Err(StoreError::io("write", path)(error));
    }
    fs::rename(&new, path).map_err(StoreError::io("write", path))?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes a directory with `mode` unless it is there.
pub(super) fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(StoreError::io("create the directory", path)),
    }
}

/// Removes a file that may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StoreError::io("remove", path)),
    }
}

/// Opens a lock file.
fn open_lock(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::io("open the lock", path))
}

/// Waits for an exclusive lock on `path`, which stays as a file.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let file = open_lock(path)?;
    file.lock().map_err(StoreError::io("lock", path))?;
    Ok(file)
}

/// Takes a lock without waiting; `None` if somebody has it.
pub(super) fn try_lock(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", path)(error)),
    }
}

/// Exclusive work on one blob or layer, among threads and processes. The
/// kernel gives the lock back when the process dies; the file goes on drop.
#[derive(Debug)]
pub(crate) struct KeyLock {
    path: PathBuf,
    _file: File,
}

impl KeyLock {
    /// `None` if somebody else has it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = open_lock(path)?;
        if !try_lock(&file, path)? {
            return Ok(None);
        }
        // The holder before us may have removed the file that we opened.
        match (file.metadata(), fs::metadata(path)) {
            (Ok(ours), Ok(there)) if ours.ino() == there.ino() => {
                Ok(Some(Self { path: path.to_owned(), _file: file }))
            }
            _ => Ok(None),
        }
    }

    /// Waits for it on this thread.
    pub(super) fn acquire(path: &Path, cancel: &Cancel) -> Result<Self, StoreError> {
        loop {
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(lock);
            }
            if cancel.is_cancelled() {
                return Err(StoreError::Cancelled);
            }
            std::thread::sleep(LOCK_POLL);
        }
    }
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Before the unlock: nobody else can have locked this file by then.
        let _ = fs::remove_file(&self.path);
    }
}

/// A directory in `tmp/` that is removed on drop, or after the death of its
/// process by whoever opens the store next: a lock on the directory itself
/// tells whether its process lives, which a pid in a name could not.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _lock: File,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A name that no other live process or thread uses.
pub(super) fn unique_name() -> String {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{serial}-{}", std::process::id(), now.as_nanos())
}

impl Scratch {
    /// Makes one in `tmp`. The lock `gate` keeps [`sweep_scratch`] away
    /// between the making and the locking.
    pub(super) fn new(tmp: &Path, gate: &Path) -> Result<Self, StoreError> {
        let _gate = lock(gate)?;
        let path = tmp.join(unique_name());
        make_dir(&path, 0o700)?;
        let dir = File::open(&path).map_err(StoreError::io("open", &path))?;
        dir.lock().map_err(StoreError::io("lock", &path))?;
        Ok(Self { path, _lock: dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "left behind for the next start");
        }
    }
}

/// Removes the scratch directories of dead processes.
pub(super) fn sweep_scratch(tmp: &Path, gate: &Path) -> Result<(), StoreError> {
    let mut dead = Vec::new();
    {
        let _gate = lock(gate)?;
        for entry in fs::read_dir(tmp).map_err(StoreError::io("list", tmp))? {
            let path = entry.map_err(StoreError::io("list", tmp))?.path();
            if let Ok(dir) = File::open(&path)
                && try_lock(&dir, &path)?
            {
                dead.push(Scratch { path, _lock: dir });
            }
        }
    }
    // Dropped, and so removed, outside of the gate: it may take a while.
    drop(dead);
    Ok(())
}
