//! A virtio-mmio window whose device may come and go.
//!
//! Without one it shows device id 0, which drivers leave alone (virtio 1.2, section 4.2.3.1.1):
//! Linux has no driver bound to it then, and looks again when it is told to.

use std::sync::{Arc, RwLock};

use super::transport::{MmioTransport, identity};
use crate::devices::bus::BusDevice;

/// See the module.
#[derive(Default)]
pub struct Slot {
    /// Read for the duration of each access, so that whoever takes the device away waits for
    /// vCPUs that are with it. No thread of a device ever takes it.
    device: RwLock<Option<Arc<MmioTransport>>>,
}

impl Slot {
    /// What is in it.
    pub fn device(&self) -> Option<Arc<MmioTransport>> {
        self.device.read().expect("no panic while locked").clone()
    }

    /// Fills it, or empties it with `None`; gives what was there. No vCPU is with that any
    /// more.
    pub fn replace(&self, device: Option<Arc<MmioTransport>>) -> Option<Arc<MmioTransport>> {
        std::mem::replace(&mut *self.device.write().expect("no panic while locked"), device)
    }
}

impl BusDevice for Slot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let device = self.device.read().expect("no panic while locked");
        match (&*device, <&mut [u8; 4]>::try_from(&mut *data)) {
            (Some(device), _) => device.read(offset, data),
            (None, Ok(word)) => *word = identity(offset, 0).unwrap_or(0).to_le_bytes(),
            (None, Err(_)) => data.fill(0),
        }
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
    use crate::devices::virtio::testing::{BUFFERS, Driver, WRITE, memory, transport};

    fn read(slot: &Slot, register: u64) -> u32 {
        let mut word = [0xff; 4];
        slot.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn a_device_comes_and_goes_and_comes_again() {
        let (slot, memory) = (Slot::default(), memory());
        let empty = |slot: &Slot| {
            slot.write(0x70, &1u32.to_le_bytes());
            let words = [0, 4, 8, 0x10, 0x34, 0x44, 0x70, 0x100, 0xffc];
            words.map(|register| read(slot, register)) == [0x7472_6976, 2, 0, 0, 0, 0, 0, 0, 0]
        };
        assert!(empty(&slot) && slot.device().is_none());
        let mut bytes = [0xff; 8];
        slot.read(0, &mut bytes);
        assert_eq!(bytes, [0; 8]);
        for _ in 0..2 {
            let device = Arc::new(transport(Rng, &memory));
            assert!(slot.replace(Some(device.clone())).is_none());
            assert_eq!((read(&slot, 8), read(&slot, 0x34)), (4, 64));
            let mut rings = Driver(&device).start(&memory, &[0]);
            rings[0].chain(&[(BUFFERS, 16, WRITE)]);
            slot.write(0x50, &0u32.to_le_bytes());
            rings[0].wait(1);
            drop(device);
            let gone = slot.replace(None).unwrap();
            assert_eq!(Arc::strong_count(&gone), 1, "nobody is with it");
            drop(gone);
            assert!(empty(&slot));
            rings[0].chain(&[(BUFFERS, 16, WRITE)]);
            assert_eq!(rings[0].used(0).len(), 1, "and nothing is left of it");
        }
    }
}
