//! The seam between a transport and a device.

use std::sync::Arc;

use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::Handler;
use crate::memory::GrowingRam;

/// How a device tells the guest that something happened. A device never calls
/// KVM: the transport does.
pub trait Interrupt: Send + Sync {
    /// The device put buffers into the used ring of the queue with this index.
    fn queue(&self, index: u16);
}

/// What an interrupt tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Used buffers of the queue with this index.
    Queue(u16),
    /// The configuration space or the status is another one.
    Config,
}

/// A queue that the driver configured, with the eventfd that KVM signals when
/// the driver notifies it.
pub struct ActiveQueue {
    /// The ring, validated by the transport before activation.
    pub queue: Queue,
    /// Signalled by KVM (ioeventfd) when the driver notifies the device.
    pub kick: EventFd,
}

/// What a device gets once the driver set DRIVER_OK.
pub struct Activation {
    /// The guest's memory.
    pub memory: GrowingRam,
    /// All queues that the driver enabled, at their own index; a queue that it
    /// left alone is absent.
    pub queues: Vec<Option<ActiveQueue>>,
    /// Feature bits that both sides accepted.
    pub features: u64,
    /// The way back to the guest.
    pub interrupt: Arc<dyn Interrupt>,
}

/// Why a device cannot start.
#[derive(Debug, thiserror::Error)]
#[error("virtio-{device}: {message}")]
pub struct ActivateError {
    /// Name of the device.
    pub device: &'static str,
    /// What is wrong.
    pub message: String,
}

/// The part of a device that exists whether or not a driver runs it.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2, section 5).
    fn id(&self) -> u32;
    /// Name for messages and threads: "fs", "vsock", ...
    fn name(&self) -> &'static str;
    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Feature bits offered beside those of the transport (VERSION_1,
    /// RING_EVENT_IDX, RING_INDIRECT_DESC), which the transport adds.
    fn features(&self) -> u64;
    /// Reads the configuration space. Bytes beyond its end read as zero. Where the host changes
    /// it, the transport has to be told (`Transport::config_changed`).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; most devices ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts to serve. The transport puts the handler on an event loop.
    ///
    /// # Errors
    /// When a needed queue is missing or a resource fails; the transport then
    /// sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError>;
    /// As `activate`, after [`restore`](Self::restore), for a device that was
    /// saved while it ran; `handler` is what [`Handler::save`] gave. Needed by
    /// devices whose handler has state beside its queues.
    ///
    /// # Errors
    /// As `activate`, and when the bytes are not a state of this handler.
    fn reactivate(
        &mut self,
        activation: Activation,
        _handler: &[u8],
    ) -> Result<Box<dyn Handler>, ActivateError> {
        self.activate(activation)
    }
    /// The driver resets the device, whose handler is gone already: back to the
    /// configuration that a fresh driver expects. May be called in any state.
    fn reset(&mut self) {}
    /// State of the device without its handler (configuration that the driver
    /// or the host changed), as postcard bytes of its own state type.
    fn save(&self) -> Vec<u8>;
    /// Takes back what `save` gave.
    ///
    /// # Errors
    /// When the bytes are not a state of this device.
    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError>;
}

/// The serialisable mirror of [`QueueState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedQueue {
    /// Largest size offered.
    pub max_size: u16,
    /// Next entry of the available ring to take.
    pub next_avail: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
    /// VIRTIO_F_RING_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Size that the driver chose.
    pub size: u16,
    /// The driver enabled the queue.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        SavedQueue {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> Self {
        QueueState {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        }
    }
}
