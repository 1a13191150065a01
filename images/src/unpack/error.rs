//! Why a layer was not unpacked.

use std::io;

use super::tar::TarError;
use super::tree::Fault;

/// A layer that could not be unpacked. `entry` is the printable name of the
/// tar entry at which it happened.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The entry would break out of the layer, or costs too much.
    #[error("layer entry {entry} is refused: {reason}")]
    Refused {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: Refusal,
    },
    /// The archive does not follow the tar format.
    #[error(
        "the layer's archive is damaged at or after entry {entry}: {what}; fetch or build the image again"
    )]
    Malformed {
        /// The last entry that could be read.
        entry: String,
        /// The rule that is broken.
        what: &'static str,
    },
    /// The blob could not be read or decompressed.
    #[error("cannot read the layer's archive after entry {entry}; fetch or build the image again")]
    Read {
        /// The last entry that could be read.
        entry: String,
        /// What the reader or decompressor said.
        source: io::Error,
    },
    /// The layer is compressed in a way that is not supported.
    #[error("the layer is compressed with {0}, which is not supported: use gzip, zstd or none")]
    Compression(&'static str),
    /// The file system is full or the quota is used up.
    #[error(
        "the disk is full: no space left while writing layer entry {entry}; free some space and try again"
    )]
    NoSpace {
        /// The entry being written.
        entry: String,
    },
    /// The kernel refused an operation on the unpacked tree.
    #[error("cannot {action} layer entry {entry}")]
    Os {
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// The entry's name.
        entry: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// [`super::Cancel::cancel`] was called.
    #[error("unpacking was cancelled")]
    Cancelled,
}

/// What makes an entry unacceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name, or the target of a hard link, starts with `/`.
    #[error("an absolute name")]
    Absolute,
    /// The name, or the target of a hard link, has a `..` component.
    #[error("`..` in the name")]
    DotDot,
    /// The name is empty, has a NUL byte, or is too long for Linux.
    #[error("not a valid name: {0}")]
    BadName(&'static str),
    /// More directories deep than allowed.
    #[error("nested deeper than {0} directories")]
    TooDeep(usize),
    /// A parent directory is a symbolic link that leads out of the layer.
    #[error("its parent directory is a symbolic link that leads out of the layer")]
    LinkEscape,
    /// A parent directory is a symbolic link to nothing or to itself.
    #[error("its parent directory is a symbolic link that leads nowhere")]
    LinkNowhere,
    /// A parent is a file of the same layer.
    #[error("its parent is not a directory")]
    ParentNotDirectory,
    /// The target of a hard link is not in the layer.
    #[error("a hard link to something that is not in the layer")]
    HardLinkMissing,
    /// The target of a hard link is a directory, a whiteout or the link.
    #[error("a hard link to {0}")]
    HardLinkTarget(&'static str),
    /// A device node outside the list in `policy.rs`.
    #[error("a {kind} device node {major}:{minor}, which no image needs")]
    Device {
        /// `character` or `block`.
        kind: &'static str,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An entry type that has no meaning in a layer.
    #[error("an entry of unknown type {0:?}")]
    UnknownType(char),
    /// Owner ids that Linux cannot store.
    #[error("an owner id out of range")]
    Owner,
    /// A whiteout that names nothing.
    #[error("a whiteout of nothing")]
    EmptyWhiteout,
    /// Something other than a directory in the place of the layer's root.
    #[error("the layer's root must be a directory")]
    RootNotDirectory,
    /// More entries than [`super::Limits::max_entries`].
    #[error("the layer has more than {0} entries")]
    TooManyEntries(u64),
    /// A declared size beyond the limits, in bytes.
    #[error("a declared size of {0} bytes")]
    TooLarge(u64),
    /// The stream is longer than [`super::Limits::max_bytes`].
    #[error("the layer unpacks to more than {0} bytes")]
    StreamTooLong(u64),
    /// The stream expands more than [`super::Limits::max_ratio`] times.
    #[error("the layer expands more than {0} times: it looks like a decompression bomb")]
    Bomb(u64),
}

impl Fault {
    /// Attaches the entry's name.
    pub(super) fn at(self, entry: &str) -> UnpackError {
        let entry = entry.to_owned();
        match self {
            Fault::Refused(reason) => UnpackError::Refused { entry, reason },
            Fault::Read(TarError::Io(source)) => UnpackError::Read { entry, source },
            Fault::Read(TarError::Malformed(what)) => UnpackError::Malformed { entry, what },
            Fault::Os(action, source) => match source.kind() {
                // An attribute that is too large for the inode gives ENOSPC as
                // well, and freeing disk space would not help there.
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                    if action != super::tree::SET_XATTR =>
                {
                    UnpackError::NoSpace { entry }
                }
                _ => UnpackError::Os { action, entry, source },
            },
        }
    }
}
