//! State of the machine outside its vCPUs and devices.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, refused};

/// Interrupt controllers and the paravirtual clock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    /// 8259 master, 8259 slave, IOAPIC: the bytes of `kvm_irqchip.chip`.
    pub irqchips: Vec<(u32, Vec<u8>)>,
    /// kvm-clock, nanoseconds.
    pub clock: u64,
}

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
/// sizeof(kvm_irqchip.chip): the union's `dummy` member.
const CHIP_BYTES: usize = 512;

impl Vm {
    /// The state now; the vCPUs must be paused.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(&self) -> Result<VmState, KvmError> {
        let mut irqchips = Vec::new();
        for chip_id in CHIPS {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(refused("KVM_GET_IRQCHIP"))?;
            #[allow(unsafe_code)]
            // SAFETY: `dummy` spans the union, which was zeroed and then filled by
            // KVM: every byte is initialised, and any byte is a valid char.
            let bytes = unsafe { chip.chip.dummy };
            irqchips.push((chip_id, bytes.iter().map(|byte| *byte as u8).collect()));
        }
        let clock = self.fd.get_clock().map_err(refused("KVM_GET_CLOCK"))?.clock;
        Ok(VmState { irqchips, clock })
    }

    /// Takes back what `save` gave.
    ///
    /// # Errors
    /// When KVM refuses it.
    pub fn restore(&self, state: &VmState) -> Result<(), KvmError> {
        for (chip_id, bytes) in &state.irqchips {
            let mut chip = kvm_irqchip { chip_id: *chip_id, ..Default::default() };
            let mut dummy = [0; CHIP_BYTES];
            for (to, from) in dummy.iter_mut().zip(bytes) {
                *to = *from as std::ffi::c_char;
            }
            chip.chip.dummy = dummy;
            self.fd.set_irqchip(&chip).map_err(refused("KVM_SET_IRQCHIP"))?;
        }
        let clock = kvm_clock_data { clock: state.clock, ..Default::default() };
        self.fd.set_clock(&clock).map_err(refused("KVM_SET_CLOCK"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_round_trips_through_bytes() {
        if crate::kvm::open().is_err() {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        }
        let memory = crate::memory::allocate(32).unwrap();
        let one = Vm::new(super::super::open().unwrap(), &memory).unwrap();
        let other = Vm::new(super::super::open().unwrap(), &memory).unwrap();
        one.fd.set_irq_line(7, true).unwrap();
        let saved = one.save().unwrap();
        let bytes = postcard::to_stdvec(&saved).unwrap();
        other.restore(&postcard::from_bytes(&bytes).unwrap()).unwrap();
        let again = other.save().unwrap();
        assert_eq!(saved.irqchips, again.irqchips);
        assert!(again.clock >= saved.clock);
    }
}
