//! Finds out, before the kernel is entered, whether this KVM runs guest kernel
//! code on the CPU or interprets it in software. The latter is a thousand times
//! too slow and lacks instructions: a guest would die or hang after a minute
//! with nothing said.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::setup;
use crate::boot::layout;
use crate::kvm::refused;

/// `1: dec ecx; jnz 1b; out 0x80, al`, with the rounds in ecx.
const CODE: [u8; 6] = [0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x80];
/// Rounds of two instructions: 10 us on the slowest CPU that has virtualization
/// (200 us where that CPU is itself emulated), over 20 ms in an interpreter.
const ROUNDS: u32 = 16_000;
/// Slower than this is an interpreter, or a very busy host; hence the attempts.
const LIMIT: Duration = Duration::from_millis(8);
const ATTEMPTS: u32 = 4;

/// Runs the loop on `vcpu`, which must be the boot vCPU with page tables in
/// place and whose registers are overwritten.
///
/// # Errors
/// A sentence that says what is wrong with this KVM.
pub fn check(vcpu: &mut VcpuFd, memory: &GuestMemoryMmap) -> Result<(), String> {
    memory
        .write_slice(&CODE, GuestAddress(layout::PROBE))
        .map_err(|error| format!("guest memory is too small: {error}"))?;
    // What entering and leaving costs (much, where this host is traced or itself
    // emulated) is not what is asked: it is measured alone and taken off.
    let mut entry = Duration::MAX;
    let mut fastest = Duration::MAX;
    for _ in 0..ATTEMPTS {
        fastest = fastest.min(attempt(vcpu, ROUNDS)?);
        if fastest < LIMIT {
            return Ok(());
        }
        entry = entry.min(attempt(vcpu, 1)?);
        if fastest.saturating_sub(entry) < LIMIT {
            return Ok(());
        }
    }
    let fastest = fastest.saturating_sub(entry);
    Err(format!(
        "it took {fastest:?} for {ROUNDS} rounds of an empty loop: this /dev/kvm emulates guest \
         kernel code in software instead of running it on the CPU, and no guest can boot there. \
         Use a host with hardware virtualization (for a virtual machine: nested virtualization)"
    ))
}

fn attempt(vcpu: &mut VcpuFd, rounds: u32) -> Result<Duration, String> {
    setup::enter_at(vcpu, layout::PROBE).map_err(|error| error.to_string())?;
    let start =
        kvm_regs { rip: layout::PROBE, rcx: u64::from(rounds), rflags: 2, ..Default::default() };
    vcpu.set_regs(&start).map_err(|error| error.to_string())?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(0x80, _)) => break,
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(format!("KVM gave up on an empty loop: {other:?}")),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(format!("KVM cannot run a vCPU: {error}")),
        }
    }
    let taken = start.elapsed();
    // The next entry completes the instruction that left; with other registers
    // in place that must not happen in the kernel's first instruction.
    vcpu.set_kvm_immediate_exit(1);
    let completed = vcpu
        .run()
        .map(|_| ())
        .or_else(|error| if error.errno() == libc::EINTR { Ok(()) } else { Err(error) });
    vcpu.set_kvm_immediate_exit(0);
    completed.map_err(refused("KVM_RUN")).map_err(|error| error.to_string())?;
    vcpu.set_regs(&kvm_regs { rflags: 2, ..Default::default() })
        .map_err(|error| error.to_string())?;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::Vm;

    #[test]
    fn the_verdict_comes_within_a_second() {
        if crate::kvm::open().is_err() {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        }
        let memory = crate::memory::allocate(32).unwrap();
        let vm = Vm::new(crate::kvm::open().unwrap(), &memory).unwrap();
        let mut vcpu = vm.fd.create_vcpu(0).unwrap();
        crate::boot::paging::write(&memory).unwrap();
        setup::configure(&vm, &vcpu, 0, 1).unwrap();
        let start = Instant::now();
        let verdict = check(&mut vcpu, &memory);
        assert!(start.elapsed() < Duration::from_secs(1));
        if let Err(message) = verdict {
            assert!(message.contains("emulates guest kernel code in software"), "{message}");
        }
    }
}
