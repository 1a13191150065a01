//! A kernel file that is mapped into guest memory instead of copied.
//!
//! linux-loader parses and checks the ELF and asks for "these bytes of the file,
//! there". Whole pages of that are answered by a private mapping of the file over
//! the guest's memory: nothing is copied at start, and kernel text that no guest
//! changed is one copy in the page cache for all sandboxes of a host. A write of
//! the guest gives it a page of its own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

const PAGE: u64 = 4096;
/// Below this it is copied: the kernel's data, most pages of which are written, so
/// that a mapping would cost two faults and a copy for each.
const WORTH_MAPPING: u64 = 1 << 20;

/// The file, as linux-loader wants it. It must not be truncated while a guest
/// runs: install a new kernel under a temporary name and rename it.
pub struct KernelImage<'a> {
    file: &'a mut File,
    size: u64,
}

impl<'a> KernelImage<'a> {
    /// Wraps `file`.
    ///
    /// # Errors
    /// When its size cannot be told.
    pub fn new(file: &'a mut File) -> std::io::Result<KernelImage<'a>> {
        let size = file.metadata()?.len();
        Ok(KernelImage { file, size })
    }

    /// Copies as many bytes as `slice` holds.
    fn copy<B: BitmapSlice>(&mut self, slice: VolatileSlice<B>) -> Result<(), VolatileMemoryError> {
        let mut slice = slice;
        self.file.read_exact_volatile(&mut slice)
    }
}

impl Read for KernelImage<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for KernelImage<'_> {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(position)
    }
}

impl ReadVolatile for KernelImage<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let length = slice.len();
        let position = self.file.stream_position().map_err(VolatileMemoryError::IOError)?;
        let address = slice.ptr_guard_mut().as_ptr() as u64;
        let head = address.next_multiple_of(PAGE) - address;
        let mapped = (length as u64).saturating_sub(head) & !(PAGE - 1);
        let inside = position.checked_add(length as u64).is_some_and(|end| end <= self.size);
        if mapped < WORTH_MAPPING || !inside || address % PAGE != position % PAGE {
            return self.file.read_volatile(slice);
        }
        self.copy(slice.subslice(0, head as usize)?)?;
        map(self.file, position + head, &slice.subslice(head as usize, mapped as usize)?)
            .map_err(VolatileMemoryError::IOError)?;
        self.file
            .seek(SeekFrom::Start(position + head + mapped))
            .map_err(VolatileMemoryError::IOError)?;
        let tail = (head + mapped) as usize;
        self.copy(slice.subslice(tail, length - tail)?)?;
        Ok(length)
    }
}

/// Maps `file` from `offset` over all of `slice`, both page-aligned.
#[allow(unsafe_code)]
fn map<B: BitmapSlice>(file: &File, offset: u64, slice: &VolatileSlice<B>) -> std::io::Result<()> {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range lies wholly inside a mapping of guest memory (vm-memory
    // bounds-checked it), which only volatile accesses and the guest use; it is
    // replaced by another readable and writable mapping of the same length. The
    // file covers it (checked by the caller).
    let mapped = unsafe {
        libc::mmap(
            guard.as_ptr().cast(),
            slice.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    /// 2000 KiB whose bytes tell their offset.
    fn file() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..2000 << 10u32).map(|index: u32| (index / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn what_is_read_is_what_the_file_holds_mapped_or_not() {
        let ram = crate::memory::allocate(32).unwrap();
        let (mut file, bytes) = file();
        // Aligned alike (mapped, with head and tail), and not (copied).
        for (offset, target) in [(4096 + 5, (1 << 20) + 5), (4096 + 5, (4 << 20) + 9), (0, 8 << 20)]
        {
            let length = 1_500_001;
            let mut image = KernelImage::new(&mut file).unwrap();
            image.seek(SeekFrom::Start(offset)).unwrap();
            ram.read_exact_volatile_from(GuestAddress(target), &mut image, length).unwrap();
            assert_eq!(image.stream_position().unwrap(), offset + length as u64);
            let mut read = vec![0; length];
            ram.read_slice(&mut read, GuestAddress(target)).unwrap();
            assert_eq!(read, bytes[offset as usize..][..length]);
        }
    }

    #[test]
    fn a_guest_that_writes_changes_its_own_page_only() {
        let ram = crate::memory::allocate(32).unwrap();
        let (mut file, bytes) = file();
        let mut image = KernelImage::new(&mut file).unwrap();
        image.rewind().unwrap();
        ram.read_exact_volatile_from(GuestAddress(1 << 20), &mut image, 1280 << 10).unwrap();
        ram.write_obj(0xeeu8, GuestAddress((1 << 20) + 8192)).unwrap();
        let mut again = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut again).unwrap();
        assert_eq!(again, bytes);
    }

    #[test]
    fn a_file_that_ends_too_early_is_an_error_not_a_fault() {
        let ram = crate::memory::allocate(32).unwrap();
        let (mut file, _) = file();
        let mut image = KernelImage::new(&mut file).unwrap();
        image.rewind().unwrap();
        assert!(ram.read_exact_volatile_from(GuestAddress(1 << 20), &mut image, 4 << 20).is_err());
    }
}
