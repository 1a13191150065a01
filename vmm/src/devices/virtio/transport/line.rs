//! What the handler's thread and the vCPU threads share: a few atomics, the window and the
//! interrupt.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use virtio_bindings::bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use super::window::Window;
use crate::devices::virtio::device::{Event, Interrupt};

/// Told why a device stopped.
pub(super) type Watcher = Box<dyn Fn(&str) + Send + Sync>;

/// Interrupts of a device, edge-triggered. Called by every thread that serves it.
pub trait Irq: Send + Sync {
    /// An edge for this event, which may be that of others as well. None is lost: the guest
    /// looks after the last one.
    fn raise(&self, event: Event);
}

/// Where a device is in the machine.
#[derive(Clone)]
pub struct Wiring {
    /// What the driver reads.
    pub window: Window,
    /// How it is told to look.
    pub irq: Arc<dyn Irq>,
}

/// State of the device's half of the register file.
pub(super) struct Shared {
    irq: Arc<dyn Irq>,
    /// The registers as the driver reads them: InterruptStatus and ConfigGeneration are kept
    /// nowhere else.
    pub(super) window: Window,
    /// DEVICE_NEEDS_RESET of the status.
    failed: AtomicBool,
    /// Counts beginnings and ends of activations; even: not active.
    epoch: AtomicU32,
    /// Why the device stopped last.
    failure: Mutex<Option<String>>,
    /// Whom to tell.
    pub(super) watcher: OnceLock<Watcher>,
}

impl Shared {
    pub(super) fn new(Wiring { irq, window }: Wiring) -> Shared {
        Shared {
            irq,
            window,
            failed: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            failure: Mutex::new(None),
            watcher: OnceLock::new(),
        }
    }

    /// Begins an activation: the way back to the guest for as long as it lasts.
    pub(super) fn begin(self: &Arc<Self>) -> Line {
        let epoch = self.epoch.fetch_add(1, Ordering::AcqRel).wrapping_add(1) | 1;
        self.epoch.store(epoch, Ordering::Release);
        Line { shared: self.clone(), epoch }
    }

    /// Ends an activation: interrupts of its handler go nowhere from now on.
    pub(super) fn end(&self) {
        let epoch = self.epoch.load(Ordering::Acquire);
        self.epoch.store(epoch.wrapping_add(epoch & 1), Ordering::Release);
    }

    /// As after power-on. The guest's last acknowledgement is forgotten too.
    pub(super) fn reset(&self) {
        self.end();
        self.failed.store(false, Ordering::SeqCst);
        self.window.interrupt_status().store(0, Ordering::SeqCst);
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    pub(super) fn restore(&self, needs_reset: bool, interrupt_status: u32, generation: u32) {
        self.failed.store(needs_reset, Ordering::SeqCst);
        self.window.interrupt_status().store(interrupt_status, Ordering::SeqCst);
        self.window.generation().store(generation, Ordering::SeqCst);
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no panic while locked").clone()
    }

    /// Signals the driver of a device with so many queues again: an edge may have been lost.
    pub(super) fn raise_again(&self, queues: usize) {
        let status = self.window.interrupt_status().load(Ordering::SeqCst);
        if status & VIRTIO_MMIO_INT_VRING != 0 {
            (0..queues as u16).for_each(|index| self.irq.raise(Event::Queue(index)));
        }
        if status & VIRTIO_MMIO_INT_CONFIG != 0 {
            self.irq.raise(Event::Config);
        }
    }

    fn raise(&self, event: Event) {
        let bit = match event {
            Event::Queue(_) => VIRTIO_MMIO_INT_VRING,
            Event::Config => VIRTIO_MMIO_INT_CONFIG,
        };
        self.window.interrupt_status().fetch_or(bit, Ordering::SeqCst);
        self.irq.raise(event);
    }
}

/// The interrupt of one activation. A handler may leave clones of it behind in
/// threads of its own; after a reset they are dead.
#[derive(Clone)]
pub(super) struct Line {
    shared: Arc<Shared>,
    epoch: u32,
}

impl Line {
    fn live(&self) -> bool {
        self.shared.epoch.load(Ordering::Acquire) == self.epoch
    }

    /// The configuration space, or the status, is another one now.
    pub(super) fn config(&self) {
        if self.live() {
            self.shared.raise(Event::Config);
        }
    }

    /// The device cannot go on (section 2.1.1, DEVICE_NEEDS_RESET).
    pub(super) fn fail(&self, message: String) {
        if self.live() {
            if let Some(watcher) = self.shared.watcher.get() {
                watcher(&message);
            }
            *self.shared.failure.lock().expect("no panic while locked") = Some(message);
            self.shared.failed.store(true, Ordering::SeqCst);
            self.shared.window.add_needs_reset();
            self.config();
        }
    }
}

impl Interrupt for Line {
    fn queue(&self, index: u16) {
        if self.live() {
            self.shared.raise(Event::Queue(index));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::testing::wiring;

    #[test]
    fn a_line_dies_with_its_activation() {
        let shared = Arc::new(Shared::new(wiring().0));
        let old = shared.begin();
        old.queue(0);
        assert_eq!(shared.window.interrupt_status().load(Ordering::SeqCst), 1);
        shared.reset();
        old.queue(0);
        old.fail("late".into());
        assert_eq!(shared.window.interrupt_status().load(Ordering::SeqCst), 0);
        let new = shared.begin();
        old.config();
        assert_eq!(shared.window.interrupt_status().load(Ordering::SeqCst), 0);
        new.config();
        assert_eq!(shared.window.interrupt_status().load(Ordering::SeqCst), 2);
        assert!(!shared.needs_reset());
        new.fail("now".into());
        assert!(shared.needs_reset());
    }
}
