//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::reference::ReferenceError;
use crate::unpack::UnpackError;

/// An operation on the store that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file system is full or the quota is used up.
    #[error(
        "the disk is full: no space left to write {}; free some space (`bulkhead rmi` removes images) and try again",
        path.display()
    )]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The list of images cannot be read.
    #[error("the list of images {} is damaged; move it away and pull the images again", path.display())]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// Where the JSON breaks.
        source: serde_json::Error,
    },
    /// The store was written by a later version of this program.
    #[error("the image store {} has format {found}, this program knows {known}: use a newer bulkhead", path.display())]
    NewerIndex {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest known one.
        known: u32,
    },
    /// No image has that name or id.
    #[error(
        "no image {name:?} in the store; `bulkhead pull` fetches one, `bulkhead images` lists them"
    )]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// An id prefix fits several images.
    #[error("the id {prefix:?} fits {count} images; give more digits")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many images it fits.
        count: usize,
    },
    /// A container uses the image.
    #[error(
        "image {id} is in use by a container; remove the container first, or force it to remove only the names"
    )]
    InUse {
        /// Short id of the image.
        id: String,
    },
    /// An image was to be removed by its id, but has several names.
    #[error("image {id} has several names ({names}); remove them one by one, or force it")]
    SeveralNames {
        /// Short id of the image.
        id: String,
        /// The names.
        names: String,
    },
    /// Something that an image needs is missing or unreadable.
    #[error("image {id} is damaged ({what}); pull or load it again")]
    Damaged {
        /// Short id of the image.
        id: String,
        /// What is wrong.
        what: String,
    },
    /// Not the name of an image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A blob's content is not what its name says.
    #[error(
        "blob {expected} is corrupted: its content has digest {actual}; nothing was kept of it"
    )]
    Corrupted {
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A layer's content is not what the image's configuration says.
    #[error("layer {blob} is corrupted: it unpacks to {actual} and the image promises {expected}")]
    WrongDiffId {
        /// The layer's blob.
        blob: Digest,
        /// The diff id in the configuration.
        expected: Digest,
        /// The digest of the uncompressed layer.
        actual: Digest,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {blob}")]
    Unpack {
        /// The layer's blob.
        blob: Digest,
        /// Why.
        source: UnpackError,
    },
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

impl StoreError {
    /// Wraps an I/O error; a full disk gets a message of its own.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Io { action, path, source },
        }
    }
}
