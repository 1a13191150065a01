//! The page tables and segments with which a vCPU enters the kernel: 64-bit,
//! the first 4 GiB mapped one to one by 2 MiB pages
//! (Documentation/arch/x86/boot.rst, "64-bit boot protocol").

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 0x80;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Null, null, 64-bit code (selector 0x10), data (0x18): the selectors that the
/// boot protocol demands.
const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes page tables and descriptor table.
///
/// # Errors
/// When guest memory is smaller than the layout.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_obj(layout::PDPT | PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    for directory in 0..4u64 {
        let table = layout::PAGE_DIRECTORIES + directory * 0x1000;
        memory.write_obj(table | PRESENT_WRITABLE, GuestAddress(layout::PDPT + directory * 8))?;
        for entry in 0..512u64 {
            let page = (directory << 30) | (entry << 21);
            memory.write_obj(page | PRESENT_WRITABLE | LARGE, GuestAddress(table + entry * 8))?;
        }
    }
    for (index, segment) in SEGMENTS.iter().enumerate() {
        memory.write_obj(*segment, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    Ok(())
}

fn flat(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    }
}

/// Puts `sregs` into 64-bit mode on the tables that [`write`] wrote.
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    sregs.cs = flat(0x10, 11, 1);
    let data = flat(0x18, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // KVM wants a busy TSS of 64-bit mode.
    sregs.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, ..Default::default() };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (SEGMENTS.len() * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_four_gib_are_mapped_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory).unwrap();
        for address in [0u64, 0x20_0000, 0xd000_0000, 0xffe0_0000] {
            let walk = |table: u64, shift: u32| -> u64 {
                let index = (address >> shift) & 0x1ff;
                memory.read_obj(GuestAddress((table & !0xfff) + index * 8)).unwrap()
            };
            let leaf = walk(walk(walk(layout::PML4, 39), 30), 21);
            assert_eq!(leaf & !0x1f_ffff, address);
            assert_eq!(leaf & 0xff, PRESENT_WRITABLE | LARGE);
        }
    }
}
