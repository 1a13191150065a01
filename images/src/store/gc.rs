//! What may be deleted, and when.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Store;
use super::disk;
use super::error::StoreError;
use super::index::Index;
use crate::digest::Digest;

/// A download that broke off longer ago than this is not resumed any more.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Protects digests from being swept while a pull or load works on them. A
/// locked file: the lock tells that its process lives.
#[derive(Debug)]
pub(crate) struct Lease {
    store: Store,
    path: PathBuf,
    file: File,
}

impl Lease {
    /// Adds digests of blobs or layers. Only after this may one look whether
    /// they are in the store.
    pub(crate) fn extend<'a>(
        &mut self,
        digests: impl IntoIterator<Item = &'a Digest>,
    ) -> Result<(), StoreError> {
        // Readers hold the store's lock too, and never see half a line.
        let _lock = self.store.lock()?;
        let text: String =
            digests.into_iter().map(|digest| format!("{}\n", digest.hex())).collect();
        self.file.write_all(text.as_bytes()).map_err(StoreError::io("write", &self.path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// A new lease, on nothing yet.
    pub(crate) fn lease(&self) -> Result<Lease, StoreError> {
        let _lock = self.lock()?;
        let path = self.root.join("leases").join(disk::unique_name());
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("write", &path))?;
        file.lock().map_err(StoreError::io("lock", &path))?;
        Ok(Lease { store: self.clone(), path, file })
    }

    /// Removes what dead processes left behind.
    pub(super) fn clean_up(&self) -> Result<(), StoreError> {
        disk::sweep_scratch(&self.root.join("tmp"), &self.root.join("locks/tmp"))?;
        for path in entries(&self.root.join("locks"))? {
            if !path.ends_with("tmp") {
                // Goes with its lock, unless somebody holds that.
                drop(disk::KeyLock::try_acquire(&path)?);
            }
        }
        let _lock = self.lock()?;
        self.live_leases()?;
        Ok(())
    }

    /// Removes what belongs to no image, for instance after a failed load.
    pub(crate) fn collect(&self) -> Result<(), StoreError> {
        let lock = self.lock()?;
        let index = self.read_index()?;
        self.sweep(lock, &index)
    }

    /// Removes broken downloads that nobody is to resume.
    pub(crate) fn discard_partials(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let mut paths = digests.iter().map(|digest| self.partial_path(digest));
        paths.try_for_each(|path| disk::remove_file(&path))
    }

    /// Deletes blobs and layers that no image of `index` and no live lease
    /// names. Gives the lock back before the slow part.
    pub(super) fn sweep(&self, lock: File, index: &Index) -> Result<(), StoreError> {
        let mut live = self.live_leases()?;
        for image in &index.images {
            let own = [&image.id, &image.manifest];
            let parts = image.blobs.iter().chain(&image.layers).chain(own);
            live.extend(parts.map(|digest| digest.hex().to_owned()));
        }
        for path in entries(&self.root.join("blobs/sha256"))? {
            if !live.contains(stem(&path)) {
                disk::remove_file(&path)?;
            }
        }
        for path in entries(&self.root.join("blobs/partial"))? {
            let age = fs::metadata(&path).and_then(|meta| meta.modified());
            let age = age.ok().and_then(|time| time.elapsed().ok());
            if !live.contains(stem(&path)) && age.is_none_or(|age| age > PARTIAL_KEPT) {
                disk::remove_file(&path)?;
            }
        }
        let scratch = self.scratch()?;
        for path in entries(&self.root.join("layers"))? {
            if live.contains(stem(&path)) {
                continue;
            }
            if path.is_dir() {
                let doomed = scratch.path().join(stem(&path));
                fs::rename(&path, doomed).map_err(StoreError::io("remove", &path))?;
                disk::remove_file(&path.with_extension("json"))?;
            } else if !path.with_extension("").is_dir() {
                disk::remove_file(&path)?;
            }
        }
        drop(lock);
        drop(scratch);
        Ok(())
    }

    /// Hex digests that live leases name; removes the dead ones. The caller
    /// holds the store's lock.
    fn live_leases(&self) -> Result<HashSet<String>, StoreError> {
        let mut live = HashSet::new();
        for path in entries(&self.root.join("leases"))? {
            // Gone since it was listed: dropped by its owner.
            let Ok(mut file) = File::open(&path) else {
                continue;
            };
            if disk::try_lock(&file, &path)? {
                disk::remove_file(&path)?;
                continue;
            }
            let mut text = String::new();
            file.rewind()
                .and_then(|()| file.read_to_string(&mut text))
                .map_err(StoreError::io("read", &path))?;
            live.extend(text.lines().map(str::to_owned));
        }
        Ok(live)
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    };
    list().map_err(StoreError::io("list", dir))
}

/// The hex digest in a file name.
fn stem(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.split('.').next()).unwrap_or("")
}
