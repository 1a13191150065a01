//! Memory that is added while the machine runs.
//!
//! ```text
//! guest:  boot memory, hole | base: a multiple of 2 GiB ... end
//! file:   boot memory | up to 2 MiB of nothing | added memory ... end of the file
//! here:   one mapping from `base` on, as long as a machine can become
//! ```
//!
//! What lies beyond the end of the file is mapped here, and nowhere else: neither KVM
//! nor a [`GuestRam`](super::GuestRam) knows of it before the file has grown over it. One
//! mapping for all that is ever added makes it one region, so that a buffer may lie across
//! what was added at different times.

use std::fs::File;
use std::sync::Arc;

use protocol::machine::{AddedMemory, grown_mib};
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::{FLAGS, HOLE_END, MAX_MIB, Memory, MemoryError, PROT, advise_huge, ranges};
use crate::kvm::KvmError;

/// The largest of Linux's memory blocks: see [`grown_mib`].
const BLOCK: u64 = 2 << 30;
/// A huge page: file and guest address agree modulo this, and so does the mapping where
/// the host uses huge pages for shared memory (mm/shmem.c, shmem_get_unmapped_area).
const HUGE: u64 = 2 << 20;

/// Where all that is ever added is mapped. Never unmapped: a look at guest memory may
/// outlive the machine's owner.
pub(super) type Reserved = &'static MmapRegion;

/// A range that KVM is to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewMemory {
    /// Guest-physical address.
    pub guest: u64,
    /// Where it is mapped in this process.
    pub host: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Size of guest memory; its bytes are elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    /// At boot.
    pub boot_mib: u32,
    /// Added later.
    pub added_mib: u32,
}

impl Memory {
    /// Size in MiB, with all that was added.
    pub fn mib(&self) -> u32 {
        self.boot_mib + self.added_mib
    }

    /// What was added, if anything.
    pub fn added(&self) -> Option<AddedMemory> {
        let bytes = u64::from(self.added_mib) << 20;
        (bytes > 0).then(|| AddedMemory { start: base(self.boot_mib), bytes })
    }

    /// Makes it at least `wanted_mib` MiB large. `register` tells KVM; when it fails,
    /// the guest has what it had, and another size may be tried.
    ///
    /// # Errors
    /// When the size is out of range or the host refuses.
    pub fn grow(
        &mut self,
        wanted_mib: u32,
        register: impl FnOnce(NewMemory) -> Result<(), KvmError>,
    ) -> Result<(), MemoryError> {
        let mib = grown_mib(self.mib(), wanted_mib);
        if mib == self.mib() {
            return Ok(());
        }
        if mib > MAX_MIB {
            return Err(MemoryError::Size(mib));
        }
        let failed = |message: String| MemoryError::Map { mib, message };
        let mapping = match self.reserved {
            Some(mapping) => mapping,
            None => *self.reserved.insert(reserve(&self.file, self.boot_mib).map_err(failed)?),
        };
        let (old, new) = (bytes(self.added_mib), bytes(mib - self.boot_mib));
        let length = file_offset(self.boot_mib) + new;
        // It may be longer already, of a growth that KVM refused.
        if self.length < length {
            nix::unistd::ftruncate(&self.file, length as i64)
                .map_err(|source| MemoryError::Memfd { mib, source })?;
            self.length = length;
        }
        let part = part(mapping, old, new - old).map_err(failed)?;
        advise_huge(&part);
        let all = part_at(mapping, 0, new, base(self.boot_mib)).map_err(failed)?;
        let before = self.ram.now();
        let before = if old == 0 {
            (*before).clone()
        } else {
            let removed = before.remove_region(GuestAddress(base(self.boot_mib)), old);
            removed.map_err(|error| failed(error.to_string()))?.0
        };
        let after = before.insert_region(Arc::new(all));
        let after: GuestMemoryMmap = after.map_err(|error| failed(error.to_string()))?;
        let guest = base(self.boot_mib) + old;
        let new = NewMemory { guest, host: part.as_ptr() as u64, bytes: new - old };
        register(new).map_err(MemoryError::Slot)?;
        self.added_mib = mib - self.boot_mib;
        self.ram.replace(after);
        Ok(())
    }

    /// Its size.
    pub fn save(&self) -> MemoryState {
        MemoryState { boot_mib: self.boot_mib, added_mib: self.added_mib }
    }

    /// Memory of the size that `save` told, empty, with what was added as one range.
    ///
    /// # Errors
    /// When no machine can have had that size, or the host refuses.
    pub fn restore(state: MemoryState) -> Result<Memory, MemoryError> {
        let MemoryState { boot_mib, added_mib } = state;
        let wrong = MemoryError::State { boot_mib, added_mib };
        let Some(mib) = boot_mib.checked_add(added_mib) else { return Err(wrong) };
        let mut memory = Memory::allocate(boot_mib)?;
        if grown_mib(boot_mib, mib) != mib {
            return Err(wrong);
        }
        // KVM is told of it with the rest.
        memory.grow(mib, |_| Ok(()))?;
        Ok(memory)
    }
}

/// Address space for all that can ever be added: no memory, and no page tables, before
/// it is touched.
fn reserve(file: &Arc<File>, boot_mib: u32) -> Result<Reserved, String> {
    let mapping = MmapRegionBuilder::new(bytes(MAX_MIB - boot_mib) as usize)
        .with_mmap_prot(PROT)
        .with_mmap_flags(FLAGS)
        .with_file_offset(FileOffset::from_arc(file.clone(), file_offset(boot_mib)))
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Box::leak(Box::new(mapping)))
}

fn bytes(mib: u32) -> u64 {
    u64::from(mib) << 20
}

/// Where memory is added to a guest that was started with `boot_mib` MiB.
fn base(boot_mib: u32) -> u64 {
    let ends = ranges(boot_mib).into_iter().map(|(start, size)| start + size);
    ends.fold(HOLE_END, u64::max).next_multiple_of(BLOCK)
}

fn file_offset(boot_mib: u32) -> u64 {
    bytes(boot_mib).next_multiple_of(HUGE)
}

/// `bytes` of `mapping` from `from` on.
#[allow(unsafe_code)]
fn part(mapping: &'static MmapRegion, from: u64, bytes: u64) -> Result<MmapRegion, String> {
    let end = from.checked_add(bytes).filter(|&end| end <= mapping.size() as u64);
    if end.is_none() {
        return Err("it does not fit into what was reserved".into());
    }
    // SAFETY: the range lies in a mapping that is never unmapped, and whose protection and
    // flags are these. What of it is beyond the end of the file is not touched: callers
    // grow the file first.
    unsafe {
        let start = mapping.as_ptr().add(from as usize);
        MmapRegion::build_raw(start, bytes as usize, PROT, FLAGS)
    }
    .map_err(|error| error.to_string())
}

fn part_at(
    mapping: &'static MmapRegion,
    from: u64,
    bytes: u64,
    guest: u64,
) -> Result<GuestRegionMmap, String> {
    let part = part(mapping, from, bytes)?;
    GuestRegionMmap::new(part, GuestAddress(guest)).ok_or_else(|| "address overflow".into())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use vm_memory::{Bytes, GuestMemory};

    use super::*;

    #[test]
    fn it_is_added_beyond_boot_memory_and_the_hole() {
        assert_eq!(base(64), 4 << 30);
        assert_eq!(base(3072), 4 << 30);
        assert_eq!(base(3073), 6 << 30);
        assert_eq!(base(5 << 10), 6 << 30);
        assert_eq!(base((5 << 10) + 1), 8 << 30);
    }

    #[test]
    fn it_grows_by_blocks_and_only_what_is_granted_is_there() {
        let mut memory = Memory::allocate(65).unwrap();
        assert_eq!(memory.added(), None);
        memory.ram().now().write_obj(7u64, GuestAddress(0x1000)).unwrap();
        let start = 4u64 << 30;
        let told = RefCell::new(Vec::new());
        let grow = |memory: &mut Memory, mib| {
            memory.grow(mib, |new| {
                told.borrow_mut().push(new);
                Ok(())
            })
        };
        grow(&mut memory, 65).unwrap();
        grow(&mut memory, 100).unwrap();
        let first = memory.ram().now();
        assert_eq!((memory.mib(), memory.added().unwrap().bytes), (193, 128 << 20));
        let end = GuestAddress(start + (128 << 20));
        first.write_obj(9u64, GuestAddress(end.0 - 8)).unwrap();
        assert!(first.write_obj(0u8, end).is_err());
        assert!(first.write_obj(0u8, GuestAddress(start - 1)).is_err());

        grow(&mut memory, 193 + 129).unwrap();
        assert_eq!(memory.mib(), 193 + 256);
        let second = memory.ram().now();
        // What was written stays, a buffer may lie across, and an older look is valid.
        assert_eq!(second.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 7);
        assert_eq!(second.read_obj::<u64>(GuestAddress(end.0 - 8)).unwrap(), 9);
        assert!(second.get_slice(GuestAddress(end.0 - 8), 16).is_ok());
        second.write_obj(10u64, GuestAddress(end.0 - 8)).unwrap();
        assert_eq!(first.read_obj::<u64>(GuestAddress(end.0 - 8)).unwrap(), 10);
        assert!(first.read_obj::<u8>(end).is_err());

        let [one, two] = told.borrow()[..] else { panic!("{told:?}") };
        assert_eq!((one.guest, one.bytes), (start, 128 << 20));
        assert_eq!((two.guest, two.bytes), (end.0, 256 << 20));
        assert_eq!(one.host + one.bytes, two.host);
        assert!(matches!(grow(&mut memory, MAX_MIB + 1), Err(MemoryError::Size(_))));
    }

    #[test]
    fn what_kvm_refuses_was_not_added() {
        let mut memory = Memory::allocate(64).unwrap();
        let refuse = |_| Err(KvmError::Capability("a slot"));
        for _ in 0..3 {
            assert!(matches!(memory.grow(1024, refuse), Err(MemoryError::Slot(_))));
        }
        assert_eq!((memory.mib(), memory.added()), (64, None));
        assert!(memory.ram().now().read_obj::<u8>(GuestAddress(4 << 30)).is_err());
        // Less may be had than what was refused, and then more again.
        for (wanted, had) in [(128, 192), (1024, 1088)] {
            memory.grow(wanted, |_| Ok(())).unwrap();
            assert_eq!(memory.mib(), had);
            let last = (4 << 30) + (u64::from(had - 64) << 20) - 1;
            memory.ram().now().write_obj(1u8, GuestAddress(last)).unwrap();
        }
    }

    #[test]
    fn state_round_trips_through_bytes() {
        let mut memory = Memory::allocate(64).unwrap();
        memory.grow(65, |_| Ok(())).unwrap();
        memory.grow(400, |_| Ok(())).unwrap();
        let saved = memory.save();
        assert_eq!(saved, MemoryState { boot_mib: 64, added_mib: 384 });
        let bytes = postcard::to_stdvec(&saved).unwrap();
        let other = Memory::restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
        assert_eq!((other.save(), other.added()), (saved, memory.added()));
        let sizes = |memory: &Memory| {
            use vm_memory::{Address, GuestMemoryRegion};
            let look = memory.ram().now();
            let sizes = look.iter().map(|region| (region.start_addr().raw_value(), region.len()));
            sizes.collect::<Vec<_>>()
        };
        assert_eq!(sizes(&memory), sizes(&other));
        for added_mib in [1, 127, u32::MAX] {
            assert!(Memory::restore(MemoryState { boot_mib: 64, added_mib }).is_err());
        }
    }
}
