//! What a pull or load tells while it works.

use std::sync::Arc;

/// The part of the work that an [`Event`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Bytes come from a registry.
    Download,
    /// Bytes come from an archive on this machine.
    Copy,
    /// A layer is being unpacked; the bytes are those of its compressed blob.
    Unpack,
}

/// One step. `item` is the digest of a blob and the key of its bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A line for people, such as the image that was chosen.
    Note(&'a str),
    /// Work on a blob begins; `total` is its size in bytes.
    Begin {
        /// The blob's digest.
        item: &'a str,
        /// What is done with it.
        phase: Phase,
        /// Bytes to go through.
        total: u64,
    },
    /// `done` bytes of the blob are through, from its start (a resumed
    /// download does not start at 0).
    Advance {
        /// The blob's digest.
        item: &'a str,
        /// What is done with it.
        phase: Phase,
        /// Bytes so far.
        done: u64,
    },
    /// The phase is over.
    End {
        /// The blob's digest.
        item: &'a str,
        /// What was done with it.
        phase: Phase,
        /// Nothing had to be done: the store had it.
        cached: bool,
    },
}

/// Receives events, from several threads at once. Must return quickly.
pub trait Progress: Send + Sync {
    /// One step happened.
    fn event(&self, event: Event<'_>);
}

/// Tells nobody.
impl Progress for () {
    fn event(&self, _: Event<'_>) {}
}

/// A [`Progress`] that the threads of one job share.
pub type SharedProgress = Arc<dyn Progress>;
