//! A virtio-mmio window whose device may come and go.
//!
//! Without one it shows device id 0, which drivers leave alone (virtio 1.2, section 4.2.3.1.1):
//! Linux has no driver bound to it then, and looks again when it is told to.

use std::sync::{Arc, RwLock};

use super::transport::{MmioTransport, Wiring};
use crate::devices::bus::BusDevice;

/// See the module.
pub struct Slot {
    /// Read for the duration of each write of a guest's, so that whoever takes the device away
    /// waits for vCPUs that are with it. No thread of a device ever takes it.
    device: RwLock<Option<Arc<MmioTransport>>>,
    wiring: Wiring,
}

impl Slot {
    /// At `wiring`, and empty.
    pub fn new(wiring: Wiring) -> Slot {
        wiring.window.clear();
        Slot { device: RwLock::default(), wiring }
    }

    /// What is in it.
    pub fn device(&self) -> Option<Arc<MmioTransport>> {
        self.device.read().expect("no panic while locked").clone()
    }

    /// For the device that comes next.
    pub fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// Fills it with a device that was made for its wiring, and which appears there.
    pub fn fill(&self, device: Arc<MmioTransport>) {
        *self.device.write().expect("no panic while locked") = Some(device.clone());
        device.appear();
    }

    /// Empties it. The device is dropped with the last clone that [`Slot::device`] gave; no
    /// vCPU is with it any more.
    pub fn empty(&self) -> Option<Arc<MmioTransport>> {
        let gone = self.device.write().expect("no panic while locked").take();
        if let Some(device) = &gone {
            // Its threads must not write to the window after this.
            device.retire();
            self.wiring.window.clear();
        }
        gone
    }
}

impl BusDevice for Slot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.wiring.window.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(device) = &*self.device.read().expect("no panic while locked") {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::testing::{
        BUFFERS, Driver, WRITE, memory, settle, transport_at, wiring,
    };

    fn read(slot: &Slot, register: u64) -> u32 {
        let mut word = [0xff; 4];
        slot.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn a_device_comes_and_goes_and_comes_again() {
        let (slot, memory) = (Slot::new(wiring().0), memory());
        let empty = |slot: &Slot| {
            slot.write(0x70, &1u32.to_le_bytes());
            let words = [0, 4, 8, 0x10, 0x34, 0x44, 0x70, 0x100, 0xffc];
            words.map(|register| read(slot, register)) == [0x7472_6976, 2, 0, 0, 0, 0, 0, 0, 0]
        };
        assert!(empty(&slot) && slot.device().is_none());
        for _ in 0..2 {
            let device = Arc::new(transport_at(slot.wiring(), Rng, &memory));
            slot.fill(device.clone());
            assert_eq!((read(&slot, 8), read(&slot, 0x34)), (4, 64));
            let mut rings = Driver(&device).start(&memory, &[0]);
            rings[0].chain(&[(BUFFERS, 16, WRITE)]);
            slot.write(0x50, &0u32.to_le_bytes());
            rings[0].wait(1);
            let kick = device.kicks()[0].try_clone().unwrap();
            drop(device);
            let gone = slot.empty().unwrap();
            assert_eq!(Arc::strong_count(&gone), 1, "nobody is with it");
            drop(gone);
            assert!(empty(&slot) && slot.empty().is_none());
            rings[0].chain(&[(BUFFERS, 16, WRITE)]);
            kick.write(1).unwrap();
            settle();
            assert_eq!(rings[0].used(0).len(), 1, "and nothing is left of it");
        }
    }
}
