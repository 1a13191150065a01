//! Guest memory: one memfd, mapped once.
//!
//! ```text
//! 0                      RAM (low)                 <= 3 GiB
//! 3 GiB    0xc000_0000   hole: virtio-mmio windows, IOAPIC, LAPIC
//! 4 GiB    0x1_0000_0000 RAM (high), what did not fit below
//! ```

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

/// The guest's memory as devices see it. Every access is bounds-checked by
/// vm-memory; an address comes from the guest and is hostile.
pub type GuestRam = Arc<GuestMemoryMmap>;

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

/// Memory of `mib` MiB. Nothing is allocated until somebody writes to it.
///
/// # Errors
/// When the size is out of range or the host refuses.
pub fn allocate(mib: u32) -> Result<GuestRam, MemoryError> {
    if !(MIN_MIB..=MAX_MIB).contains(&mib) {
        return Err(MemoryError::Size(mib));
    }
    let memfd = |source| MemoryError::Memfd { mib, source };
    let fd = memfd_create("bulkhead-guest", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(memfd)?;
    let file = File::from(fd);
    nix::unistd::ftruncate(&file, i64::from(mib) << 20).map_err(memfd)?;
    // The size is final: nobody who gets the descriptor can make our mapping
    // fault by shrinking it.
    nix::fcntl::fcntl(
        &file,
        nix::fcntl::FcntlArg::F_ADD_SEALS(
            nix::fcntl::SealFlag::F_SEAL_SHRINK | nix::fcntl::SealFlag::F_SEAL_GROW,
        ),
    )
    .map_err(memfd)?;
    let file = Arc::new(file);
    let map = |message: String| MemoryError::Map { mib, message };
    let mut regions = Vec::new();
    let mut offset = 0;
    for (start, size) in ranges(mib) {
        let mapping = MmapRegionBuilder::new(size as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(file.clone(), offset))
            .build()
            .map_err(|error| map(error.to_string()))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start))
            .ok_or_else(|| map("address overflow".into()))?;
        regions.push(region);
        offset += size;
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|error| map(error.to_string()))?;
    Ok(Arc::new(memory))
}

/// Gives `len` bytes at guest address `start` back to the host: the guest reads
/// zeroes there afterwards. Addresses come from the guest; a range that is not
/// wholly RAM of one region is refused.
///
/// # Errors
/// EINVAL for a bad range, else what fallocate(2) says.
pub fn release(memory: &GuestMemoryMmap, start: u64, len: u64) -> std::io::Result<()> {
    let invalid = || std::io::Error::from_raw_os_error(libc::EINVAL);
    let region = memory.find_region(GuestAddress(start)).ok_or_else(invalid)?;
    let offset = start - region.start_addr().raw_value();
    let end = offset.checked_add(len).ok_or_else(invalid)?;
    if end > region.len() {
        return Err(invalid());
    }
    let file = region.file_offset().ok_or_else(invalid)?;
    nix::fcntl::fallocate(
        file.file(),
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
            | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        (file.start() + offset) as i64,
        len as i64,
    )?;
    Ok(())
}

/// Bytes of host memory that the guest's RAM occupies now.
///
/// # Errors
/// As fstat(2).
pub fn resident(memory: &GuestMemoryMmap) -> std::io::Result<u64> {
    let Some(file) = memory.iter().next().and_then(|region| region.file_offset()) else {
        return Ok(0);
    };
    debug_assert!(file.file().as_raw_fd() >= 0);
    Ok(nix::sys::stat::fstat(file.file())?.st_blocks as u64 * 512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

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

    #[test]
    fn released_memory_reads_zero_and_costs_nothing() {
        let ram = allocate(64).unwrap();
        ram.write_slice(&[7; 4096], GuestAddress(8192)).unwrap();
        let before = resident(&ram).unwrap();
        release(&ram, 8192, 4096).unwrap();
        assert!(resident(&ram).unwrap() < before);
        assert_eq!(ram.read_obj::<u8>(GuestAddress(8192)).unwrap(), 0);
    }

    #[test]
    fn a_release_outside_ram_is_refused() {
        let ram = allocate(64).unwrap();
        for (start, len) in
            [(64 << 20, 4096), ((64 << 20) - 4096, 8192), (0, u64::MAX), (u64::MAX, 1)]
        {
            assert_eq!(release(&ram, start, len).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        }
    }
}
