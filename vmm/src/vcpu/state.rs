//! State of a vCPU, in the order in which KVM wants it back.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::kvm::{KvmError, refused};

/// Everything that a vCPU is.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Features.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of the time-stamp counter in kHz.
    pub tsc_khz: u32,
    /// Runnable, halted, waiting for INIT...
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, pending interrupts.
    pub sregs: kvm_sregs,
    /// FPU and vector registers.
    pub xsave: kvm_xsave,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// Local APIC.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers.
    pub msrs: Vec<kvm_msr_entry>,
    /// Exceptions, interrupts and NMIs under way.
    pub events: kvm_vcpu_events,
}

const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// MSRs of one KVM_GET_MSRS call.
const MSR_CHUNK: usize = 64;

/// Saves `vcpu`, which must not be running.
///
/// # Errors
/// When KVM refuses to tell.
pub fn save(kvm: &Kvm, vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
    // KVM_GET_MP_STATE flushes pending INIT/SIPI into the registers: first.
    let mp_state = vcpu.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(refused("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    let xsave = vcpu.get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
    let xcrs = vcpu.get_xcrs().map_err(refused("KVM_GET_XCRS"))?;
    let debugregs = vcpu.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    let msrs = save_msrs(kvm, vcpu)?;
    let events = vcpu.get_vcpu_events().map_err(refused("KVM_GET_VCPU_EVENTS"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))?;
    let cpuid = vcpu
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("KVM_GET_CPUID2"))?
        .as_slice()
        .to_vec();
    Ok(VcpuState {
        cpuid,
        tsc_khz,
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        msrs,
        events,
    })
}

/// Reads every MSR that KVM lists and this vCPU has.
fn save_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let list = kvm.get_msr_index_list().map_err(refused("KVM_GET_MSR_INDEX_LIST"))?;
    let mut saved = Vec::new();
    for chunk in list.as_slice().chunks(MSR_CHUNK) {
        let mut rest = chunk;
        // KVM stops at the first MSR that the vCPU's CPUID does not have.
        while !rest.is_empty() {
            let entries: Vec<_> = rest
                .iter()
                .map(|index| kvm_msr_entry { index: *index, ..Default::default() })
                .collect();
            let mut msrs = Msrs::from_entries(&entries)
                .map_err(|_| KvmError::Capability("room for MSR entries"))?;
            let read = vcpu.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))?;
            saved.extend_from_slice(&msrs.as_slice()[..read]);
            rest = rest.get(read + 1..).unwrap_or(&[]);
        }
    }
    // The deadline is relative to the TSC: it is restored last.
    saved.sort_by_key(|entry| entry.index == IA32_TSC_DEADLINE);
    Ok(saved)
}

/// Puts `state` into a new `vcpu`.
///
/// # Errors
/// When KVM refuses it, for example on a host with a lesser CPU.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let cpuid = CpuId::from_entries(&state.cpuid)
        .map_err(|_| KvmError::Capability("room for CPUID entries"))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
    if vcpu.get_tsc_khz().map_err(refused("KVM_GET_TSC_KHZ"))? != state.tsc_khz {
        vcpu.set_tsc_khz(state.tsc_khz).map_err(refused("KVM_SET_TSC_KHZ"))?;
    }
    vcpu.set_mp_state(state.mp_state).map_err(refused("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.regs).map_err(refused("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.sregs).map_err(refused("KVM_SET_SREGS"))?;
    #[allow(unsafe_code)]
    // SAFETY: `set_xsave` reads as many bytes as KVM's XSAVE area has; that is
    // 4096, the size of kvm_xsave, unless dynamic features (AMX) were enabled for
    // the process by arch_prctl, which nothing here does.
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(refused("KVM_SET_XSAVE"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(refused("KVM_SET_XCRS"))?;
    vcpu.set_debug_regs(&state.debugregs).map_err(refused("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(&state.lapic).map_err(refused("KVM_SET_LAPIC"))?;
    restore_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(refused("KVM_SET_VCPU_EVENTS"))?;
    Ok(())
}

fn restore_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    for chunk in entries.chunks(MSR_CHUNK) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let msrs = Msrs::from_entries(rest)
                .map_err(|_| KvmError::Capability("room for MSR entries"))?;
            let written = vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
            // Some MSRs are listed but read-only; KVM stops there.
            rest = rest.get(written + 1..).unwrap_or(&[]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Vm;

    #[test]
    fn state_round_trips_through_bytes() {
        if crate::kvm::open().is_err() {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        }
        let memory = crate::memory::allocate(32).unwrap();
        let new = || {
            let vm = Vm::new(crate::kvm::open().unwrap(), &memory).unwrap();
            let vcpu = vm.fd.create_vcpu(0).unwrap();
            (vm, vcpu)
        };
        let (vm, vcpu) = new();
        crate::vcpu::setup::configure(&vm, &vcpu, 0, 1).unwrap();
        crate::vcpu::setup::enter_at(&vcpu, 0x123_4567).unwrap();
        let saved = save(&vm.kvm, &vcpu).unwrap();
        assert_eq!(saved.regs.rip, 0x123_4567);
        let bytes = postcard::to_stdvec(&saved).unwrap();
        let (other_vm, other) = new();
        restore(&other, &postcard::from_bytes(&bytes).unwrap()).unwrap();
        let again = save(&other_vm.kvm, &other).unwrap();
        assert_eq!(saved.regs, again.regs);
        assert_eq!(saved.sregs, again.sregs);
        assert_eq!(saved.lapic, again.lapic);
        assert_eq!(saved.mp_state, again.mp_state);
        assert_eq!(saved.cpuid, again.cpuid);
        assert_eq!(saved.msrs.len(), again.msrs.len());
    }
}
