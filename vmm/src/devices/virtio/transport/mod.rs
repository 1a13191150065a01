//! A virtio device between its driver and its handler: in an MMIO window (virtio 1.2, section
//! 4.2, version 2), or behind a function of the [PCI](pci) bus, which translates.
//!
//! ```text
//! vCPU threads --writes--> Transport ------add/take--> EventLoop: Handler
//!    |     ^               | Mutex: registers, device       |
//!    |     +---- Irq <----+------------ Line <-------------+
//!    +- reads -> Window <--+--------------+
//!
//! Running:  No -- DRIVER_OK --> On(loop) <-- resume/pause --> Paused(handler)
//!           ^--- reset, FAILED, or the handler's own failure ---+
//! ```
//!
//! Invariants: the loop's thread never takes the transport's mutex, so that a
//! vCPU may wait for the loop while it holds it; nothing here logs, the last
//! failure is kept for whoever asks.

mod line;
mod pci;
mod registers;
mod state;
mod window;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::bindings::virtio_mmio as offset;
use virtio_bindings::bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

pub use self::line::{Irq, Wiring};
use self::line::{Line, Shared};
pub use self::pci::{Doorbells, PciTransport};
use self::registers::{EVENT_IDX, Effect};
pub use self::registers::{QueueRegisters, Registers, TRANSPORT_FEATURES};
pub use self::state::{HandlerState, RestoreError, TransportState};
pub use self::window::{Window, Windows};
use super::device::{Activation, ActiveQueue, SavedQueue, VirtioDevice};
use crate::devices::bus::BusDevice;
use crate::event_loop::{EventLoop, Handler, HandlerId};
use crate::memory::GrowingRam;

/// Bytes of a transport's window.
pub const WINDOW: u64 = 0x1000;
/// Offset of QueueNotify, at which ioeventfds are registered, with the queue's
/// index as datamatch (4 bytes).
pub const QUEUE_NOTIFY: u64 = offset::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Offset of InterruptACK; see [`Transport::acknowledged`].
pub const INTERRUPT_ACK: u64 = offset::VIRTIO_MMIO_INTERRUPT_ACK as u64;
const CONFIG: u64 = offset::VIRTIO_MMIO_CONFIG as u64;

/// Whether and where the handler is.
enum Running {
    No,
    On(HandlerId),
    Paused(Box<dyn Handler>),
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    running: Running,
    /// Of the present activation.
    line: Option<Line>,
}

/// One device in its MMIO window.
pub struct Transport {
    shared: Arc<Shared>,
    kicks: Vec<EventFd>,
    /// Of acknowledgements, never read.
    acknowledged: EventFd,
    memory: GrowingRam,
    event_loop: Arc<EventLoop>,
    device_id: u32,
    inner: Mutex<Inner>,
}

impl Transport {
    /// Puts `device`, whose handlers will live on `event_loop`, at `wiring`, whose window shows
    /// no device until it [appears](Self::appear).
    ///
    /// # Errors
    /// When a descriptor cannot be made, or a queue size of the device is not a
    /// power of two up to 32768.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GrowingRam,
        event_loop: Arc<EventLoop>,
        wiring: Wiring,
    ) -> io::Result<Transport> {
        let sizes = device.queue_sizes();
        if let Some(size) = sizes.iter().find(|&&size| Queue::new(size).is_err()) {
            let message = format!("virtio-{}: no queue has {size} entries", device.name());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let kick = |_: &u16| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks = sizes.iter().map(kick).collect::<io::Result<_>>()?;
        let registers = Registers::new(device.features() | TRANSPORT_FEATURES, sizes);
        let device_id = device.id();
        let inner = Inner { device, registers, running: Running::No, line: None };
        wiring.window.clear();
        let shared = Arc::new(Shared::new(wiring));
        let acknowledged = kick(&0)?;
        let inner = inner.into();
        let transport =
            Transport { shared, kicks, acknowledged, memory, event_loop, device_id, inner };
        transport.show(&transport.lock());
        transport.show_config(&transport.lock());
        Ok(transport)
    }

    /// Lets drivers know the device.
    pub fn appear(&self) {
        self.shared.window.identify(self.device_id);
    }

    /// One per queue; KVM signals it on a write of the queue's index to
    /// [`QUEUE_NOTIFY`].
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Takes acknowledgements of used buffers alone: 4 bytes of this value at
    /// [`INTERRUPT_ACK`]. KVM may signal it, which nobody waits for, so that an interrupt costs
    /// the guest no way to the VMM. InterruptStatus then goes on to tell of used buffers: a
    /// driver looks at its rings once too often, and an edge is lost to nobody, since each
    /// interrupt is one whatever the status was before.
    pub fn acknowledged(&self) -> (&EventFd, u32) {
        (&self.acknowledged, VIRTIO_MMIO_INT_VRING)
    }

    /// The host changed what the device's configuration space says: shows it, and tells the
    /// driver if there is one. Not for threads of a device. What belongs together must be one
    /// aligned word: a driver that reads two between the changes of the generation takes them
    /// for one state.
    pub fn config_changed(&self) {
        let inner = self.lock();
        let next = || self.shared.window.generation().fetch_add(1, Ordering::SeqCst);
        next();
        self.show_config(&inner);
        next();
        if let Some(line) = &inner.line {
            line.config();
        }
    }

    /// Why the device set DEVICE_NEEDS_RESET last, if it ever did.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// Has `watcher` told, once and for all of the transport's life, whenever the
    /// device sets DEVICE_NEEDS_RESET.
    pub fn on_failure(&self, watcher: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.shared.watcher.set(Box::new(watcher));
    }

    /// The device's name, for messages.
    pub fn name(&self) -> &'static str {
        self.lock().device.name()
    }

    /// Takes the handler off its loop: after this nothing of the device changes
    /// and no guest memory is written. Stop the vCPUs first; a driver that
    /// starts the device in between makes it run.
    pub fn pause(&self) {
        let mut inner = self.lock();
        if let Some(handler) = self.take(&mut inner) {
            inner.running = Running::Paused(handler);
        }
    }

    /// Stops the device for good: nothing of it changes its window, or guest memory, any more.
    pub fn retire(&self) {
        self.stop(&mut self.lock());
    }

    /// Puts the handler back.
    pub fn resume(&self) {
        let mut inner = self.lock();
        match std::mem::replace(&mut inner.running, Running::No) {
            Running::Paused(handler) => self.add(&mut inner, handler),
            other => inner.running = other,
        }
        self.shared.raise_again(self.kicks.len());
    }

    /// The state. A running device is paused for the moment; for a state that
    /// fits guest memory, pause vCPUs and devices before.
    pub fn save(&self) -> TransportState {
        let mut inner = self.lock();
        let paused = matches!(inner.running, Running::Paused(_));
        let handler = self.take(&mut inner);
        let handler_state = handler.as_ref().map(|handler| HandlerState {
            queues: handler.queues().iter().map(|&(index, queue)| (index as u16, queue)).collect(),
            bytes: handler.save(),
        });
        let state = TransportState {
            device_id: self.device_id,
            device: inner.device.save(),
            registers: inner.registers.clone(),
            needs_reset: self.shared.needs_reset(),
            interrupt_status: self.shared.window.interrupt_status().load(Ordering::SeqCst),
            config_generation: self.shared.window.generation().load(Ordering::SeqCst),
            handler: handler_state,
        };
        match handler {
            Some(handler) if paused => inner.running = Running::Paused(handler),
            Some(handler) => self.add(&mut inner, handler),
            None => {}
        }
        state
    }

    /// Takes back a state; a device that ran is then paused, and
    /// [`resume`](Self::resume) lets it go. After an error the transport is of
    /// no use.
    ///
    /// # Errors
    /// When the state does not fit this device or this memory.
    pub fn restore(&self, state: TransportState) -> Result<(), RestoreError> {
        let mut inner = self.lock();
        if inner.registers.status != 0 || !matches!(inner.running, Running::No) {
            return Err(RestoreError::Busy);
        }
        check(&inner, self.device_id, &state)?;
        inner.device.restore(&state.device)?;
        inner.registers = state.registers;
        self.shared.restore(state.needs_reset, state.interrupt_status, state.config_generation);
        self.show(&inner);
        self.show_config(&inner);
        if let Some(handler) = state.handler {
            let mut queues: Vec<_> = self.kicks.iter().map(|_| None).collect();
            for (index, saved) in handler.queues {
                queues[usize::from(index)] = self.queue(usize::from(index), saved)?;
            }
            let activation = self.activation(&mut inner, queues);
            let handler = inner.device.reactivate(activation, &handler.bytes)?;
            inner.running = Running::Paused(handler);
        }
        Ok(())
    }

    /// The driver set DRIVER_OK.
    fn activate(&self, inner: &mut Inner) {
        let event_idx = inner.registers.accepted & EVENT_IDX != 0;
        let queues = inner.registers.queues.iter().enumerate();
        let queues = queues
            .map(|(index, queue)| self.queue(index, queue.initial(event_idx)))
            .collect::<Result<Vec<_>, _>>();
        let activation = self.activation(inner, Vec::new());
        let result = queues.map_err(|error| error.to_string()).and_then(|queues| {
            let activation = Activation { queues, ..activation };
            inner.device.activate(activation).map_err(|error| error.to_string())
        });
        match (result, &inner.line) {
            (Ok(handler), _) => self.add(inner, handler),
            (Err(message), Some(line)) => line.fail(message),
            (Err(_), None) => {}
        }
    }

    /// A validated queue with its kick; none when the driver left it alone.
    fn queue(&self, index: usize, saved: SavedQueue) -> Result<Option<ActiveQueue>, RestoreError> {
        if !saved.ready {
            return Ok(None);
        }
        let queue = Queue::try_from(QueueState::from(saved))
            .map_err(|_| RestoreError::Damaged("a queue's size or alignment is wrong"))?;
        if !queue.is_valid(&*self.memory.now()) {
            return Err(RestoreError::Damaged("a queue lies outside memory"));
        }
        Ok(Some(ActiveQueue { queue, kick: self.kicks[index].try_clone()? }))
    }

    fn activation(&self, inner: &mut Inner, queues: Vec<Option<ActiveQueue>>) -> Activation {
        let line = self.shared.begin();
        inner.line = Some(line.clone());
        Activation {
            memory: self.memory.clone(),
            queues,
            features: inner.registers.accepted,
            interrupt: Arc::new(line),
        }
    }

    fn add(&self, inner: &mut Inner, handler: Box<dyn Handler>) {
        let line = inner.line.clone();
        let on_failure = Box::new(move |error: crate::event_loop::HandlerError| {
            if let Some(line) = &line {
                line.fail(error.to_string());
            }
        });
        inner.running = Running::On(self.event_loop.add(handler, on_failure));
        // Buffers that were made available before are seen by this.
        self.kicks.iter().for_each(|kick| drop(kick.write(1)));
    }

    /// Takes the handler from wherever it is; `Running::No` remains.
    fn take(&self, inner: &mut Inner) -> Option<Box<dyn Handler>> {
        match std::mem::replace(&mut inner.running, Running::No) {
            Running::No => None,
            Running::On(id) => self.event_loop.take(id),
            Running::Paused(handler) => Some(handler),
        }
    }

    /// Off the loop and dropped; its interrupts go nowhere.
    fn stop(&self, inner: &mut Inner) {
        drop(self.take(inner));
        self.shared.end();
        inner.line = None;
    }

    fn reset(&self, inner: &mut Inner) {
        self.stop(inner);
        inner.device.reset();
        inner.registers.reset();
        self.shared.reset();
        self.kicks.iter().for_each(|kick| drop(kick.read()));
    }

    /// The driver's half of the registers, as it is now.
    fn registers(&self) -> Registers {
        self.lock().registers.clone()
    }

    /// InterruptStatus, which the driver acknowledges by this.
    fn take_interrupt_status(&self) -> u32 {
        self.shared.window.interrupt_status().swap(0, Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while locked")
    }

    /// Shows the registers as they are. A driver selects what it reads of some, and that is a
    /// write.
    fn show(&self, inner: &Inner) {
        let window = &self.shared.window;
        for register in registers::READ {
            window.set(register, inner.registers.read(register));
        }
        window.set_status(inner.registers.status, || self.shared.needs_reset());
    }

    fn show_config(&self, inner: &Inner) {
        self.shared.window.set_config(|space| inner.device.read_config(0, space));
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            // A hot path only where KVM has no ioeventfd for it.
            offset::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            offset::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared.window.interrupt_status().fetch_and(!value, Ordering::SeqCst);
            }
            _ => {
                let mut inner = self.lock();
                match inner.registers.write(register, value) {
                    Effect::None => {}
                    Effect::Activate => self.activate(&mut inner),
                    Effect::Stop => self.stop(&mut inner),
                    Effect::Reset => {
                        self.reset(&mut inner);
                        self.show_config(&inner);
                    }
                }
                self.show(&inner);
            }
        }
    }
}

/// Whether a state can be one of this device.
fn check(inner: &Inner, device_id: u32, state: &TransportState) -> Result<(), RestoreError> {
    let (mine, theirs) = (&inner.registers, &state.registers);
    if state.device_id != device_id {
        return Err(RestoreError::Other("device id"));
    }
    if mine.offered != theirs.offered {
        return Err(RestoreError::Other("features"));
    }
    let sizes = |registers: &Registers| -> Vec<u16> {
        registers.queues.iter().map(|queue| queue.max_size).collect()
    };
    if sizes(mine) != sizes(theirs) {
        return Err(RestoreError::Other("queues"));
    }
    if !theirs.plausible() || (state.handler.is_some() && !theirs.running()) {
        return Err(RestoreError::Damaged("status"));
    }
    let queues = state.handler.iter().flat_map(|handler| &handler.queues);
    for (index, queue) in queues {
        match mine.queues.get(usize::from(*index)) {
            Some(own) if own.max_size == queue.max_size => {}
            _ => return Err(RestoreError::Damaged("queue")),
        }
    }
    Ok(())
}

impl BusDevice for Transport {
    /// Not on the way of a guest, which reads the window itself.
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.window.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            let mut inner = self.lock();
            if inner.registers.driven() {
                inner.device.write_config(offset - CONFIG, data);
                self.show_config(&inner);
            }
            return;
        }
        if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset as u32, u32::from_le_bytes(word));
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Ok(mut inner) = self.inner.lock() {
            drop(self.take(&mut inner));
        }
    }
}

#[cfg(test)]
mod tests;
