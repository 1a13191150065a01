//! Network interfaces, which may come and go while the machine runs.
//!
//! ```text
//! window  0 .. fixed    fixed ..         ...
//!         fs, vsock..   boot's | empty | empty      each a Slot on the bus
//!                               attach -> | <- detach
//! ```
//!
//! An empty slot costs the guest one look at a window at boot (section 4.2.3.1.1 of virtio
//! 1.2: device id 0), and KVM nothing: notifications are connected when the interface comes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use protocol::machine::{MachineConfig, Net, NetCounters};

use super::{BuildError, Fds, connect, disconnect, watch};
use crate::devices::virtio::net::{Counters, Net as NetDevice};
use crate::devices::virtio::slot::Slot;
use crate::devices::virtio::transport::{MmioTransport, Wiring};
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
}

/// A window for an interface.
struct Place {
    /// Of all devices of the machine.
    index: usize,
    slot: Arc<Slot>,
    attached: Option<Attached>,
}

/// All windows for interfaces.
pub struct Nets {
    places: Vec<Place>,
    memory: GrowingRam,
    thread: Option<Arc<EventLoop>>,
    max_vcpus: u8,
}

impl Nets {
    /// Empty windows at `places`, behind those of `fixed` devices, for all that `config` speaks of.
    pub(super) fn new(
        config: &MachineConfig,
        fixed: usize,
        places: Vec<Wiring>,
        memory: &GrowingRam,
        thread: Option<Arc<EventLoop>>,
    ) -> Nets {
        let place = |(index, wiring)| Place {
            index: fixed + index,
            slot: Arc::new(Slot::new(wiring)),
            attached: None,
        };
        Nets {
            places: places.into_iter().enumerate().map(place).collect(),
            memory: memory.clone(),
            thread,
            max_vcpus: config.max_vcpus.max(config.vcpus),
        }
    }

    /// Index and window of each.
    pub(super) fn windows(&self) -> impl Iterator<Item = (usize, &Arc<Slot>)> {
        self.places.iter().map(|place| (place.index, &place.slot))
    }

    /// For each that is there.
    pub(super) fn each(&self, work: impl Fn(&MmioTransport)) {
        self.places.iter().filter_map(|place| place.slot.device()).for_each(|device| work(&device));
    }

    /// Puts an interface into the window with the number `wanted`, or into the first that is
    /// empty; gives the number.
    ///
    /// # Errors
    /// In words, when no window is empty or the interface cannot be made.
    pub fn attach(
        &mut self,
        vm: &Vm,
        reporter: &Reporter,
        wanted: Option<u8>,
        net: &Net,
        taps: NetTaps,
    ) -> Result<u8, String> {
        let fits = |place: &&mut Place| {
            place.attached.is_none()
                && wanted.is_none_or(|wanted| place.index == usize::from(wanted))
        };
        let place = self.places.iter_mut().find(fits).ok_or_else(|| match wanted {
            Some(wanted) => format!("virtio-mmio.{wanted} is no empty slot for an interface"),
            None => "the machine has no empty slot for an interface".to_owned(),
        })?;
        let thread = self.thread.as_ref().ok_or("the machine has no thread for interfaces")?;
        if taps.0.len() > usize::from(self.max_vcpus) {
            let (pairs, vcpus) = (taps.0.len(), self.max_vcpus);
            return Err(format!("{pairs} pairs of queues; the machine has {vcpus} vCPUs at most"));
        }
        let device = NetDevice::new(net, taps.0).map_err(|error| error.to_string())?;
        let counters = device.counters();
        let (memory, wiring) = (self.memory.clone(), place.slot.wiring().clone());
        let transport = MmioTransport::new(Box::new(device), memory, thread.clone(), wiring)
            .map_err(|error| format!("a descriptor cannot be made: {error}"))?;
        watch(&transport, reporter);
        if let Err(error) = connect(vm, &transport, place.index) {
            // Some of it may not have been connected.
            let _ = disconnect(vm, &transport, place.index);
            place.slot.wiring().window.clear();
            return Err(format!("the interface cannot be connected: {error}"));
        }
        place.slot.fill(Arc::new(transport));
        place.attached = Some(Attached { mac: net.mac, counters });
        Ok(place.index as u8)
    }

    /// Empties the window with this number. The device is dropped here, and with it its
    /// taps: after its handler was taken off its thread.
    ///
    /// # Errors
    /// In words, when there is no interface.
    pub fn detach(&mut self, vm: &Vm, device: u8) -> Result<(), String> {
        let place = self.places.iter_mut().find(|place| place.index == usize::from(device));
        let gone = place.and_then(|place| {
            place.attached.take()?;
            Some((place.index, place.slot.empty()?))
        });
        let (index, transport) = gone.ok_or(format!("virtio-mmio.{device} is no interface"))?;
        disconnect(vm, &transport, index).map_err(|error| error.to_string())
    }

    /// Of each that is there.
    pub fn counters(&self) -> Vec<NetCounters> {
        let counters = |place: &Place| {
            place.attached.as_ref().map(|attached| NetCounters {
                device: place.index as u8,
                mac: attached.mac,
                pairs: attached.counters.now(),
            })
        };
        self.places.iter().filter_map(counters).collect()
    }
}
