//! The registers of a device as pure logic: what the driver wrote, and what follows from it.
//! They are named by their offsets in virtio-mmio (virtio 1.2, section 4.2.2); those of
//! virtio-pci are the same in another place. Nothing here touches memory, descriptors or
//! threads.
//!
//! ```text
//! Status (section 3.1.1), one step at a time; all else is ignored:
//!
//!   0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK      + FAILED, any time
//!        |<-------------- write 0: reset -------------->|
//!
//! driver features: writable from DRIVER to FEATURES_OK
//! queues:          writable from FEATURES_OK to DRIVER_OK, each until it is ready
//! ```

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_mmio as offset;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::devices::virtio::device::SavedQueue;

/// Features of every device behind this transport.
pub const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Interrupts and kicks are suppressed by ring index (section 2.7.10).
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Registers that the driver reads and that follow from what it wrote, but for Status.
pub(super) const READ: [u32; 7] = [
    offset::VIRTIO_MMIO_DEVICE_FEATURES,
    offset::VIRTIO_MMIO_QUEUE_NUM_MAX,
    offset::VIRTIO_MMIO_QUEUE_READY,
    offset::VIRTIO_MMIO_SHM_LEN_LOW,
    offset::VIRTIO_MMIO_SHM_LEN_HIGH,
    offset::VIRTIO_MMIO_SHM_BASE_LOW,
    offset::VIRTIO_MMIO_SHM_BASE_HIGH,
];

/// What the driver configured for one queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// QueueNumMax.
    pub max_size: u16,
    /// QueueNum, as written; valid when it is a power of two up to `max_size`.
    pub size: u32,
    /// QueueReady.
    pub ready: bool,
    /// QueueDesc: the descriptor table.
    pub desc_table: u64,
    /// QueueDriver: the available ring.
    pub avail_ring: u64,
    /// QueueDevice: the used ring.
    pub used_ring: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> QueueRegisters {
        let size = max_size.into();
        QueueRegisters { max_size, size, ready: false, desc_table: 0, avail_ring: 0, used_ring: 0 }
    }

    /// The queue as it stands when the device starts.
    pub(super) fn initial(&self, event_idx: bool) -> SavedQueue {
        SavedQueue {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx,
            // A size that does not fit is none; `Queue` refuses it.
            size: self.size.try_into().unwrap_or(0),
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        }
    }
}

/// What the transport must do after a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The driver is ready: start the device.
    Activate,
    /// The driver gave up: stop the device.
    Stop,
    /// Stop the device and forget everything.
    Reset,
}

/// The driver's half of the register file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// Features that the device offers.
    pub offered: u64,
    /// Features that the driver wrote.
    pub accepted: u64,
    /// Status, without NEEDS_RESET, which the device sets.
    pub status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) queue_sel: u32,
    /// Every queue of the device.
    pub queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(offered: u64, queue_sizes: &[u16]) -> Registers {
        Registers {
            offered,
            accepted: 0,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: queue_sizes.iter().copied().map(QueueRegisters::new).collect(),
        }
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Registers::new(self.offered, &sizes);
    }

    /// The driver set DRIVER_OK and has not given up.
    pub(super) fn running(&self) -> bool {
        self.status & (DRIVER_OK | FAILED) == DRIVER_OK
    }

    /// The driver may write the configuration space.
    pub(super) fn driven(&self) -> bool {
        self.status & (DRIVER | FAILED) == DRIVER
    }

    /// Whether a driver can have brought the registers to where they are.
    pub(super) fn plausible(&self) -> bool {
        let steps = [
            0,
            ACKNOWLEDGE,
            ACKNOWLEDGE | DRIVER,
            ACKNOWLEDGE | DRIVER | FEATURES_OK,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        ];
        steps.contains(&(self.status & !FAILED))
            && (self.status & FEATURES_OK == 0 || self.acceptable())
    }

    /// What the driver reads at one of [`READ`].
    pub(super) fn read(&self, register: u32) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match register {
            offset::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            offset::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size.into()),
            offset::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            // No device has a shared memory region (section 4.2.2.1): length
            // and base of one that does not exist are -1.
            offset::VIRTIO_MMIO_SHM_LEN_LOW
            | offset::VIRTIO_MMIO_SHM_LEN_HIGH
            | offset::VIRTIO_MMIO_SHM_BASE_LOW
            | offset::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    /// Writes a register other than those which the transport handles itself.
    pub(super) fn write(&mut self, register: u32, value: u32) -> Effect {
        match register {
            offset::VIRTIO_MMIO_STATUS => return self.write_status(value),
            offset::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            offset::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            offset::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            offset::VIRTIO_MMIO_DRIVER_FEATURES if self.status == ACKNOWLEDGE | DRIVER => {
                set_half(&mut self.accepted, self.driver_features_sel, value);
            }
            _ if self.status == ACKNOWLEDGE | DRIVER | FEATURES_OK => {
                self.write_queue(register, value);
            }
            // Also QueueReady = 0 on a running device: without
            // VIRTIO_F_RING_RESET a queue stops by a reset of the device.
            _ => {}
        }
        Effect::None
    }

    fn write_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else { return };
        if register == offset::VIRTIO_MMIO_QUEUE_READY {
            queue.ready = value & 1 == 1;
            return;
        }
        if queue.ready {
            return;
        }
        match register {
            offset::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            offset::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.desc_table, 0, value),
            offset::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.desc_table, 1, value),
            offset::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.avail_ring, 0, value),
            offset::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.avail_ring, 1, value),
            offset::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used_ring, 0, value),
            offset::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used_ring, 1, value),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let old = self.status;
        if old & FAILED != 0 {
            return Effect::None;
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return Effect::Stop;
        }
        let value = value & !NEEDS_RESET;
        if value & old != old {
            // The driver must not clear a bit (section 2.1.1).
            return Effect::None;
        }
        let next = match (old, value & !old) {
            (0, ACKNOWLEDGE) => ACKNOWLEDGE,
            (ACKNOWLEDGE, DRIVER) => DRIVER,
            (_, FEATURES_OK) if old == ACKNOWLEDGE | DRIVER && self.acceptable() => FEATURES_OK,
            (_, DRIVER_OK) if old == ACKNOWLEDGE | DRIVER | FEATURES_OK => DRIVER_OK,
            _ => return Effect::None,
        };
        self.status |= next;
        if next == DRIVER_OK { Effect::Activate } else { Effect::None }
    }

    /// Only what was offered, and no legacy driver (section 6.1).
    fn acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0
    }
}

pub(super) fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(target: &mut u64, select: u32, value: u32) {
    match select {
        0 => *target = *target & !0xffff_ffff | u64::from(value),
        1 => *target = *target & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [u32; 5] = [0, 1, 3, 11, 15];

    fn registers(status: u32) -> Registers {
        let mut registers = Registers::new(TRANSPORT_FEATURES | 1, &[256]);
        registers.accepted = TRANSPORT_FEATURES;
        registers.status = status;
        registers
    }

    /// Every status that a driver may write in every state.
    #[test]
    fn the_whole_status_table() {
        for (step, &old) in STEPS.iter().enumerate() {
            for value in 0..=0xff {
                let mut registers = registers(old);
                let effect = registers.write(offset::VIRTIO_MMIO_STATUS, value);
                let expected = if value == 0 {
                    (old, Effect::Reset)
                } else if value & FAILED != 0 {
                    (old | FAILED, Effect::Stop)
                } else if step < 4 && value & !NEEDS_RESET == STEPS[step + 1] {
                    let effect = if step == 3 { Effect::Activate } else { Effect::None };
                    (STEPS[step + 1], effect)
                } else {
                    (old, Effect::None)
                };
                assert_eq!((registers.status, effect), expected, "{old} <- {value}");
                assert!(registers.plausible());
            }
        }
        let mut failed = registers(15 | FAILED);
        assert_eq!(failed.write(offset::VIRTIO_MMIO_STATUS, 15), Effect::None);
        assert_eq!(failed.write(offset::VIRTIO_MMIO_STATUS, 0), Effect::Reset);
    }

    #[test]
    fn bad_features_are_not_ok() {
        for accepted in [0, 1, TRANSPORT_FEATURES | 2, TRANSPORT_FEATURES & !(1 << 32)] {
            let mut registers = registers(3);
            registers.accepted = accepted;
            registers.write(offset::VIRTIO_MMIO_STATUS, 11);
            assert_eq!(registers.status, 3, "{accepted:#x}");
        }
    }

    #[test]
    fn features_are_written_in_halves_and_only_in_time() {
        let mut registers = registers(3);
        registers.accepted = 0;
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES, 0xffff);
        assert_eq!(registers.accepted, 1 << 32 | 1);
        registers.write(offset::VIRTIO_MMIO_STATUS, 11);
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        registers.write(offset::VIRTIO_MMIO_DRIVER_FEATURES, 0);
        assert_eq!(registers.accepted, 1 << 32 | 1, "frozen by FEATURES_OK");
    }

    #[test]
    fn a_ready_queue_is_frozen() {
        let mut registers = registers(11);
        registers.write(offset::VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
        registers.write(offset::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
        registers.write(offset::VIRTIO_MMIO_QUEUE_READY, 1);
        registers.write(offset::VIRTIO_MMIO_QUEUE_NUM, 8);
        assert_eq!(registers.queues[0].desc_table, 0x1_0000_1000);
        assert_eq!(registers.queues[0].size, 256);
        registers.write(offset::VIRTIO_MMIO_QUEUE_READY, 0);
        registers.write(offset::VIRTIO_MMIO_QUEUE_NUM, 0x1_0008);
        assert_eq!(registers.queues[0].initial(false).size, 0, "never truncated");
        registers.write(offset::VIRTIO_MMIO_QUEUE_SEL, 1);
        registers.write(offset::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(registers.read(offset::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert!(!registers.queues[0].ready);
    }
}
