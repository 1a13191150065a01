//! An interrupt of the machine.

use std::sync::{Arc, Mutex};

use super::Vm;
use crate::devices::virtio::transport::Irq;

/// A pin of the IOAPIC, which the guest has as edge-triggered.
///
/// No irqfd: KVM hands an interrupt of the IOAPIC that comes by one to a kernel thread
/// (virt/kvm/eventfd.c, irqfd_wakeup: only an MSI is sent at once), and a change of threads
/// costs more than the two ioctls by which the caller does it itself.
pub struct IrqPin {
    vm: Arc<Vm>,
    pin: u32,
    /// An edge between those of another thread's would be none.
    turn: Mutex<()>,
}

impl IrqPin {
    /// Pin `pin` of `vm`.
    pub fn new(vm: Arc<Vm>, pin: u32) -> IrqPin {
        IrqPin { vm, pin, turn: Mutex::default() }
    }
}

impl Irq for IrqPin {
    fn raise(&self) {
        let _turn = self.turn.lock().expect("no panic while locked");
        for level in [true, false] {
            // Fails for a pin that there is not, of which none is made.
            let _ = self.vm.fd.set_irq_line(self.pin, level);
        }
    }
}
