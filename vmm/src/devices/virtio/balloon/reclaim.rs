//! Giving guest memory back to the host.

use std::io;

use vm_memory::{GuestAddress, GuestMemory};

use crate::memory::GrowingRam;

/// Gives a range of guest memory back to the host; the guest finds other bytes
/// there afterwards (zeros, mostly). The balloon calls it with whole pages that
/// lie in guest memory, though perhaps across two regions.
pub trait Reclaim: Send + Sync {
    /// Gives `len` bytes at guest-physical address `gpa` back.
    ///
    /// # Errors
    /// As the system call; the balloon then leaves the range where it is.
    fn reclaim(&self, gpa: u64, len: u64) -> io::Result<()>;
}

impl<F: Fn(u64, u64) -> io::Result<()> + Send + Sync> Reclaim for F {
    fn reclaim(&self, gpa: u64, len: u64) -> io::Result<()> {
        self(gpa, len)
    }
}

/// What guest memory is, and so how a page is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A file of this machine alone, mapped MAP_SHARED: a hole is punched in it.
    Shared,
    /// Anonymous, or a private mapping of a file which others may use (a
    /// template): only this mapping's own copy is dropped.
    Private,
}

/// [`Reclaim`] by madvise(2) on the mapping.
pub struct MmapReclaim {
    memory: GrowingRam,
    advice: i32,
}

impl MmapReclaim {
    /// For all of `memory`.
    pub fn new(memory: GrowingRam, backing: Backing) -> MmapReclaim {
        let advice = match backing {
            Backing::Shared => libc::MADV_REMOVE,
            Backing::Private => libc::MADV_DONTNEED,
        };
        MmapReclaim { memory, advice }
    }
}

impl Reclaim for MmapReclaim {
    #[allow(unsafe_code)]
    fn reclaim(&self, gpa: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        for slice in self.memory.now().get_slices(GuestAddress(gpa), len) {
            let slice = slice.map_err(io::Error::other)?;
            let guard = slice.ptr_guard_mut();
            // SAFETY: the range is inside a mapping of guest memory, as vm-memory
            // checked, which lives as long as `slice`. Its bytes change, as those
            // of guest memory may at any time; nothing of Rust's lies there. An
            // address that is not page-aligned is an error of madvise.
            let result = unsafe { libc::madvise(guard.as_ptr().cast(), slice.len(), self.advice) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}
