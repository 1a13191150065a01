//! Interrupts of the machine, and notifications of queues by ports.

use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_msi;
use kvm_ioctls::IoEventAddress;
use vmm_sys_util::eventfd::EventFd;

use super::Vm;
use crate::devices::pci::MessageSink;
use crate::devices::virtio::device::Event;
use crate::devices::virtio::transport::{Doorbells, Irq};

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
    fn raise(&self, _event: Event) {
        let _turn = self.turn.lock().expect("no panic while locked");
        for level in [true, false] {
            // Fails for a pin that there is not, of which none is made.
            let _ = self.vm.fd.set_irq_line(self.pin, level);
        }
    }
}

impl MessageSink for Vm {
    fn send(&self, address: u64, data: u32) {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // Fails where there is no interrupt controller at the address.
        let _ = self.fd.signal_msi(message);
    }
}

impl Doorbells for Vm {
    fn connect(&self, kick: &EventFd, port: u16, queue: u16) {
        let _ = self.fd.register_ioevent(kick, &IoEventAddress::Pio(port.into()), queue);
    }

    fn disconnect(&self, kick: &EventFd, port: u16, queue: u16) {
        let _ = self.fd.unregister_ioevent(kick, &IoEventAddress::Pio(port.into()), queue);
    }
}
