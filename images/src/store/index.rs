//! `images.json`: which images there are, by which names, made of what.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::disk;
use super::error::StoreError;
use crate::digest::Digest;
use crate::reference::Reference;

/// The format written and the newest one read.
const VERSION: u32 = 1;

/// All images of a store.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    pub(super) images: Vec<Record>,
}

/// One image. Its identity is the digest of its configuration, as in docker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: Digest,
    /// The manifest that it was made from last.
    pub(crate) manifest: Digest,
    /// Full names, each held by one image at most.
    #[serde(default)]
    pub(crate) references: BTreeSet<String>,
    /// `name@digest` forms that find the image but do not keep it.
    #[serde(default)]
    pub(crate) repo_digests: BTreeSet<String>,
    /// Everything in `blobs/` that belongs to it.
    pub(crate) blobs: Vec<Digest>,
    /// Diff ids, bottom to top.
    pub(crate) layers: Vec<Digest>,
    /// Bytes of all unpacked layers.
    pub(crate) size: u64,
}

impl Index {
    /// Reads the list; a store without one is empty.
    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, images: Vec::new() });
            }
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let bad = |source| StoreError::BadIndex { path: path.to_owned(), source };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(&text).map_err(bad)?;
        if version > VERSION {
            return Err(StoreError::NewerIndex {
                path: path.to_owned(),
                found: version,
                known: VERSION,
            });
        }
        serde_json::from_slice(&text).map_err(bad)
    }

    /// Replaces the list on disk. The caller holds the store's lock.
    pub(super) fn write(&self, path: &Path) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| StoreError::BadIndex { path: path.to_owned(), source })?;
        disk::write_atomic(path, &text)
    }

    /// Adds an image or what is new about a known one. Names move here from
    /// whichever image had them.
    pub(super) fn put(&mut self, mut new: Record) {
        for image in &mut self.images {
            if image.id != new.id {
                image.references.retain(|name| !new.references.contains(name));
            }
        }
        match self.images.iter_mut().find(|image| image.id == new.id) {
            Some(known) => {
                new.references.append(&mut known.references);
                new.repo_digests.append(&mut known.repo_digests);
                *known = new;
            }
            None => self.images.push(new),
        }
    }

    /// Finds an image by full id, name, or the start of its id, in this order.
    pub(super) fn find(&self, name: &str) -> Result<Found, StoreError> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() == 64
            && let Some(at) = self.images.iter().position(|image| image.id.hex() == hex)
        {
            return Ok(Found { at, name: None });
        }
        let parsed = name.parse::<Reference>();
        if let Ok(reference) = &parsed {
            let full = reference.canonical().to_string();
            let has = |image: &Record| image.references.contains(&full);
            if let Some(at) = self.images.iter().position(has) {
                return Ok(Found { at, name: Some(full) });
            }
            let pins = |image: &Record| image.repo_digests.contains(&full);
            if let Some(at) = self.images.iter().position(pins) {
                return Ok(Found { at, name: None });
            }
        }
        let is_hex = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let fits: Vec<usize> = (0..self.images.len())
            .filter(|at| is_hex && self.images[*at].id.hex().starts_with(hex))
            .collect();
        match (fits.as_slice(), parsed) {
            ([at], _) => Ok(Found { at: *at, name: None }),
            ([], Err(bad)) if !is_hex => Err(bad.into()),
            ([], _) => Err(StoreError::NotFound { name: name.to_owned() }),
            (many, _) => Err(StoreError::Ambiguous { prefix: name.to_owned(), count: many.len() }),
        }
    }
}

/// Where [`Index::find`] found an image, and by which of its names if so.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) at: usize,
    pub(super) name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seed: &str, names: &[&str]) -> Record {
        Record {
            id: Digest::of(seed.as_bytes()),
            manifest: Digest::of(b"m"),
            references: names.iter().map(|name| name.to_string()).collect(),
            repo_digests: BTreeSet::new(),
            blobs: Vec::new(),
            layers: Vec::new(),
            size: 0,
        }
    }

    fn empty() -> Index {
        Index { version: VERSION, images: Vec::new() }
    }

    #[test]
    fn a_name_belongs_to_the_image_that_got_it_last() {
        let mut index = empty();
        index.put(record("a", &["docker.io/library/x:1"]));
        index.put(record("b", &["docker.io/library/x:1"]));
        assert!(index.images[0].references.is_empty());
        assert_eq!(index.find("x:1").unwrap().at, 1);
        index.put(record("b", &["docker.io/library/y:1"]));
        assert_eq!(index.images[1].references.len(), 2);
    }

    #[test]
    fn ids_and_their_prefixes_are_found() {
        let mut index = empty();
        index.put(record("a", &[]));
        index.put(record("b", &[]));
        let id = Digest::of(b"b");
        for name in [id.to_string().as_str(), id.hex(), id.short(), &id.hex()[..5]] {
            assert_eq!(index.find(name).unwrap(), Found { at: 1, name: None });
        }
        assert!(matches!(index.find("nope:1"), Err(StoreError::NotFound { .. })));
        assert!(matches!(index.find("NO PE"), Err(StoreError::Reference(_))));
        index.images[0].id = index.images[1].id.clone();
        assert!(matches!(index.find(id.short()), Err(StoreError::Ambiguous { count: 2, .. })));
    }

    #[test]
    fn a_store_of_the_future_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.json");
        fs::write(&path, r#"{"version":9,"pictures":{}}"#).unwrap();
        assert!(matches!(Index::read(&path), Err(StoreError::NewerIndex { found: 9, .. })));
        fs::write(&path, "{").unwrap();
        assert!(matches!(Index::read(&path), Err(StoreError::BadIndex { .. })));
    }
}
