//! The virtio devices of a machine, in the order of their windows.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::machine::{MachineConfig, Share, Stats};
use protocol::vsock::{READY_PORT, RESOLVER_PORT};

use super::nets::Nets;
use super::{BuildError, Fds, at};
use crate::boot::cmdline;
use crate::control::Control;
use crate::devices::virtio::balloon::{Backing, Balloon, BalloonHandle, MmapReclaim};
use crate::devices::virtio::block::{Block, Disk};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::fs::{Fs, FsHandle, ShareConfig};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{Transport, Windows, Wiring};
use crate::devices::virtio::vsock::{OnConnect, Vsock};
use crate::event_loop::EventLoop;
use crate::jail::is_name;
use crate::kvm::{IrqPin, Vm};
use crate::memory::GrowingRam;

/// Threads on which devices are served.
pub struct Loops {
    /// vsock, block, rng, balloon.
    pub slow: Arc<EventLoop>,
    /// The file server, whose calls may take as long as the host's disk does.
    pub files: Arc<EventLoop>,
    /// Network interfaces, where there are or may be some.
    pub net: Option<Arc<EventLoop>>,
}

/// All devices, and handles to those that the host speaks to.
pub struct Devices {
    /// In the order of their windows.
    pub transports: Vec<Arc<Transport>>,
    /// On a bus of their own.
    pub nets: Nets,
    files: FsHandle,
    balloon: Option<(BalloonHandle, Arc<Transport>)>,
}

impl Devices {
    /// Lets active devices be served again.
    pub fn resume(&self) {
        self.transports.iter().for_each(|transport| transport.resume());
        self.nets.each(|transport| transport.resume());
    }

    /// Takes active devices off their threads.
    pub fn pause(&self) {
        self.transports.iter().for_each(|transport| transport.pause());
        self.nets.each(|transport| transport.pause());
    }

    /// Asks the guest for memory.
    ///
    /// # Errors
    /// When the machine has no balloon.
    pub fn set_balloon(&self, mib: u32) -> Result<(), String> {
        let (balloon, transport) = self.balloon.as_ref().ok_or("the machine has no balloon")?;
        balloon.set_target_mib(mib);
        transport.config_changed();
        Ok(())
    }

    /// Serves further shares, whose mounts are in the tree `mounts`.
    ///
    /// # Errors
    /// When one cannot be opened, or the guest has no driver yet.
    pub fn attach(&self, loops: &Loops, shares: &[Share], mounts: OwnedFd) -> Result<(), String> {
        let tree = self.files.tree().ok_or("the guest has not mounted its shares yet")?;
        let mut configs = Vec::with_capacity(shares.len());
        for share in shares {
            if !is_name(&share.name) {
                return Err(format!("{:?} is not a name for a share", share.name));
            }
            configs.push(ShareConfig {
                name: share.name.clone(),
                path: format!("/proc/self/fd/{}/{}", mounts.as_raw_fd(), share.name).into(),
                kind: share.kind,
                read_only: share.read_only,
                passing: true,
            });
        }
        let added = loops.files.run(move || tree.add(&configs, mounts));
        added.ok_or("the file server is gone")?.map_err(|error| error.to_string())
    }

    /// Takes shares away that [`Devices::attach`] brought.
    pub fn detach(&self, loops: &Loops, names: Vec<String>) {
        if let Some(tree) = self.files.tree() {
            loops.files.run(move || tree.remove(&names));
        }
    }

    /// Returns when no handler is left that looks at guest memory as it was before
    /// `bytes` in all were there.
    ///
    /// # Errors
    /// When a thread is gone.
    pub fn grown(&self, loops: &Loops, bytes: u64) -> Result<(), String> {
        if let Some((balloon, _)) = &self.balloon {
            balloon.grown(bytes);
        }
        // A handler looks anew for each event; this runs between two.
        let threads = [Some(&loops.slow), Some(&loops.files), loops.net.as_ref()];
        let passed = threads.into_iter().flatten().try_for_each(|thread| thread.run(|| ()));
        passed.ok_or_else(|| "a thread of the devices is gone".into())
    }

    /// Adds the devices' counters.
    pub fn fill(&self, stats: &mut Stats) {
        stats.fs_requests = self.files.requests();
        if let Some((balloon, _)) = &self.balloon {
            stats.balloon_mib = balloon.actual_mib();
            stats.reported_bytes = balloon.reported_bytes();
        }
    }
}

/// Puts devices into windows.
pub(super) struct Row<'a> {
    memory: &'a GrowingRam,
    places: Box<dyn Iterator<Item = Wiring> + 'a>,
    transports: Vec<Arc<Transport>>,
}

impl<'a> Row<'a> {
    /// An empty one.
    pub(super) fn new(vm: &'a Arc<Vm>, memory: &'a GrowingRam, windows: &'a Windows) -> Row<'a> {
        let wiring = |(index, window)| {
            let (_, pin) = cmdline::device_slot(index);
            Wiring { window, irq: Arc::new(IrqPin::new(vm.clone(), pin)) }
        };
        let places = Box::new((0..).zip(windows.each()).map(wiring));
        Row { memory, places, transports: Vec::new() }
    }

    fn add(
        &mut self,
        device: impl VirtioDevice + 'static,
        thread: &Arc<EventLoop>,
    ) -> Result<(), BuildError> {
        let wiring = self.places.next().ok_or_else(|| BuildError {
            stage: "devices",
            message: "more devices than the IOAPIC has pins".into(),
        })?;
        let memory = self.memory.clone();
        let transport = Transport::new(Box::new(device), memory, thread.clone(), wiring)
            .map_err(|error| at("devices")(&error))?;
        transport.appear();
        self.transports.push(Arc::new(transport));
        Ok(())
    }
}

/// Request queues of the file server: one thread serves them.
const FS_QUEUES: u32 = 1;

/// Where each share of `config` is in the jail.
fn share_configs(config: &MachineConfig, tree: &Path) -> Vec<ShareConfig> {
    let share = |share: &Share| ShareConfig {
        name: share.name.clone(),
        path: tree.join(share.kind.dir()).join(&share.name),
        kind: share.kind,
        read_only: share.read_only,
        passing: false,
    };
    config.shares.iter().map(share).collect()
}

/// Makes the devices that `config` names.
///
/// # Errors
/// When one cannot be made.
pub fn build(
    config: &MachineConfig,
    fds: &mut Fds,
    mut row: Row,
    loops: &Loops,
    shares: PathBuf,
    control: &Arc<Control>,
) -> Result<Devices, BuildError> {
    let memory = row.memory;
    let fs = Fs::new(share_configs(config, &shares), FS_QUEUES);
    let files = fs.handle();
    row.add(fs, &loops.files)?;
    let listener = config.vsock_listener.map(|index| fds.take(index)).transpose()?;
    let control = control.clone();
    // The agent dials once, and nobody else has a reason to.
    let dialled = AtomicBool::new(false);
    let resolver = config.resolver;
    let connect: OnConnect = Arc::new(move |port, fd| {
        let allowed = match port {
            READY_PORT => !dialled.swap(true, Ordering::Relaxed),
            RESOLVER_PORT => resolver,
            _ => false,
        };
        allowed && control.guest_connect(port, fd).is_ok()
    });
    let vsock = Vsock::new(listener, connect).map_err(|error| at("vsock")(&error))?;
    row.add(vsock, &loops.slow)?;
    row.add(Rng, &loops.slow)?;
    let mut balloon = None;
    if config.balloon {
        let reclaim = MmapReclaim::new(memory.clone(), Backing::Shared);
        let (device, handle) = Balloon::new(&memory.now(), Arc::new(reclaim));
        row.add(device, &loops.slow)?;
        balloon = row.transports.last().cloned().map(|transport| (handle, transport));
    }
    for disk in &config.disks {
        let file = File::from(fds.take(disk.file)?);
        let disk =
            Disk::new(file, &disk.serial, disk.read_only).map_err(|error| at("disk")(&error))?;
        row.add(Block::new(disk), &loops.slow)?;
    }
    let nets = Nets::new(config, memory, loops.net.clone());
    Ok(Devices { transports: row.transports, nets, files, balloon })
}
