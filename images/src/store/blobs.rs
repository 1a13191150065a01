//! `blobs/`: files named by the digest of their content.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Store;
use super::disk;
use super::error::StoreError;
use crate::digest::Digest;
use crate::unpack::Cancel;

impl Store {
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Where an unfinished download waits to be resumed.
    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/partial").join(digest.hex())
    }

    /// The lock for making this blob.
    pub(crate) fn blob_lock_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(format!("locks/blob-{}", digest.hex()))
    }

    /// Size in bytes, if the blob is there.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Option<u64> {
        let meta = fs::metadata(self.blob_path(digest)).ok()?;
        Some(meta.len())
    }

    /// Reads a small blob: a manifest or a configuration.
    pub(crate) fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let content = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let actual = Digest::of(&content);
        match actual == *digest {
            true => Ok(content),
            false => Err(StoreError::Corrupted { expected: digest.clone(), actual }),
        }
    }

    /// Stores a small blob.
    pub(crate) fn put_blob(&self, content: &[u8]) -> Result<Digest, StoreError> {
        let (cancel, seen) = (Cancel::default(), |_| {});
        let (digest, _) = self.import_blob(content, &cancel, &seen, |_| Ok(()))?;
        Ok(digest)
    }

    /// Stores whatever `data` gives, under its digest. `seen` is told the
    /// bytes so far; `check` sees the digest before the blob is in place, to
    /// refuse it or to extend a lease to it.
    pub(crate) fn import_blob(
        &self,
        data: impl Read,
        cancel: &Cancel,
        seen: &dyn Fn(u64),
        check: impl FnOnce(&Digest) -> Result<(), StoreError>,
    ) -> Result<(Digest, u64), StoreError> {
        let scratch = self.scratch()?;
        let path = scratch.path().join("blob");
        let mut file = File::create(&path).map_err(StoreError::io("create", &path))?;
        let mut data = BufReader::with_capacity(256 << 10, data);
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buf = vec![0; 256 << 10];
        loop {
            let n = data.read(&mut buf).map_err(StoreError::io("read the source of", &path))?;
            if n == 0 {
                break;
            }
            if cancel.is_cancelled() {
                return Err(StoreError::Cancelled);
            }
            hash.update(&buf[..n]);
            file.write_all(&buf[..n]).map_err(StoreError::io("write", &path))?;
            size += n as u64;
            seen(size);
        }
        let digest = Digest::from_hash(&hash.finalize().into());
        check(&digest)?;
        self.place_blob(&file, &path, &digest)?;
        Ok((digest, size))
    }

    /// Moves a complete, verified file into place.
    pub(crate) fn place_blob(
        &self,
        file: &File,
        from: &Path,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        file.sync_all().map_err(StoreError::io("sync", from))?;
        let path = self.blob_path(digest);
        fs::rename(from, &path).map_err(StoreError::io("write", &path))?;
        disk::sync_dir(&self.root.join("blobs/sha256"))
    }
}
