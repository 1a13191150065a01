//! Pages that this program writes and the guest only reads.
//!
//! They are no RAM: no [`GuestRam`](super::GuestRam) has them, so that no device can be made to
//! write to them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{MmapRegion, VolatileMemory};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Shown(Arc<MmapRegion>);

impl Shown {
    /// `bytes` of zeros; whole pages. Nothing is allocated until somebody writes.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(bytes: usize) -> io::Result<Shown> {
        let region = MmapRegion::new(bytes).map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other.to_string()),
        })?;
        Ok(Shown(Arc::new(region)))
    }

    /// The word at `at`, a multiple of four: the guest reads it whole.
    ///
    /// # Panics
    /// When there is none: no guest chooses `at`.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        self.0.get_atomic_ref(at).expect("a word of these pages")
    }

    /// What a guest reads at `at`; zeros beyond the end.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        data.fill(0);
        if let Ok(slice) = self.0.get_slice(at, data.len()) {
            slice.copy_to(data);
        }
    }

    /// Address in this process, as long as a clone lives.
    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
