//! The virtual machine as KVM has it: memory slots, interrupt controllers,
//! event descriptors.

pub mod cpuid;
mod irq;
pub mod state;

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

pub use self::irq::IrqPin;
use crate::boot::layout;
use crate::memory::{NewMemory, Shown};

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// Not the KVM that this program was written for.
    #[error("/dev/kvm speaks API version {0}; version {KVM_API_VERSION} is needed")]
    ApiVersion(i32),
    /// The host's kernel is too old or was built without it.
    #[error("this host's KVM lacks {0}; a Linux kernel of 5.15 or later has it")]
    Capability(&'static str),
    /// An ioctl failed.
    #[error("KVM refused {what}")]
    Ioctl {
        /// What was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// For `map_err`: names the ioctl that failed.
pub fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { what, source }
}

/// Capabilities without which a machine cannot be built.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// A virtual machine without its vCPUs.
pub struct Vm {
    /// /dev/kvm.
    pub kvm: Kvm,
    /// The machine.
    pub fd: VmFd,
    /// Number of the next memory slot.
    slots: AtomicU32,
    /// What the guest reads of this program: kept for as long as KVM has it.
    shown: Mutex<Vec<Shown>>,
}

impl Vm {
    /// Makes the machine on an open /dev/kvm: RAM in slots 0.., in-kernel
    /// interrupt controllers, no timer chip (the guest has kvm-clock and the
    /// local APIC's TSC deadline).
    ///
    /// # Errors
    /// When a capability is missing or an ioctl fails.
    pub fn new(kvm: OwnedFd, memory: &GuestMemoryMmap) -> Result<Vm, KvmError> {
        let kvm = adopt(kvm);
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(KvmError::ApiVersion(version));
        }
        for (capability, name) in NEEDED {
            if !kvm.check_extension(*capability) {
                return Err(KvmError::Capability(name));
            }
        }
        let fd = kvm.create_vm().map_err(refused("a new machine (KVM_CREATE_VM)"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(refused("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(refused("an interrupt controller (KVM_CREATE_IRQCHIP)"))?;
        // No performance counters (AMD's oldest have no bit in CPUID to hide). Before
        // Linux 5.18 there is no such switch.
        let mut no_counters = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        no_counters.args[0] = u64::from(KVM_PMU_CAP_DISABLE);
        let _ = fd.enable_cap(&no_counters);
        let vm = Vm { kvm, fd, slots: AtomicU32::new(0), shown: Mutex::default() };
        for region in memory.iter() {
            vm.add_memory(NewMemory {
                guest: region.start_addr().raw_value(),
                host: region.as_ptr() as u64,
                bytes: region.len(),
            })?;
        }
        Ok(vm)
    }

    /// Gives the guest memory, at boot or later.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn add_memory(&self, new: NewMemory) -> Result<(), KvmError> {
        self.add_slot(new, 0)
    }

    /// Has the guest read the first `bytes` of `pages` at `guest`, whole pages. What it writes
    /// there is no write to memory: it signals what [`Vm::connect_kick`] connected, or comes
    /// out of KVM_RUN (KVM_MEM_READONLY).
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn show(&self, pages: &Shown, guest: u64, bytes: u64) -> Result<(), KvmError> {
        assert!(bytes <= pages.len() as u64, "no more than there is");
        self.shown.lock().expect("no panic while locked").push(pages.clone());
        self.add_slot(NewMemory { guest, host: pages.address(), bytes }, KVM_MEM_READONLY)
    }

    fn add_slot(&self, new: NewMemory, flags: u32) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot: self.slots.fetch_add(1, Ordering::Relaxed),
            guest_phys_addr: new.guest,
            memory_size: new.bytes,
            userspace_addr: new.host,
            flags,
        };
        #[allow(unsafe_code)]
        // SAFETY: the range is mapped as long as the machine's memory, which the machine
        // keeps until after the last vCPU has stopped, or as what `shown` keeps, which is
        // dropped after KVM's descriptor.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(refused("guest memory (KVM_SET_USER_MEMORY_REGION)"))
    }

    /// Lets a 32-bit write of `value` to guest address `address` signal `kick`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn connect_kick(&self, kick: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(kick, &IoEventAddress::Mmio(address), value)
            .map_err(refused("a queue notification (KVM_IOEVENTFD)"))
    }

    /// Lets any write to port `port` signal `event`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn connect_port(&self, event: &EventFd, port: u16) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Pio(u64::from(port)), NoDatamatch)
            .map_err(refused("a port (KVM_IOEVENTFD)"))
    }
}

#[allow(unsafe_code)]
fn adopt(kvm: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is ours and is given away here. That it is /dev/kvm
    // is checked by the first ioctl (KVM_GET_API_VERSION), and no ioctl of
    // another file could do more than fail: their numbers are KVM's own.
    unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) }
}

/// Opens /dev/kvm for tests, which run without a jail.
///
/// # Errors
/// As open(2).
pub fn open() -> std::io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/kvm")?.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use kvm_bindings::kvm_regs;
    use kvm_ioctls::VcpuExit;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::vcpu::setup;

    /// With rbx at a window: reads a word at 0x60 and writes 1, then 3, at 0x64; tells the
    /// first byte of what it read.
    const CODE: [u8; 21] = [
        0x8b, 0x43, 0x60, // mov eax, [rbx + 0x60]
        0xba, 1, 0, 0, 0, // mov edx, 1
        0x89, 0x53, 0x64, // mov [rbx + 0x64], edx
        0xba, 3, 0, 0, 0, // mov edx, 3
        0x89, 0x53, 0x64, // mov [rbx + 0x64], edx
        0xe6, 0x80, // out 0x80, al
    ];

    #[test]
    fn what_is_shown_is_read_without_an_exit_and_written_with_one() {
        if open().is_err() {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        }
        let memory = crate::memory::allocate(32).unwrap();
        let vm = Vm::new(open().unwrap(), &memory).unwrap();
        let pages = Shown::new(0x2000).unwrap();
        pages.word(0x60).store(0x55, Ordering::SeqCst);
        vm.show(&pages, layout::MMIO, 0x1000).unwrap();
        let acknowledged = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        vm.connect_kick(&acknowledged, layout::MMIO + 0x64, 1).unwrap();

        let mut vcpu = vm.fd.create_vcpu(0).unwrap();
        crate::boot::paging::write(&memory).unwrap();
        setup::configure(&vm, &vcpu, 0, 1).unwrap();
        memory.write_slice(&CODE, GuestAddress(layout::PROBE)).unwrap();
        setup::enter_at(&vcpu, layout::PROBE).unwrap();
        let (rip, rbx) = (layout::PROBE, layout::MMIO);
        vcpu.set_regs(&kvm_regs { rip, rbx, rflags: 2, ..Default::default() }).unwrap();
        match vcpu.run().unwrap() {
            VcpuExit::MmioWrite(address, data) => {
                assert_eq!((address, data), (layout::MMIO + 0x64, &[3, 0, 0, 0][..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(acknowledged.read().unwrap(), 1);
        match vcpu.run().unwrap() {
            VcpuExit::IoOut(0x80, data) => assert_eq!(data, [0x55]),
            other => panic!("{other:?}"),
        }
        assert_eq!(pages.word(0x64).load(Ordering::SeqCst), 0, "nothing was written there");
    }
}
