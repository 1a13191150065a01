//! A built machine, as the main thread holds it.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_ioctls::VcpuFd;
use protocol::machine::{Net, Size, Stats};

use crate::builder::{Devices, Fds, Loops, NetTaps};
use crate::devices::console::Console;
use crate::jail::{Filters, ThreadKind};
use crate::kvm::{Vm, refused};
use crate::memory::Memory;
use crate::vcpu::{ExitCounters, VcpuContext, VcpuHandle, setup};

/// Everything that lives while the guest runs. Fields are dropped in order:
/// vCPUs before what they use.
pub struct Machine {
    /// One per vCPU.
    pub vcpus: Vec<VcpuHandle>,
    /// What the guest sees on its MMIO bus.
    pub devices: Devices,
    /// The early console.
    pub console: Arc<Console>,
    /// Exits of all vCPUs.
    pub counters: Arc<ExitCounters>,
    /// KVM's machine.
    pub vm: Arc<Vm>,
    /// Its RAM.
    pub memory: Memory,
    /// Threads of the devices.
    pub(crate) loops: Loops,
    /// The next vCPU, where something failed after KVM had made it: KVM makes none twice.
    pub(crate) spare: Option<VcpuFd>,
    /// CPUs that the guest's kernel made room for.
    pub(crate) max_vcpus: u8,
    /// For vCPUs that are added.
    pub(crate) context: VcpuContext,
    /// For their threads.
    pub(crate) filters: Filters,
    /// Whether vCPUs run.
    pub(crate) running: bool,
}

impl Machine {
    /// Lets all vCPUs run.
    pub fn resume(&mut self) {
        self.devices.resume();
        self.vcpus.iter().for_each(VcpuHandle::resume);
        self.running = true;
    }

    /// Stops all vCPUs, then the devices.
    pub fn pause(&mut self) {
        self.running = false;
        self.vcpus.iter().for_each(VcpuHandle::pause);
        self.devices.pause();
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        Size { memory_mib: self.memory.mib(), vcpus: self.vcpus.len() as u8 }
    }

    /// Makes it as large as `wanted`, where it is smaller. What was done before an error
    /// stays, and [`Machine::size`] tells it.
    ///
    /// # Errors
    /// When there is no room for so many CPUs, or the host refuses.
    pub fn grow(&mut self, wanted: Size) -> Result<(), String> {
        if wanted.vcpus > self.max_vcpus {
            return Err(format!(
                "the machine was started with room for {} vCPUs; {} are too many",
                self.max_vcpus, wanted.vcpus
            ));
        }
        while self.vcpus.len() < usize::from(wanted.vcpus) {
            let index = self.vcpus.len() as u8;
            let added = self.add_vcpu(index);
            added.map_err(|error| in_words(&format!("vCPU {index} cannot be added"), &*error))?;
        }
        let vm = &self.vm;
        let before = self.memory.mib();
        self.memory
            .grow(wanted.memory_mib, |new| vm.add_memory(new))
            .map_err(|error| in_words("the memory cannot be added", &error))?;
        if self.memory.mib() == before {
            return Ok(());
        }
        // Before the guest is told: see `GrowingRam`.
        self.devices.grown(&self.loops, u64::from(self.memory.mib()) << 20)
    }

    /// A vCPU that waits for the guest to wake it up, by INIT and SIPI. A guest that does
    /// so before it is there waits in vain.
    fn add_vcpu(&mut self, index: u8) -> Result<(), Box<dyn Error>> {
        let fd = match self.spare.take() {
            Some(fd) => fd,
            None => {
                let fd = self.vm.fd.create_vcpu(u64::from(index));
                fd.map_err(refused("a vCPU (KVM_CREATE_VCPU)"))?
            }
        };
        if let Err(error) = setup::configure(&self.vm, &fd, index, self.max_vcpus) {
            self.spare = Some(fd);
            return Err(error.into());
        }
        let filters = self.filters.clone();
        // Its capabilities are this thread's: none.
        let confine = move || {
            if let Err(error) = filters.apply(ThreadKind::Vcpu) {
                panic!("cannot confine the thread of a vCPU that was added: {error}");
            }
        };
        let vcpu = match VcpuHandle::spawn(index, fd, self.context.clone(), confine) {
            Ok(vcpu) => vcpu,
            Err((error, fd)) => {
                self.spare = Some(fd);
                return Err(error.into());
            }
        };
        if self.running {
            vcpu.resume();
        }
        self.vcpus.push(vcpu);
        Ok(())
    }

    /// Puts an interface into an empty place; gives its device number.
    ///
    /// # Errors
    /// When there is none, or the interface is none.
    pub fn attach_net(
        &mut self,
        slot: Option<u8>,
        net: &Net,
        fds: Vec<OwnedFd>,
    ) -> Result<u8, String> {
        let taps = NetTaps::take(net, &mut Fds::new(fds)).map_err(|error| error.message)?;
        self.devices.nets.attach(&self.vm, &self.context.reporter, slot, net, taps)
    }

    /// Takes it away, and returns when nothing is left of it.
    ///
    /// # Errors
    /// When it is no interface.
    pub fn detach_net(&mut self, device: u8) -> Result<(), String> {
        self.devices.nets.detach(device)
    }

    /// Counters since boot.
    pub fn stats(&self) -> Stats {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let exits = [
            ("io", &self.counters.io),
            ("mmio", &self.counters.mmio),
            ("other", &self.counters.other),
        ];
        let mut stats = Stats {
            exits: exits.iter().map(|(name, count)| ((*name).to_owned(), load(count))).collect(),
            ..Stats::default()
        };
        self.devices.fill(&mut stats);
        stats
    }
}

/// What failed, with the whole chain of causes.
fn in_words(what: &str, error: &dyn Error) -> String {
    let mut message = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}
