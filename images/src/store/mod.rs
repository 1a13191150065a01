//! The content store.
//!
//! ```text
//! images.json            names and images (index.rs), replaced atomically
//! lock                   held while images.json changes and while sweeping
//! blobs/sha256/HEX       manifests, configurations, compressed layers
//! blobs/partial/HEX      downloads that broke off
//! layers/HEX/            an unpacked layer, by diff id; HEX.json is about it
//! leases/NAME            digests that a pull or load under way relies on
//! locks/NAME             one per blob or layer being made
//! tmp/NAME/              scratch space of live processes
//! ```
//!
//! Invariants, which hold after a crash at any moment:
//!
//! * a name in `blobs/sha256` or `layers` stands for its whole, verified
//!   content: both are made elsewhere, synced, and renamed into place;
//! * `layers/HEX` exists only together with `HEX.json`;
//! * what `images.json` names exists: an image is entered last and taken out
//!   first;
//! * nothing is swept that an image or the lease of a live process names; a
//!   lease is taken before anybody looks whether the content is there.
//!
//! Only root can look inside: layers hold setuid programs of strangers.

mod blobs;
mod disk;
mod error;
mod gc;
mod index;
mod layers;

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::reference::Reference;
use index::Index;

pub(crate) use disk::{KeyLock, LOCK_POLL, Scratch};
pub use error::StoreError;
pub(crate) use gc::Lease;
pub(crate) use index::Record;
pub(crate) use layers::LayerMeta;

/// Where images are kept unless the caller says otherwise.
pub const DEFAULT_ROOT: &str = "/var/lib/bulkhead";

/// An image, ready to be run.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: docker's image id.
    pub id: Digest,
    /// Digest of the manifest that it was made from last.
    pub manifest_digest: Digest,
    /// Its names; empty for an image that lost them.
    pub references: Vec<Reference>,
    /// `name@digest` forms under which registries know it.
    pub repo_digests: Vec<String>,
    /// What to run and how.
    pub config: ImageConfiguration,
    /// Directories of the unpacked layers, bottom to top. Lower layers that an
    /// opaque root hides are left out.
    pub layers: Vec<PathBuf>,
    /// Bytes of all files in all layers.
    pub size: u64,
    /// When it was built (RFC 3339), if it says so.
    pub created: Option<String>,
}

/// A handle on a store; clones share it. Any number of processes may use the
/// same store at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: Arc<PathBuf>,
}

impl Store {
    /// Opens the store under `root`, makes what is missing of it, and removes
    /// what dead processes left behind.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] if a directory cannot be made or locked.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = root.as_ref();
        if !root.is_dir() {
            if let Some(parent) = root.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(StoreError::io("create the directory", parent))?;
            }
            disk::make_dir(root, 0o711)?;
        }
        let root = root.canonicalize().map_err(StoreError::io("open", root))?;
        for dir in ["blobs", "blobs/sha256", "blobs/partial", "layers", "leases", "locks", "tmp"] {
            disk::make_dir(&root.join(dir), 0o700)?;
        }
        let store = Self { root: Arc::new(root) };
        store.clean_up()?;
        Ok(store)
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All images, those named first, by name.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if part of an image is missing.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let index = self.read_index()?;
        let mut images =
            index.images.iter().map(|record| self.image(record)).collect::<Result<Vec<_>, _>>()?;
        let key = |image: &Image| {
            let name = image.references.first().map(Reference::to_string);
            (name.is_none(), name, image.id.clone())
        };
        images.sort_by_key(key);
        Ok(images)
    }

    /// The image with this name, id, or start of an id.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], [`StoreError::Ambiguous`], or
    /// [`StoreError::Damaged`] if part of the image is missing.
    pub fn resolve(&self, name: &str) -> Result<Image, StoreError> {
        let index = self.read_index()?;
        self.image(&index.images[index.find(name)?.at])
    }

    /// Gives an image another name; the name is taken from whichever had it.
    ///
    /// # Errors
    ///
    /// Those of [`Store::resolve`], or the list cannot be written.
    pub fn tag(&self, name: &str, new: &Reference) -> Result<Image, StoreError> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let at = index.find(name)?.at;
        let mut record = index.images[at].clone();
        record.references = BTreeSet::from([new.canonical().to_string()]);
        index.put(record);
        index.write(&self.index_path())?;
        self.image(&index.images[at])
    }

    /// Removes a name, and the image with its last one. `in_use` holds the
    /// ids of images that containers run from: such an image is only removed
    /// by `force`, and then stays without a name until it is removed by its id.
    ///
    /// Returns lines in docker's form: `Untagged: NAME`, `Deleted: ID`.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`], [`StoreError::SeveralNames`] (by id, not
    /// forced), those of [`Store::resolve`], or the disk's.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &HashSet<Digest>,
    ) -> Result<Vec<String>, StoreError> {
        let lock = self.lock()?;
        let mut index = self.read_index()?;
        let found = index.find(name)?;
        let image = &mut index.images[found.at];
        let all = found.name.is_none() || image.references.len() <= 1;
        let used = in_use.contains(&image.id);
        if all && !force {
            if used {
                let id = image.id.short().to_owned();
                return Err(StoreError::InUse { id });
            }
            if image.references.len() > 1 {
                return Err(several_names(image));
            }
        }
        let gone: Vec<String> = match (all, found.name) {
            (false, Some(name)) => vec![name],
            _ => image.references.iter().cloned().collect(),
        };
        let mut report = Vec::new();
        for name in gone {
            image.references.remove(&name);
            report.push(format!("Untagged: {}", familiar(&name)));
        }
        if all && !used {
            report.push(format!("Deleted: {}", image.id));
            index.images.remove(found.at);
        }
        index.write(&self.index_path())?;
        self.sweep(lock, &index)?;
        Ok(report)
    }

    /// Enters an image whose blobs and layers are all in place.
    pub(crate) fn commit(&self, record: Record) -> Result<Image, StoreError> {
        let _lock = self.lock()?;
        let mut index = self.read_index()?;
        let id = record.id.clone();
        index.put(record);
        index.write(&self.index_path())?;
        let known = index.images.iter().find(|image| image.id == id);
        self.image(known.ok_or_else(|| damaged(&id, "it vanished".to_owned()))?)
    }

    fn image(&self, record: &Record) -> Result<Image, StoreError> {
        let config = self
            .read_blob(&record.id)
            .map_err(|error| damaged(&record.id, format!("its configuration: {error}")))?;
        let config: ImageConfiguration = serde_json::from_slice(&config)
            .map_err(|error| damaged(&record.id, format!("its configuration: {error}")))?;
        let mut layers = Vec::new();
        for diff_id in &record.layers {
            let meta = self.layer(diff_id)?;
            let meta =
                meta.ok_or_else(|| damaged(&record.id, format!("layer {diff_id} is gone")))?;
            if meta.opaque_root {
                layers.clear();
            }
            layers.push(self.layer_path(diff_id));
        }
        Ok(Image {
            id: record.id.clone(),
            manifest_digest: record.manifest.clone(),
            references: record.references.iter().filter_map(|name| name.parse().ok()).collect(),
            repo_digests: record.repo_digests.iter().cloned().collect(),
            created: config.created().clone(),
            config,
            layers,
            size: record.size,
        })
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("images.json")
    }

    fn read_index(&self) -> Result<Index, StoreError> {
        Index::read(&self.index_path())
    }

    /// The store's lock; held briefly, never over a download or an unpack.
    fn lock(&self) -> Result<File, StoreError> {
        disk::lock(&self.root.join("lock"))
    }

    pub(crate) fn scratch(&self) -> Result<Scratch, StoreError> {
        Scratch::new(&self.root.join("tmp"), &self.root.join("locks/tmp"))
    }
}

fn familiar(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => reference.familiar(),
        Err(_) => name.to_owned(),
    }
}

fn several_names(image: &Record) -> StoreError {
    let names: Vec<_> = image.references.iter().map(|name| familiar(name)).collect();
    StoreError::SeveralNames { id: image.id.short().to_owned(), names: names.join(", ") }
}

fn damaged(id: &Digest, what: String) -> StoreError {
    StoreError::Damaged { id: id.short().to_owned(), what }
}

#[cfg(test)]
mod tests;
