//! What a vCPU says of itself: the host's CPU as far as KVM supports it, with
//! this vCPU's place in the topology (one socket, one thread per core).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

use super::{KvmError, refused};

/// Leaf 1, ECX: Intel's virtualization, and the capabilities of its counters.
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
/// Leaf 0x80000001, ECX: AMD's virtualization, and its performance counters of core,
/// north bridge and last-level cache.
const SVM: u32 = 1 << 2;
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
/// Level types of leaf 0xb (Intel SDM, CPUID).
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// CPUID of vCPU `index` of `count`.
///
/// # Errors
/// When KVM does not tell what it supports.
pub fn for_vcpu(kvm: &Kvm, index: u8, count: u8) -> Result<CpuId, KvmError> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
    let entries = adjust(supported.as_slice(), index, count);
    CpuId::from_entries(&entries).map_err(|_| KvmError::Capability("room for CPUID entries"))
}

/// Leaves of what no container needs and whose emulation in the host's kernel is large:
/// performance counters (0xa, 0x8000_0022) and AMD's nested virtualization.
fn withheld(function: u32) -> bool {
    matches!(function, 0xa | 0x8000_000a | 0x8000_0022)
}

/// Leaves that hold the host's topology: extended topology of both versions
/// (0xb is made anew), and AMD's sharing of caches.
fn topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f | 0x8000_001d | 0x8000_0026)
}

fn adjust(supported: &[kvm_cpuid_entry2], index: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
    // Bits of an APIC id that name a core.
    let core_bits = u32::from(count.max(1)).next_power_of_two().trailing_zeros();
    let kept = |entry: &&kvm_cpuid_entry2| !topology(entry.function) && !withheld(entry.function);
    let mut entries: Vec<_> = supported.iter().filter(kept).copied().collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ecx = (entry.ecx & !(VMX | PDCM)) | TSC_DEADLINE | X2APIC | HYPERVISOR;
                entry.ebx = (entry.ebx & 0x0000_ffff)
                    | (u32::from(index) << 24)
                    | (1u32 << core_bits) << 16;
                if count > 1 {
                    entry.edx |= HTT;
                }
            }
            // Intel cache topology: cores per package; each cache is private.
            4 if entry.eax & 0x1f != 0 => {
                entry.eax = (entry.eax & 0x3fff) | (((1u32 << core_bits) - 1).min(63) << 26);
            }
            0x8000_0001 => entry.ecx &= !(SVM | AMD_COUNTERS),
            // AMD: cores per package, and bits of the id that name them.
            0x8000_0008 => {
                entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | u32::from(count - 1);
            }
            // AMD: extended APIC id, core id, one thread per core, one node.
            0x8000_001e => {
                entry.eax = u32::from(index);
                entry.ebx = u32::from(index);
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    for (level, type_, bits, logical) in
        [(0, LEVEL_SMT, 0, 1), (1, LEVEL_CORE, core_bits, u32::from(count))]
    {
        entries.push(kvm_cpuid_entry2 {
            function: 0xb,
            index: level,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: bits,
            ebx: logical,
            ecx: level | type_,
            edx: u32::from(index),
            ..Default::default()
        });
    }
    if let Some(basic) = entries.iter_mut().find(|entry| entry.function == 0) {
        basic.eax = basic.eax.max(0xb);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_virtualization_and_no_counters() {
        let leaf = |function| kvm_cpuid_entry2 { function, ecx: u32::MAX, ..Default::default() };
        let supported = [1, 0xa, 0x8000_0001, 0x8000_000a, 0x8000_0022].map(leaf);
        let entries = adjust(&supported, 0, 1);
        let ecx = |function| entries.iter().find(|e| e.function == function).map(|e| e.ecx);
        assert_eq!(ecx(1).unwrap() & (VMX | PDCM), 0);
        assert_eq!(ecx(0x8000_0001).unwrap() & (SVM | AMD_COUNTERS), 0);
        assert_eq!([0xa, 0x8000_000a, 0x8000_0022].map(ecx), [None; 3]);
    }

    #[test]
    fn each_vcpu_has_its_own_id() {
        let leaf = |function| kvm_cpuid_entry2 { function, ..Default::default() };
        let functions = [0, 1, 0xb, 0x1f, 0x8000_0008, 0x8000_001d, 0x8000_001e];
        let supported = functions.map(leaf);
        let entries = adjust(&supported, 3, 4);
        let find = |function| entries.iter().find(|entry| entry.function == function).unwrap();
        assert_eq!(find(1).ebx >> 24, 3);
        assert_ne!(find(1).ecx & TSC_DEADLINE, 0);
        assert_eq!(find(0).eax, 0xb);
        assert!(!entries.iter().any(|entry| matches!(entry.function, 0x1f | 0x8000_001d)));
        assert_eq!(find(0x8000_0008).ecx, (2 << 12) | 3);
        assert_eq!(entries.iter().filter(|entry| entry.function == 0xb).count(), 2);
        assert!(entries.iter().filter(|entry| entry.function == 0xb).all(|entry| entry.edx == 3));
    }
}
