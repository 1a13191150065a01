//! Where things are in guest-physical memory, x86-64.

/// Global descriptor table (the kernel loads its own at once).
pub const GDT: u64 = 0x500;
/// Boot parameters, "zero page" (Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const STACK: u64 = 0x8ff0;
/// Page tables: one PML4, one PDPT, four page directories.
pub const PML4: u64 = 0x9000;
/// Page-directory-pointer table.
pub const PDPT: u64 = 0xa000;
/// First of four page directories of 2 MiB pages.
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// A few instructions that tell a KVM which emulates from one which does not.
pub const PROBE: u64 = 0x1_0000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes for the command line, terminating zero included (COMMAND_LINE_SIZE).
pub const CMDLINE_MAX: usize = 2048;
/// MP table (Intel MultiProcessor Specification 1.4): the last KiB of base
/// memory, one of the places where the kernel looks.
pub const MPTABLE: u64 = 0x9_fc00;
/// End of base memory that is free for the kernel.
pub const BASE_MEMORY_END: u64 = MPTABLE;
/// Start of extended memory.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Where the guest puts what PCI functions have in memory: the first addresses below 4 GiB
/// that the memory map does not speak of, up to the windows of virtio-mmio.
pub const PCI_MEMORY: u64 = crate::memory::HOLE_START;
/// First port of PCI functions (PCIBIOS_MIN_IO of Linux), up to the last of all.
pub const PCI_PORTS: u64 = 0x1000;
/// Ports by which PCI functions are configured, CONFIG_ADDRESS and CONFIG_DATA.
pub const PCI_CONFIG: u64 = 0xcf8;
/// How many those are.
pub const PCI_CONFIG_PORTS: u64 = 8;

/// First virtio-mmio window.
pub const MMIO: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// Interrupt (IOAPIC pin) of the first virtio-mmio device.
pub const FIRST_IRQ: u32 = 5;
/// Pins of the in-kernel IOAPIC.
pub const IRQS: u32 = 24;

/// Three pages that KVM wants on Intel for real-mode tricks.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM wants on Intel, likewise.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
