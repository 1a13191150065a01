//! A vCPU's registers at reset.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;

use crate::boot::{layout, paging};
use crate::kvm::{KvmError, Vm, cpuid, refused};

/// MSR numbers (Intel SDM volume 4).
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Fast strings are on after reset.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs enabled, default type write-back: without it Intel guests run uncached.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;
/// Local APIC register offsets and delivery modes.
const LVT0: usize = 0x350;
const LVT1: usize = 0x360;
const MODE_EXT_INT: u32 = 7 << 8;
const MODE_NMI: u32 = 4 << 8;

/// CPUID, MSRs, FPU and local APIC of vCPU `index` of `count`.
///
/// # Errors
/// When KVM refuses.
pub fn configure(vm: &Vm, vcpu: &VcpuFd, index: u8, count: u8) -> Result<(), KvmError> {
    let cpuid = cpuid::for_vcpu(&vm.kvm, index, count)?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[
        msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ])
    .map_err(|_| KvmError::Capability("room for MSR entries"))?;
    vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(refused("KVM_SET_FPU"))?;
    let mut lapic = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, LVT0, MODE_EXT_INT);
    set_delivery_mode(&mut lapic, LVT1, MODE_NMI);
    vcpu.set_lapic(&lapic).map_err(refused("KVM_SET_LAPIC"))
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes = std::array::from_fn(|index| lapic.regs[register + index] as u8);
    let value = (u32::from_le_bytes(bytes) & !0x700) | mode;
    for (index, byte) in value.to_le_bytes().into_iter().enumerate() {
        lapic.regs[register + index] = byte as std::ffi::c_char;
    }
}

/// Puts the boot vCPU at `entry` in 64-bit mode, by the 64-bit boot protocol:
/// rsi points to the boot parameters, interrupts are off.
///
/// # Errors
/// When KVM refuses.
pub fn enter_at(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    paging::enter_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: entry,
        rsp: layout::STACK,
        rbp: layout::STACK,
        rsi: layout::ZERO_PAGE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(refused("KVM_SET_REGS"))
}
