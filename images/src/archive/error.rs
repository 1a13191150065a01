//! Why an archive was not loaded.

use std::io;
use std::path::PathBuf;

use crate::manifest::ManifestError;
use crate::store::StoreError;

/// A load that failed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The archive, or a file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a tar file, or a damaged one.
    #[error("{} is not a complete tar archive: {what}", path.display())]
    BadTar {
        /// The archive.
        path: PathBuf,
        /// The rule of the format that is broken.
        what: String,
    },
    /// Neither an OCI layout nor a docker archive.
    #[error(
        "{} holds no image: expected an OCI layout (index.json) or the output of `docker save` (manifest.json); `bulkhead import` takes a plain root file system",
        path.display()
    )]
    NoImage {
        /// The archive.
        path: PathBuf,
    },
    /// A file that the archive's own lists name is not in it.
    #[error("{} is incomplete: {name} is missing", path.display())]
    Missing {
        /// The archive.
        path: PathBuf,
        /// The file.
        name: String,
    },
    /// A list of the archive is not valid.
    #[error("{} in {} is not valid", name, path.display())]
    Json {
        /// The archive.
        path: PathBuf,
        /// The file.
        name: String,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// An image in the archive cannot be used.
    #[error("cannot use the image in {}", path.display())]
    Manifest {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// A document of the archive cannot be used.
    #[error("cannot use {name} in {}", path.display())]
    Document {
        /// The archive.
        path: PathBuf,
        /// The file.
        name: String,
        /// Why.
        source: ManifestError,
    },
    /// The archive uncompresses to more than allowed.
    #[error("{} uncompresses to more than {limit} bytes", path.display())]
    TooLarge {
        /// The archive.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
    /// A name was given for several images.
    #[error("{} holds {count} images, so that one name cannot be given to all", path.display())]
    OneName {
        /// The archive.
        path: PathBuf,
        /// How many images there are.
        count: usize,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
