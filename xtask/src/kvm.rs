//! Whether /dev/kvm is the hardware's, an emulation in software, or missing.
//!
//! A KVM that is emulated in software interprets guest code: it opens, makes
//! VMs, and is more than a hundred times too slow. A short guest loop tells.

// UNSAFETY: KVM's memory slots take a raw address; one block below, argued there.
#![allow(unsafe_code)]

use std::fmt;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

/// Iterations of the loop: 1-2 ms on hardware, 0.1 s under emulated SVM.
const ITERATIONS: u32 = 2_000_000;
/// The probe is killed after this time.
const LIMIT: Duration = Duration::from_secs(1);

/// What /dev/kvm is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Guest code runs on the processor; the time that the loop took.
    Hardware(Duration),
    /// Guest code is interpreted.
    Emulated,
    /// It is missing or refuses its service.
    Unusable(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(time) => {
                write!(f, "/dev/kvm runs guests on the processor (test loop: {time:.1?})")
            }
            Self::Emulated => write!(
                f,
                "/dev/kvm is emulated in software (the test loop did not end within {LIMIT:?})"
            ),
            Self::Unusable(why) => write!(f, "/dev/kvm cannot be used: {why}"),
        }
    }
}

impl Verdict {
    /// Whether commands can run here, without a test host.
    pub fn usable(&self) -> bool {
        matches!(self, Self::Hardware(_))
    }
}

/// Runs the loop in a process of its own, which is killed when it takes too
/// long: a vCPU that spins in a foreign kernel cannot hold this one up.
pub fn verdict() -> Verdict {
    probe_in_child().unwrap_or_else(|error| Verdict::Unusable(format!("{error:#}")))
}

fn probe_in_child() -> Result<Verdict> {
    let mut child = Command::new(std::env::current_exe().context("cannot find this program")?)
        .arg("kvm-loop")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the probe")?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(Verdict::Emulated);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |stream: Option<&mut dyn Read>| {
        let mut text = String::new();
        let _ = stream.map(|s| s.read_to_string(&mut text));
        text.trim().to_owned()
    };
    if !status.success() {
        let message = text(child.stderr.as_mut().map(|s| s as &mut dyn Read));
        bail!("{}", message.trim_start_matches("xtask: "));
    }
    let nanoseconds: u64 = text(child.stdout.as_mut().map(|s| s as &mut dyn Read)).parse()?;
    Ok(Verdict::Hardware(Duration::from_nanos(nanoseconds)))
}

/// `cargo xtask kvm-loop`: prints how many nanoseconds the guest loop took.
pub fn guest_loop() -> Result<()> {
    let kvm = Kvm::new()
        .context("cannot open it; load kvm_intel or kvm_amd, and see that you may write to it")?;
    let vm = kvm.create_vm().context("it makes no VM")?;
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)])?;
    // Real mode: 66 b9 imm32 mov ecx, N; 66 49 dec ecx; 75 fc jnz -4; f4 hlt
    let count = ITERATIONS.to_le_bytes();
    let mut code = vec![0x66, 0xb9];
    code.extend(count);
    code.extend([0x66, 0x49, 0x75, 0xfc, 0xf4]);
    memory.write_slice(&code, GuestAddress(0))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 0x1000,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
    };
    // SAFETY: the mapping is one page, as the region says, and `memory` lives
    // to the end of this function, longer than `vm` is used.
    unsafe { vm.set_user_memory_region(region) }.context("it takes no memory")?;
    let mut vcpu = vm.create_vcpu(0).context("it makes no vCPU")?;
    let mut special = vcpu.get_sregs()?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = 0;
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    let start = Instant::now();
    match vcpu.run().context("the vCPU does not run")? {
        VcpuExit::Hlt => {}
        other => bail!("the guest loop ended with {other:?}"),
    }
    println!("{}", start.elapsed().as_nanos());
    Ok(())
}
