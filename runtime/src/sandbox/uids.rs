//! Ranges of host uids, one per live sandbox.
//!
//! A range is taken by locking a file, so that the kernel frees it however its
//! owner ends. One that ends well removes the file; whoever tidies up after
//! another removes it then ([`purge`]). The file names the sandbox that
//! had it last, by the path of its cgroup: if there still is a process in it (its
//! supervisor died a moment ago), the range is passed over.

use std::fs::{File, Metadata, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How many ids every machine has: 0 to 65535.
pub const LOW: u32 = 65_536;
/// How many a machine can have beside them, see [`super::ids`].
pub const HIGH: u32 = 65_536;
/// Number of ids of a range.
pub const RANGE: u32 = LOW + HIGH;
/// First id of the first range: above those that systems give to users and
/// systemd to its containers (0x0008_0000..=0x6fff_ffff, see its UIDS-GIDS.md).
pub const FIRST: u32 = 0x7000_0000;
/// Number of ranges. They, and what follows them, end at 0x7ffe_0000, from where on
/// systemd has its foreign images.
pub const COUNT: u32 = 2046;
/// First of the ids, as many as [`LOW`], that no process of any sandbox ever has.
pub const NOBODYS: u32 = FIRST + COUNT * RANGE;

/// Why no range is to be had.
#[derive(Debug, thiserror::Error)]
pub enum UidError {
    /// All are in use.
    #[error("all {COUNT} ranges of host uids are in use: too many sandboxes run")]
    Exhausted,
    /// A lock file.
    #[error("cannot lock a range of host uids in {}", path.display())]
    Lock {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A range of host uids, ours as long as this lives.
#[derive(Debug)]
pub struct UidRange {
    index: u32,
    path: PathBuf,
    _lock: File,
}

impl Drop for UidRange {
    fn drop(&mut self) {
        // Under the lock: whoever opened it meanwhile sees that it is gone.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl UidRange {
    /// Takes a free range for the sandbox that is charged to cgroup `id`.
    /// `alive` tells whether a cgroup still has processes.
    ///
    /// # Errors
    /// When none is free or the directory cannot be used.
    pub fn take(
        directory: &Path,
        id: &str,
        alive: impl Fn(&str) -> bool,
    ) -> Result<UidRange, UidError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| UidError::Lock { path, source }
        };
        crate::dirs::make_private(directory).map_err(fail(directory))?;
        // Spread, so that sandboxes started at once do not queue for one file.
        let seed =
            id.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        for step in 0..COUNT {
            let index = seed.wrapping_add(step) % COUNT;
            let path = directory.join(index.to_string());
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let mut lock = options.open(&path).map_err(fail(&path))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(source)) => return Err(fail(&path)(source)),
            }
            if !is_at(&lock, &path) {
                // Its last owner removed it between our two calls.
                continue;
            }
            let mut last = String::new();
            lock.read_to_string(&mut last).map_err(fail(&path))?;
            if !last.is_empty() && alive(&last) {
                continue;
            }
            let write = |lock: &mut File| -> std::io::Result<()> {
                lock.set_len(0)?;
                lock.rewind()?;
                lock.write_all(id.as_bytes())
            };
            write(&mut lock).map_err(fail(&path))?;
            return Ok(UidRange { index, path, _lock: lock });
        }
        Err(UidError::Exhausted)
    }

    /// First id of the range.
    pub fn base(&self) -> u32 {
        FIRST + self.index * RANGE
    }
}

/// Removes the file of the dead sandbox with the cgroup `id`, if it left one.
pub fn purge(directory: &Path, id: &str) {
    for path in std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()) {
        let Ok(mut lock) = File::options().read(true).write(true).open(&path) else { continue };
        let mut last = String::new();
        let dead = lock.try_lock().is_ok()
            && is_at(&lock, &path)
            && lock.read_to_string(&mut last).is_ok_and(|_| last == id);
        if dead {
            // Under the lock, as above.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Whether `path` still names `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let (ours, there) = (file.metadata().map(id), path.metadata().map(id));
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_disjoint_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let take = |id: &str| UidRange::take(dir.path(), id, |_| false).unwrap();
        let (a, b) = (take("same"), take("same"));
        assert!(a.base().abs_diff(b.base()) >= RANGE);
        let base = a.base();
        drop(a);
        assert_eq!(take("same").base(), base);
    }

    #[test]
    fn a_range_whose_last_owner_still_lives_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = UidRange::take(dir.path(), "one", |_| false).unwrap();
        // What a killed owner leaves.
        std::fs::copy(&first.path, dir.path().join("left")).unwrap();
        let path = first.path.clone();
        let base = first.base();
        drop(first);
        std::fs::rename(dir.path().join("left"), path).unwrap();
        let second = UidRange::take(dir.path(), "one", |id| id == "one").unwrap();
        assert_ne!(second.base(), base);
        drop(second);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_the_file_of_the_dead_is_purged() {
        let dir = tempfile::tempdir().unwrap();
        let dead = UidRange::take(dir.path(), "dead", |_| false).unwrap();
        purge(dir.path(), "dead");
        assert!(dead.path.exists(), "it was locked");
        let path = dead.path.clone();
        drop(dead);
        std::fs::write(&path, "dead").unwrap();
        purge(dir.path(), "another");
        assert!(path.exists());
        purge(dir.path(), "dead");
        assert!(!path.exists());
    }

    #[test]
    fn all_ranges_end_before_systemds() {
        const { assert!(NOBODYS + LOW <= 0x7ffe_0000) };
    }
}
