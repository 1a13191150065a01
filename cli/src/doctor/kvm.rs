//! Whether /dev/kvm is there, and whether hardware stands behind it.
//!
//! A guest of a few instructions counts down in a loop, in real mode, for at
//! most [`LIMIT`]. Hardware does the loop in a few milliseconds; an emulator
//! does not get far. A timer thread ends the attempt in any case.
//!
//! UNSAFETY: maps a page of memory as the guest's, and interrupts the thread
//! that runs the guest by a signal; both argued below.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::Finding;

const SUBJECT: &str = "KVM";
/// The version of KVM's interface since 2007.
const API: i32 = 12;
/// When the attempt is given up.
const LIMIT: Duration = Duration::from_millis(700);
/// A loop on hardware, also emulated one level down, takes less.
const SLOW: Duration = Duration::from_millis(250);
/// Where the code lies in the guest.
const ENTRY: u64 = 0x1000;
const PAGE: usize = 4096;
/// Loop rounds: the product of both counters.
const ROUNDS: u32 = 0x4000 * 16;

/// `mov dx,16; l2: mov cx,0x4000; l1: loop l1; dec dx; jnz l2; hlt`
const CODE: [u8; 12] = [0xba, 0x10, 0x00, 0xb9, 0x00, 0x40, 0xe2, 0xfe, 0x4a, 0x75, 0xf8, 0xf4];

/// How the loop went.
#[derive(Debug, PartialEq, Eq)]
enum Trial {
    Halted(Duration),
    TooSlow,
    Odd(String),
}

/// Checks KVM.
pub fn check() -> Finding {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => return unopened(&std::io::Error::from(error)),
    };
    let version = kvm.get_api_version();
    if version != API {
        let detail = format!("interface version {version} instead of {API}");
        return Finding::fail(SUBJECT, detail, "boot a kernel of this century");
    }
    match trial(&kvm) {
        Ok(trial) => judge(trial),
        Err(error) => {
            let advice = "another hypervisor may occupy the processor's virtualization; see dmesg";
            Finding::fail(SUBJECT, format!("cannot make a virtual machine: {error}"), advice)
        }
    }
}

fn unopened(error: &std::io::Error) -> Finding {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "modprobe kvm_intel or kvm_amd; enable VT-x or AMD-V in the firmware; in a virtual \
             machine, ask its host for nested virtualization"
        }
        Some(libc::EACCES | libc::EPERM) => "run as root, or as a member of the group kvm",
        _ => "see dmesg for what kvm says",
    };
    Finding::fail(SUBJECT, format!("cannot open /dev/kvm: {error}"), advice)
}

fn judge(trial: Trial) -> Finding {
    let software = "this KVM interprets guests in software and cannot boot them: use a host with \
                    VT-x or AMD-V, or ask for nested virtualization; `cargo xtask host` gives a \
                    throw-away one for tests";
    match trial {
        Trial::Halted(time) if time <= SLOW => {
            Finding::ok(SUBJECT, format!("hardware: {ROUNDS} guest loops in {:.1?}", time))
        }
        Trial::Halted(time) => {
            Finding::fail(SUBJECT, format!("{ROUNDS} guest loops took {time:.0?}"), software)
        }
        Trial::TooSlow => {
            let detail = format!("{ROUNDS} guest loops did not end within {LIMIT:.0?}");
            Finding::fail(SUBJECT, detail, software)
        }
        Trial::Odd(exit) => {
            Finding::fail(SUBJECT, format!("a trivial guest ended with {exit}"), software)
        }
    }
}

fn trial(kvm: &Kvm) -> Result<Trial, std::io::Error> {
    let memory = Page::with_code()?;
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ENTRY,
        memory_size: PAGE as u64,
        userspace_addr: memory.0.as_ptr() as u64,
    };
    // SAFETY: the page is mapped, ours alone, and `memory` outlives the vcpu
    // and the vm: it is dropped last, and the guest's thread is joined first.
    unsafe { vm.set_user_memory_region(region) }?;
    let vcpu = real_mode(&vm)?;
    let result = run_bounded(vcpu);
    drop(vm);
    drop(memory);
    result
}

fn real_mode(vm: &VmFd) -> Result<VcpuFd, std::io::Error> {
    let vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (ENTRY, 2);
    vcpu.set_regs(&regs)?;
    Ok(vcpu)
}

extern "C" fn nothing(_: libc::c_int) {}

/// Runs the guest on a thread of its own, which is interrupted by a signal
/// until it ends once the time is over.
fn run_bounded(vcpu: VcpuFd) -> Result<Trial, std::io::Error> {
    // Without SA_RESTART, so that KVM_RUN returns EINTR.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is safe anywhere, and this
    // command uses SIGUSR2 for nothing else.
    unsafe { sigaction(Signal::SIGUSR2, &action) }?;
    let over = Arc::new(AtomicBool::new(false));
    let its_over = over.clone();
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("doctor-vcpu".into()).spawn(move || {
        let _ = sender.send(run_guest(vcpu, &its_over));
    })?;
    let mut trial = receiver.recv_timeout(LIMIT).ok();
    over.store(true, Ordering::Relaxed);
    // A signal that comes just before KVM_RUN is lost, hence again and again.
    while !thread.is_finished() {
        use std::os::unix::thread::JoinHandleExt;
        // SAFETY: the thread is not joined yet, so that its handle is valid.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR2) };
        trial = trial.or_else(|| receiver.recv_timeout(Duration::from_millis(5)).ok());
    }
    let _ = thread.join();
    Ok(trial.or_else(|| receiver.try_recv().ok()).unwrap_or(Trial::TooSlow))
}

fn run_guest(mut vcpu: VcpuFd, over: &AtomicBool) -> Trial {
    let begin = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Trial::Halted(begin.elapsed()),
            Ok(exit) => return Trial::Odd(format!("{exit:?}")),
            Err(error) if error.errno() == libc::EINTR => {
                if over.load(Ordering::Relaxed) {
                    return Trial::TooSlow;
                }
            }
            Err(error) => return Trial::Odd(error.to_string()),
        }
    }
}

/// A page of memory with [`CODE`] in it.
struct Page(std::ptr::NonNull<libc::c_void>);

impl Page {
    fn with_code() -> Result<Page, std::io::Error> {
        let length = std::num::NonZeroUsize::new(PAGE).unwrap_or(std::num::NonZeroUsize::MIN);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let page = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
        // SAFETY: the mapping is a page long, writable, and nobody else has it.
        unsafe { page.cast::<u8>().as_ptr().copy_from_nonoverlapping(CODE.as_ptr(), CODE.len()) };
        Ok(Page(page))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping of `with_code`, which nothing refers to any more.
        let _ = unsafe { munmap(self.0, PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn only_a_fast_halt_is_hardware() {
        let cases = [
            (Trial::Halted(Duration::from_millis(3)), Verdict::Ok),
            (Trial::Halted(Duration::from_millis(600)), Verdict::Fail),
            (Trial::TooSlow, Verdict::Fail),
            (Trial::Odd("InternalError".into()), Verdict::Fail),
        ];
        for (trial, verdict) in cases {
            assert_eq!(judge(trial).verdict, verdict);
        }
    }

    #[test]
    fn the_check_ends_within_a_second() {
        let begin = Instant::now();
        let finding = check();
        assert!(begin.elapsed() < Duration::from_secs(1), "{finding:?}");
    }
}
