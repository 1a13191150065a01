//! MP table (Intel MultiProcessor Specification 1.4): how the kernel learns of
//! CPUs and of the IOAPIC without an ACPI interpreter.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const VERSION: u8 = 4;
/// Version of an integrated APIC.
const APIC_VERSION: u8 = 0x14;
const ENABLED: u8 = 1;
const BOOT_CPU: u8 = 2;
const ISA: u8 = 0;
/// Interrupt types of the specification's table 4-11.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// Most CPUs: they fit between the table's start and the end of base memory.
pub use protocol::machine::MAX_VCPUS as MAX_CPUS;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// Entries of the configuration table: processors, the ISA bus, one IOAPIC, one
/// entry for each of its pins, and the local interrupts.
fn entries(cpus: u8) -> (Vec<u8>, u16) {
    let mut bytes = Vec::new();
    let mut count = 0;
    let mut push = |entry: &[u8]| {
        bytes.extend_from_slice(entry);
        count += 1;
    };
    let ioapic_id = cpus + 1;
    for cpu in 0..cpus {
        let flags = if cpu == 0 { ENABLED | BOOT_CPU } else { ENABLED };
        let mut entry = [0u8; 20];
        entry[..4].copy_from_slice(&[0, cpu, APIC_VERSION, flags]);
        // Signature and features: the kernel reads CPUID instead.
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        push(&entry);
    }
    push(&[1, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = layout::IOAPIC.to_le_bytes();
    let mut ioapic = [2, ioapic_id, APIC_VERSION, ENABLED, 0, 0, 0, 0];
    ioapic[4..].copy_from_slice(&address);
    push(&ioapic);
    for pin in 0..layout::IRQS as u8 {
        push(&[3, INT, 0, 0, ISA, pin, ioapic_id, pin]);
    }
    push(&[4, EXT_INT, 0, 0, ISA, 0, 0, 0]);
    push(&[4, NMI, 0, 0, ISA, 0, 0xff, 1]);
    (bytes, count)
}

/// The floating pointer and the configuration table behind it.
fn table(cpus: u8) -> Vec<u8> {
    let config_address = layout::MPTABLE as u32 + 16;
    let mut pointer = [0u8; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&config_address.to_le_bytes());
    pointer[8] = 1;
    pointer[9] = VERSION;
    pointer[10] = checksum(&pointer);

    let (entries, count) = entries(cpus);
    let mut config = vec![0u8; 44];
    config[..4].copy_from_slice(b"PCMP");
    config[4..6].copy_from_slice(&((44 + entries.len()) as u16).to_le_bytes());
    config[6] = VERSION;
    config[8..16].copy_from_slice(b"BULKHEAD");
    config[16..28].copy_from_slice(b"microvm     ");
    config[34..36].copy_from_slice(&count.to_le_bytes());
    config[36..40].copy_from_slice(&layout::LAPIC.to_le_bytes());
    config.extend_from_slice(&entries);
    config[7] = checksum(&config);

    [pointer.as_slice(), &config].concat()
}

/// Writes the table for `cpus` (1..=[`MAX_CPUS`]) CPUs.
///
/// # Errors
/// When guest memory ends below it.
pub fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(cpus), GuestAddress(layout::MPTABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_zero_and_the_table_fits() {
        for cpus in [1, 2, MAX_CPUS] {
            let table = table(cpus);
            assert!(table.len() as u64 <= 0xa_0000 - layout::MPTABLE, "{cpus}: {}", table.len());
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&table[..16]), 0);
            assert_eq!(sum(&table[16..]), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[20], table[21]])), table.len() - 16);
        }
    }
}
