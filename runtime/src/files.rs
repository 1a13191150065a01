//! Files of ours that hold JSON: read whole, replaced whole.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dirs;

/// Why a file of ours is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("cannot access {}", path.display())]
    Access {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not hold what it should.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl FileError {
    /// An error of `path`.
    pub fn access(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> FileError {
        let path = path.into();
        move |source| FileError::Access { path, source }
    }
}

/// What a file holds; `None` when it is not there.
///
/// # Errors
/// As [`FileError`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let bytes = match std::fs::read(path) {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        other => other.map_err(FileError::access(path))?,
    };
    let damaged = |source| FileError::Damaged { path: path.into(), source };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// Replaces what a file holds.
///
/// # Errors
/// As [`FileError`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FileError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| FileError::Damaged { path: path.into(), source })?;
    dirs::write_atomic(path, &bytes).map_err(FileError::access(path))
}

/// Waits for the lock (flock) of a file, which is made if need be. Dropped, it is given back.
///
/// # Errors
/// Names the file.
pub fn lock(path: &Path) -> Result<File, FileError> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(FileError::access(path))?;
    file.lock().map_err(FileError::access(path))?;
    Ok(file)
}
