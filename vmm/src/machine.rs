//! A built machine, as the main thread holds it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use protocol::machine::Stats;

use crate::builder::Devices;
use crate::builder::Loops;
use crate::devices::console::Console;
use crate::kvm::Vm;
use crate::memory::GuestRam;
use crate::vcpu::{ExitCounters, VcpuHandle};

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
    pub memory: GuestRam,
    /// Threads of the devices.
    pub(crate) loops: Loops,
}

impl Machine {
    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.devices.resume();
        self.vcpus.iter().for_each(VcpuHandle::resume);
    }

    /// Stops all vCPUs, then the devices.
    pub fn pause(&self) {
        self.vcpus.iter().for_each(VcpuHandle::pause);
        self.devices.pause();
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
