//! `layers/`: each layer unpacked once, whatever image it came with.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Store;
use super::disk::{self, KeyLock};
use super::error::StoreError;
use crate::digest::Digest;
use crate::progress::{Event, Phase, Progress};
use crate::unpack::{Cancel, Limits, UnpackError, Unpacked, unpack};

/// `layers/HEX.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerMeta {
    /// Bytes of file content.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// The layer hides all layers below.
    #[serde(default)]
    pub(crate) opaque_root: bool,
}

impl Store {
    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn layer_meta_path(&self, diff_id: &Digest) -> PathBuf {
        self.layer_path(diff_id).with_extension("json")
    }

    /// What is known about a layer, if it is there.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<LayerMeta>, StoreError> {
        if !self.layer_path(diff_id).is_dir() {
            return Ok(None);
        }
        let path = self.layer_meta_path(diff_id);
        match fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Unpacks the blob `blob` unless the layer is there. The caller's lease
    /// covers both.
    pub(crate) fn ensure_layer(
        &self,
        blob: &Digest,
        diff_id: &Digest,
        limits: &Limits,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<LayerMeta, StoreError> {
        let lock_path = self.root.join(format!("locks/layer-{}", diff_id.hex()));
        let _lock = KeyLock::acquire(&lock_path, cancel)?;
        let item = blob.to_string();
        let phase = Phase::Unpack;
        if let Some(meta) = self.layer(diff_id)? {
            progress.event(Event::End { item: &item, phase, cached: true });
            return Ok(meta);
        }
        let scratch = self.scratch()?;
        let dir = scratch.path().join("layer");
        let unpacked = self.unpack_blob(blob, &dir, limits, cancel, progress)?;
        if unpacked.diff_id != *diff_id {
            return Err(StoreError::WrongDiffId {
                blob: blob.clone(),
                expected: diff_id.clone(),
                actual: unpacked.diff_id,
            });
        }
        let meta = LayerMeta {
            bytes: unpacked.bytes,
            entries: unpacked.entries,
            opaque_root: unpacked.opaque_root,
        };
        self.place_layer(&dir, diff_id, &meta, &scratch)?;
        progress.event(Event::End { item: &item, phase, cached: false });
        Ok(meta)
    }

    fn unpack_blob(
        &self,
        blob: &Digest,
        dir: &std::path::Path,
        limits: &Limits,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Unpacked, StoreError> {
        let path = self.blob_path(blob);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let total = file.metadata().map_or(0, |meta| meta.len());
        disk::make_dir(dir, 0o755)?;
        let item = blob.to_string();
        let phase = Phase::Unpack;
        progress.event(Event::Begin { item: &item, phase, total });
        let seen = |done| {
            progress.event(Event::Advance { item: &item, phase, done });
        };
        unpack(file, dir, limits, cancel, &seen).map_err(|source| match source {
            UnpackError::Cancelled => StoreError::Cancelled,
            source => StoreError::Unpack { blob: blob.clone(), source },
        })
    }

    /// Makes an unpacked directory durable and then visible. The caller holds
    /// the layer's lock.
    fn place_layer(
        &self,
        dir: &std::path::Path,
        diff_id: &Digest,
        meta: &LayerMeta,
        scratch: &disk::Scratch,
    ) -> Result<(), StoreError> {
        let sync = || -> io::Result<()> {
            // One call for the whole file system: a layer has thousands of
            // files, and an fsync for each takes far longer.
            Ok(nix::unistd::syncfs(File::open(dir)?)?)
        };
        sync().map_err(StoreError::io("sync", dir))?;
        let place = self.layer_path(diff_id);
        if place.exists() {
            // Not ours, or its description is damaged: out of the way.
            let aside = scratch.path().join("aside");
            fs::rename(&place, aside).map_err(StoreError::io("replace", &place))?;
        }
        let text = serde_json::to_vec(meta).map_err(|error| StoreError::Damaged {
            id: diff_id.short().to_owned(),
            what: error.to_string(),
        })?;
        disk::write_atomic(&self.layer_meta_path(diff_id), &text)?;
        fs::rename(dir, &place).map_err(StoreError::io("write", &place))?;
        disk::sync_dir(&self.root.join("layers"))
    }
}
