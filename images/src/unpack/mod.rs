//! Turns one layer (a tar stream, plain, gzip or zstd) into a directory that
//! overlayfs can stack.
//!
//! ```text
//! blob -> Counted -> decoder (by magic) -> Meter (sha256, limits) -> TarReader -> Tree
//! ```
//!
//! A layer is written by strangers. Three things keep it in its place:
//!
//! * every name is parsed before it is used (`name.rs`): no absolute name, no
//!   `..`, nothing longer than the kernel takes;
//! * every parent directory is opened by the kernel with `openat2` and
//!   `RESOLVE_BENEATH` (`tree.rs`), so that no link inside the layer leads out
//!   of it, whatever the parser thought;
//! * every size is bounded before memory or disk is spent on it (`meter.rs`,
//!   `tar.rs`).

mod decode;
mod error;
mod meter;
mod name;
mod pax;
mod place;
mod policy;
mod sparse;
mod sys;
pub(crate) mod tar;
mod tree;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::Digest;
use tree::Fault;

pub use decode::Compression;
pub(crate) use decode::{decoder, sniff};
pub use error::{Refusal, UnpackError};
pub(crate) use name::{EntryName, printable};

/// What an unpack may cost and what it puts up with.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream.
    pub max_bytes: u64,
    /// Apparent size of one file, holes included, in bytes.
    pub max_file_bytes: u64,
    /// Entries of one layer.
    pub max_entries: u64,
    /// Uncompressed bytes for each compressed byte, looked at once the stream
    /// is longer than [`Limits::ratio_from`].
    pub max_ratio: u64,
    /// Uncompressed bytes from which on the ratio counts: small layers of
    /// zeros are harmless and common.
    pub ratio_from: u64,
    /// Directories above one entry.
    pub max_depth: usize,
    /// Takes `/a/b` as `a/b`, as docker does, instead of refusing it.
    pub strip_absolute: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 128 << 30,
            max_file_bytes: 1 << 40,
            max_entries: 4_000_000,
            max_ratio: 400,
            ratio_from: 1 << 30,
            max_depth: 256,
            strip_absolute: false,
        }
    }
}

/// Stops an unpack from another thread: the reader looks at it at each block.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the unpack to stop; it ends with [`UnpackError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Cancel::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an unpack found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// sha256 of the uncompressed tar stream.
    pub diff_id: Digest,
    /// Bytes of file content, holes included.
    pub bytes: u64,
    /// Entries in the tar.
    pub entries: u64,
    /// The layer hides everything below it (an opaque mark on `/`). overlayfs
    /// ignores such a mark on a layer's root, so the caller has to leave the
    /// lower layers out.
    pub opaque_root: bool,
}

/// Unpacks the layer `blob` into the empty directory `root`.
///
/// `seen` is called with the number of bytes read from `blob` so far. The
/// directory's content is undefined after an error: throw it away.
///
/// # Errors
///
/// [`UnpackError`] names the entry at which the unpack stopped.
pub fn unpack(
    blob: impl Read,
    root: &Path,
    limits: &Limits,
    cancel: &Cancel,
    seen: &dyn Fn(u64),
) -> Result<Unpacked, UnpackError> {
    let read = meter::Counter::default();
    let stream = decoder(meter::Counted::new(blob, read.clone()))?;
    let meter = meter::Meter::new(stream, read, limits.clone(), cancel.clone(), seen);
    let mut job = Job {
        tar: tar::TarReader::new(meter),
        tree: tree::Tree::open(root).map_err(|fault| fault.at(&printable(b"./")))?,
        limits,
        entries: 0,
        bytes: 0,
        last: printable(b"./"),
    };
    job.run()?;
    job.finish()
}

/// One unpack under way.
struct Job<'a, R> {
    tar: tar::TarReader<meter::Meter<'a, R>>,
    tree: tree::Tree,
    limits: &'a Limits,
    entries: u64,
    bytes: u64,
    /// The entry to name in an error.
    last: String,
}

impl<R: Read> Job<'_, R> {
    fn run(&mut self) -> Result<(), UnpackError> {
        loop {
            let entry = match self.tar.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.broken(error)),
            };
            self.last = printable(&entry.path);
            self.entries += 1;
            self.apply(&entry).map_err(|fault| match fault {
                Fault::Read(error) => self.broken(error),
                other => other.at(&self.last),
            })?;
        }
    }

    fn apply(&mut self, entry: &tar::Entry) -> Result<(), Fault> {
        if self.entries > self.limits.max_entries {
            return Err(Refusal::TooManyEntries(self.limits.max_entries).into());
        }
        let size = entry.apparent_size();
        if size > self.limits.max_file_bytes || entry.stored_size > self.limits.max_bytes {
            return Err(Refusal::TooLarge(size.max(entry.stored_size)).into());
        }
        self.bytes = self.bytes.saturating_add(size);
        let name = EntryName::parse(&entry.path, self.limits)?;
        let link = match entry.kind {
            tar::Kind::HardLink => Some(EntryName::parse(&entry.link, self.limits)?),
            _ => None,
        };
        self.tree.apply(&name, link.as_ref(), entry, &mut self.tar)
    }

    /// Reads to the end of the stream (the diff id covers what follows the
    /// last entry too) and sets the directories' times.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        if let Err(error) = self.tar.drain() {
            return Err(self.broken(error));
        }
        let opaque_root = self.tree.opaque_root();
        self.tree.finish().map_err(|fault| fault.at(&self.last))?;
        Ok(Unpacked {
            diff_id: self.tar.into_inner().digest(),
            bytes: self.bytes,
            entries: self.entries,
            opaque_root,
        })
    }

    /// The stream failed: says whether by a limit, a cancel or damage.
    fn broken(&self, error: tar::TarError) -> UnpackError {
        let entry = self.last.clone();
        match self.tar.inner().verdict() {
            Some(meter::Verdict::Cancelled) => return UnpackError::Cancelled,
            Some(meter::Verdict::Refused(reason)) => {
                return UnpackError::Refused { entry, reason };
            }
            None => {}
        }
        match error {
            tar::TarError::Io(source) => UnpackError::Read { entry, source },
            tar::TarError::Malformed(what) => UnpackError::Malformed { entry, what },
        }
    }
}

#[cfg(test)]
mod tests;
