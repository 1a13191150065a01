//! Loads kernel, initial file system, command line and boot parameters.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, load_cmdline};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, ReadVolatile,
};

use super::image::KernelImage;
use super::layout;
use crate::memory::HOLE_START;

const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "Undefined" boot loader.
const LOADER: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Why the kernel is not in memory.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an ELF that fits.
    #[error("cannot load the guest kernel (an uncompressed x86-64 ELF is expected): {0}")]
    Kernel(String),
    /// The archive does not fit or cannot be read.
    #[error("cannot load the initial file system: {0}")]
    Initrd(String),
    /// Guest memory is too small.
    #[error("guest memory is too small for the kernel's boot structures: {0}")]
    Memory(String),
}

/// Loads everything; returns the 64-bit entry.
///
/// # Errors
/// When a file is not what it should be or does not fit into guest memory.
pub fn load(
    memory: &GuestMemoryMmap,
    kernel: &mut File,
    initrd: &mut File,
    cmdline: &str,
) -> Result<u64, KernelError> {
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    let mut image =
        KernelImage::new(kernel).map_err(|error| KernelError::Kernel(error.to_string()))?;
    let loaded = Elf::load(memory, None, &mut image, high)
        .map_err(|error| KernelError::Kernel(error.to_string()))?;
    let initrd = load_initrd(memory, initrd, loaded.kernel_end)?;

    let too_small = |error: &dyn std::fmt::Display| KernelError::Memory(error.to_string());
    let mut line = Cmdline::new(layout::CMDLINE_MAX).map_err(|error| too_small(&error))?;
    line.insert_str(cmdline).map_err(|error| too_small(&error))?;
    load_cmdline(memory, GuestAddress(layout::CMDLINE), &line)
        .map_err(|error| too_small(&error))?;
    let params = parameters(memory, cmdline.len(), initrd);
    memory
        .write_obj(Params(params), GuestAddress(layout::ZERO_PAGE))
        .map_err(|error| too_small(&error))?;
    Ok(loaded.kernel_load.raw_value())
}

/// `boot_params` as bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Params(boot_params);

#[allow(unsafe_code)]
// SAFETY: boot_params is a packed C struct of integers; any bytes are a value.
unsafe impl vm_memory::ByteValued for Params {}

/// Puts the archive at the top of low memory; returns (address, size).
fn load_initrd(
    memory: &GuestMemoryMmap,
    initrd: &mut File,
    kernel_end: u64,
) -> Result<(u64, u64), KernelError> {
    let error = |what: String| KernelError::Initrd(what);
    let size = initrd.seek(SeekFrom::End(0)).map_err(|e| error(e.to_string()))?;
    initrd.seek(SeekFrom::Start(0)).map_err(|e| error(e.to_string()))?;
    let top = memory
        .iter()
        .map(|region| region.start_addr().raw_value() + region.len())
        .filter(|end| *end <= HOLE_START)
        .max()
        .unwrap_or(0);
    let start =
        top.checked_sub(size).map(|start| start & !0xfff).filter(|start| *start > kernel_end);
    let Some(start) = start else {
        return Err(error(format!("{size} bytes do not fit between kernel and end of memory")));
    };
    let mut slice =
        memory.get_slice(GuestAddress(start), size as usize).map_err(|e| error(e.to_string()))?;
    initrd.read_exact_volatile(&mut slice).map_err(|e| error(e.to_string()))?;
    Ok((start, size))
}

fn parameters(memory: &GuestMemoryMmap, cmdline: usize, initrd: (u64, u64)) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER;
    params.hdr.kernel_alignment = 0x100_0000;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline as u32;
    // The archive lies below 4 GiB by construction.
    params.hdr.ramdisk_image = initrd.0 as u32;
    params.hdr.ramdisk_size = initrd.1 as u32;
    let mut map = vec![
        (0, layout::BASE_MEMORY_END, E820_RAM),
        (layout::MPTABLE, 0xa_0000 - layout::MPTABLE, E820_RESERVED),
    ];
    // The gap that remains is where Linux puts PCI functions (e820__setup_pci_gap).
    let low = memory.iter().map(|region| region.start_addr().raw_value() + region.len());
    let low = low.filter(|end| *end < HOLE_START).max();
    map.extend(low.map(|end| (end, HOLE_START - end, E820_RESERVED)));
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(layout::HIGH_MEMORY);
        let end = region.start_addr().raw_value() + region.len();
        map.push((start, end - start, E820_RAM));
    }
    for (index, (addr, size, type_)) in map.into_iter().enumerate() {
        params.e820_table[index].addr = addr;
        params.e820_table[index].size = size;
        params.e820_table[index].type_ = type_;
        params.e820_entries = index as u8 + 1;
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        let memory = crate::memory::allocate(64).unwrap();
        for bytes in [&b""[..], b"MZ", &[0x7f; 4096]] {
            let error = load(&memory, &mut file(bytes), &mut file(b""), "quiet").unwrap_err();
            assert!(matches!(error, KernelError::Kernel(_)), "{error}");
        }
    }

    #[test]
    fn the_archive_lies_at_the_top_and_must_fit() {
        let memory = crate::memory::allocate(64).unwrap();
        let (start, size) = load_initrd(&memory, &mut file(&[5; 5000]), 1 << 20).unwrap();
        assert_eq!((start, size), ((64 << 20) - 8192, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(start)).unwrap(), 5);
        assert!(load_initrd(&memory, &mut file(&[5; 5000]), 64 << 20).is_err());
    }
}
