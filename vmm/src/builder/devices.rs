//! The virtio devices of a machine, in the order of their windows.

use std::path::PathBuf;
use std::sync::Arc;

use protocol::machine::{MachineConfig, Stats};

use super::{BuildError, Fds, at};
use crate::control::Control;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::MmioTransport;
use crate::event_loop::EventLoop;
use crate::memory::GuestRam;

/// Threads on which devices are served.
pub struct Loops {
    /// vsock, block, rng, balloon.
    pub slow: Arc<EventLoop>,
    /// The file server, whose calls may take as long as the host's disk does.
    pub files: Arc<EventLoop>,
}

/// All devices, and handles to those that the host speaks to.
pub struct Devices {
    /// In the order of their windows.
    pub transports: Vec<Arc<MmioTransport>>,
}

impl Devices {
    /// Lets active devices be served again.
    pub fn resume(&self) {
        self.transports.iter().for_each(|transport| transport.resume());
    }

    /// Takes active devices off their threads.
    pub fn pause(&self) {
        self.transports.iter().for_each(|transport| transport.pause());
    }

    /// Asks the guest for memory.
    ///
    /// # Errors
    /// When the machine has no balloon.
    pub fn set_balloon(&self, _mib: u32) -> Result<(), String> {
        Err("the machine has no balloon".into())
    }

    /// Adds the devices' counters.
    pub fn fill(&self, _stats: &mut Stats) {}
}

/// Makes the devices that `config` names.
///
/// # Errors
/// When one cannot be made.
pub fn build(
    _config: &MachineConfig,
    _fds: &mut Fds,
    memory: &GuestRam,
    loops: &Loops,
    _shares: PathBuf,
    _control: &Arc<Control>,
) -> Result<Devices, BuildError> {
    let mut transports = Vec::new();
    let mut add = |device: Box<dyn VirtioDevice>, event_loop: &Arc<EventLoop>| {
        let transport = MmioTransport::new(device, memory.clone(), event_loop.clone())
            .map_err(|error| at("devices")(&error))?;
        transports.push(Arc::new(transport));
        Ok::<(), BuildError>(())
    };
    add(Box::new(Rng), &loops.slow)?;
    Ok(Devices { transports })
}
