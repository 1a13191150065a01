//! Network interfaces, which may come and go while the machine runs.
//!
//! ```text
//! PCI device  0        1 ..     ...
//!             bridge   boot's | empty | empty
//!                             attach -> | <- detach
//! ```
//!
//! The guest finds those that come later when it looks at the bus again, which its agent has
//! it do, and lets go of one before it is taken away.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::machine::{MachineConfig, Net, NetCounters};

use super::{BuildError, Fds, watch};
use crate::devices::pci::Root;
use crate::devices::virtio::net::{Counters, Net as NetDevice};
use crate::devices::virtio::transport::{PciTransport, Transport};
use crate::ending::Reporter;
use crate::event_loop::EventLoop;
use crate::kvm::Vm;
use crate::memory::GrowingRam;

/// The descriptors of an interface.
pub struct NetTaps(Vec<OwnedFd>);

impl NetTaps {
    /// Takes those that `net` names.
    ///
    /// # Errors
    /// When one was not sent.
    pub fn take(net: &Net, fds: &mut Fds) -> Result<NetTaps, BuildError> {
        net.taps.iter().map(|index| fds.take(*index)).collect::<Result<_, _>>().map(NetTaps)
    }
}

/// An interface that is there.
struct Attached {
    mac: [u8; 6],
    counters: Arc<Counters>,
    function: Arc<PciTransport>,
}

/// All places for interfaces: devices of the bus from 1 on.
pub struct Nets {
    bus: Arc<Root>,
    places: Vec<Option<Attached>>,
    memory: GrowingRam,
    thread: Option<Arc<EventLoop>>,
    max_vcpus: u8,
}

impl Nets {
    /// Empty places for all that `config` speaks of.
    pub(super) fn new(
        config: &MachineConfig,
        memory: &GrowingRam,
        thread: Option<Arc<EventLoop>>,
    ) -> Nets {
        let count = config.nets.len() + usize::from(config.net_slots);
        Nets {
            bus: Arc::default(),
            places: (0..count).map(|_| None).collect(),
            memory: memory.clone(),
            thread,
            max_vcpus: config.max_vcpus.max(config.vcpus),
        }
    }

    /// The bus that they are on, if there may be any.
    pub(super) fn bus(&self) -> Option<&Arc<Root>> {
        Some(&self.bus).filter(|_| !self.places.is_empty())
    }

    /// For each that is there.
    pub(super) fn each(&self, work: impl Fn(&Transport)) {
        self.places.iter().flatten().for_each(|attached| work(attached.function.device()));
    }

    /// Makes an interface the device with the number `wanted`, or the first that there is not;
    /// gives the number.
    ///
    /// # Errors
    /// In words, when there is no such place or the interface cannot be made.
    pub fn attach(
        &mut self,
        vm: &Arc<Vm>,
        reporter: &Reporter,
        wanted: Option<u8>,
        net: &Net,
        taps: NetTaps,
    ) -> Result<u8, String> {
        let mut places = (1u8..).zip(&mut self.places);
        let fits = |(number, place): &(u8, &mut Option<Attached>)| {
            place.is_none() && wanted.is_none_or(|wanted| wanted == *number)
        };
        let (number, place) = places.find(fits).ok_or_else(|| match wanted {
            Some(wanted) => format!("PCI device {wanted} is no empty place for an interface"),
            None => "the machine has no empty place for an interface".to_owned(),
        })?;
        let thread = self.thread.as_ref().ok_or("the machine has no thread for interfaces")?;
        if taps.0.len() > usize::from(self.max_vcpus) {
            let (pairs, vcpus) = (taps.0.len(), self.max_vcpus);
            return Err(format!("{pairs} pairs of queues; the machine has {vcpus} vCPUs at most"));
        }
        let device = NetDevice::new(net, taps.0).map_err(|error| error.to_string())?;
        let counters = device.counters();
        let (device, memory) = (Box::new(device), self.memory.clone());
        let function = PciTransport::new(device, memory, thread.clone(), vm.clone(), vm.clone())
            .map_err(|error| format!("a descriptor cannot be made: {error}"))?;
        watch(function.device(), reporter);
        let function = Arc::new(function);
        self.bus.fill(number, function.clone());
        *place = Some(Attached { mac: net.mac, counters, function });
        Ok(number)
    }

    /// Takes the device with this number away. It is dropped here, and with it its taps: after
    /// its handler was taken off its thread, and no vCPU is with it any more.
    ///
    /// # Errors
    /// In words, when there is no interface.
    pub fn detach(&mut self, device: u8) -> Result<(), String> {
        let place = usize::from(device).checked_sub(1).and_then(|index| self.places.get_mut(index));
        let gone = place.and_then(Option::take);
        let gone = gone.ok_or_else(|| format!("PCI device {device} is no interface"))?;
        self.bus.empty(device);
        gone.function.retire();
        Ok(())
    }

    /// Of each that is there.
    pub fn counters(&self) -> Vec<NetCounters> {
        let places = (1u8..).zip(&self.places);
        let counters = |(device, place): (u8, &Option<Attached>)| {
            let Attached { mac, counters, .. } = place.as_ref()?;
            Some(NetCounters { device, mac: *mac, pairs: counters.now() })
        };
        places.filter_map(counters).collect()
    }
}
