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
