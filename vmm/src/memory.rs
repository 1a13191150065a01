//! Guest memory: one memfd, mapped once.
//!
//! ```text
//! 0                      RAM (low)                 <= 3 GiB
//! 3 GiB    0xc000_0000   hole: PCI functions, virtio-mmio windows, IOAPIC, LAPIC
//! 4 GiB    0x1_0000_0000 RAM (high), what did not fit below
//! the next 2 GiB         RAM that was added while the machine runs: see `growth`
//! ```

mod growth;
mod shown;

use std::fs::File;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap,
    GuestRegionMmap,
};

pub use growth::{MemoryState, NewMemory};
pub use shown::Shown;

use crate::kvm::KvmError;

/// The guest's memory as devices see it. Every access is bounds-checked by
/// vm-memory; an address comes from the guest and is hostile.
pub type GuestRam = Arc<GuestMemoryMmap>;

/// Guest memory that may grow. Who serves the guest looks at it anew for each event
/// ([`GrowingRam::now`]) and keeps nothing: memory that was added is announced to the
/// guest when no thread is left with an older look (see `Machine::grow`).
#[derive(Clone)]
pub struct GrowingRam(GuestMemoryAtomic<GuestMemoryMmap>);

impl GrowingRam {
    /// All of it, as it is now.
    pub fn now(&self) -> GuestRam {
        self.0.memory().into_inner()
    }

    fn replace(&self, ram: GuestMemoryMmap) {
        self.0.lock().expect("no panic while it is replaced").replace(ram);
    }
}

impl From<GuestRam> for GrowingRam {
    fn from(ram: GuestRam) -> GrowingRam {
        GrowingRam(ram.into())
    }
}

/// First address that is not RAM.
pub const HOLE_START: u64 = 0xc000_0000;
/// First address after the hole.
pub const HOLE_END: u64 = 1 << 32;

/// Smallest guest that the kernel boots in, in MiB.
pub const MIN_MIB: u32 = 32;
/// Largest guest, in MiB: what 4-level page tables and one memfd carry easily.
pub const MAX_MIB: u32 = 1 << 20;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Outside [`MIN_MIB`]..=[`MAX_MIB`].
    #[error("{0} MiB of guest memory is outside {MIN_MIB}..={MAX_MIB} MiB")]
    Size(u32),
    /// memfd_create or ftruncate failed.
    #[error("cannot make a memfd of {mib} MiB")]
    Memfd {
        /// Requested size.
        mib: u32,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// mmap failed.
    #[error("cannot map {mib} MiB of guest memory: {message}")]
    Map {
        /// Requested size.
        mib: u32,
        /// Why.
        message: String,
    },
    /// KVM did not take what was added.
    #[error("cannot add guest memory")]
    Slot(#[source] KvmError),
    /// A state that no machine can have had.
    #[error("{added_mib} MiB cannot have been added to a machine of {boot_mib} MiB")]
    State {
        /// At boot.
        boot_mib: u32,
        /// Later.
        added_mib: u32,
    },
}

/// The guest's memory as its owner has it.
pub struct Memory {
    file: Arc<File>,
    boot_mib: u32,
    /// Length of the file, which never shrinks.
    length: u64,
    reserved: Option<growth::Reserved>,
    added_mib: u32,
    ram: GrowingRam,
}

/// (guest address, bytes) of each RAM range of a guest of `mib` MiB.
pub fn ranges(mib: u32) -> Vec<(u64, u64)> {
    let total = u64::from(mib) << 20;
    let low = total.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if total > low {
        ranges.push((HOLE_END, total - low));
    }
    ranges
}

impl Memory {
    /// Memory of `mib` MiB. Nothing is allocated until somebody writes to it.
    ///
    /// # Errors
    /// When the size is out of range or the host refuses.
    pub fn allocate(mib: u32) -> Result<Memory, MemoryError> {
        if !(MIN_MIB..=MAX_MIB).contains(&mib) {
            return Err(MemoryError::Size(mib));
        }
        let memfd = |source| MemoryError::Memfd { mib, source };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("bulkhead-guest", flags).map_err(memfd)?);
        nix::unistd::ftruncate(&file, i64::from(mib) << 20).map_err(memfd)?;
        // Nobody who gets the descriptor can make our mapping fault by shrinking the
        // file. That it can be grown changes nothing of what is mapped.
        let seal = nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_SHRINK);
        nix::fcntl::fcntl(&file, seal).map_err(memfd)?;
        let file = Arc::new(file);
        let ram = Arc::new(map(mib, &file)?).into();
        let length = u64::from(mib) << 20;
        Ok(Memory { file, boot_mib: mib, length, reserved: None, added_mib: 0, ram })
    }

    /// For those who serve the guest.
    pub fn ram(&self) -> &GrowingRam {
        &self.ram
    }
}

/// Memory of a machine that does not grow, for tests.
///
/// # Errors
/// As [`Memory::allocate`].
#[cfg(test)]
pub fn allocate(mib: u32) -> Result<GuestRam, MemoryError> {
    Ok(Memory::allocate(mib)?.ram.now())
}

fn map(mib: u32, file: &Arc<File>) -> Result<GuestMemoryMmap, MemoryError> {
    let map = |message: String| MemoryError::Map { mib, message };
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, size) in ranges(mib) {
        let mapping = MmapRegionBuilder::new(size as usize)
            .with_mmap_prot(PROT)
            .with_mmap_flags(FLAGS)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .build()
            .map_err(|error| map(error.to_string()))?;
        advise_huge(&mapping);
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| map("address overflow".into()))?;
        regions.push(region);
        offset += size;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|error| map(error.to_string()))
}

/// How all of it is mapped.
const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_SHARED | libc::MAP_NORESERVE;

/// Asks for huge pages, where the host's `shmem_enabled` is `advise`: the first
/// touch of a page is a VM exit and a fault of the host, here of 512 pages at once.
/// Elsewhere it changes nothing, and `bulkhead doctor` says so.
#[allow(unsafe_code)]
fn advise_huge(mapping: &vm_memory::MmapRegion) {
    // SAFETY: the range is a mapping of ours; the advice changes how it is backed
    // and never what it holds.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_splits_large_guests() {
        assert_eq!(ranges(512), [(0, 512 << 20)]);
        assert_eq!(ranges(3072), [(0, 3072 << 20)]);
        assert_eq!(ranges(4096), [(0, 3072 << 20), (1 << 32, 1024 << 20)]);
    }

    #[test]
    fn sizes_are_checked() {
        assert!(matches!(allocate(1), Err(MemoryError::Size(1))));
        assert!(matches!(allocate(u32::MAX), Err(MemoryError::Size(_))));
    }
}
