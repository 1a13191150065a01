//! virtio over PCI (virtio 1.2, section 4.1): a function whose registers are those of a
//! [`Transport`] in another place.
//!
//! ```text
//! BAR 0, ports:  notification, a write of the queue's index --ioeventfd--> the queue's kick
//! BAR 1, memory: 0x0000 common configuration   0x0100 ISR status   0x0200 the device's own
//!                0x1000 MSI-X table            0x3000 what of it is pending
//! ```
//!
//! What it is for: a write to a port comes out of the guest with all that is needed to know
//! what it is, where one to memory has to be found and decoded in the guest's code first; and
//! a message needs no acknowledgement, and one call to be sent. There is no INTx: a driver
//! without MSI-X gets no interrupts. A function that is no bus master sends no messages, but
//! goes on with its queues: what stops them is a reset.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::bindings::virtio_mmio as register;
use vmm_sys_util::eventfd::EventFd;

use super::registers::half;
use super::{CONFIG, Irq, Transport, Windows, Wiring};
use crate::devices::bus::BusDevice;
use crate::devices::pci::{Bar, ConfigSpace, Function, Identity, MessageSink, Msix, Space};
use crate::devices::virtio::device::{Event, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::memory::GrowingRam;

/// Vendor of all virtio devices, and the first device (section 4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// Revision of a device that knows no driver from before virtio 1.
const REVISION: u8 = 1;
/// Class of a network interface, and of a device that is none of PCI's classes.
const NETWORK: u32 = 0x02_0000;
const OTHER: u32 = 0xff_0000;
/// Device id of a network interface.
const NET: u32 = 1;

/// Numbers and sizes of the BARs.
const NOTIFY: usize = 0;
const NOTIFY_BYTES: u32 = 4;
const REGISTERS: usize = 1;
const REGISTERS_BYTES: u32 = 0x4000;

/// What is where in the second.
const COMMON: u64 = 0;
const COMMON_BYTES: u64 = 56;
const ISR: u64 = 0x100;
const DEVICE: u64 = 0x200;
const TABLE: u64 = 0x1000;
const PENDING: u64 = 0x3000;
/// Bytes of a device's own configuration.
const DEVICE_BYTES: u64 = TABLE - DEVICE;

/// Capabilities (PCI Local Bus Specification 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 0x09;
const MSIX: u8 = 0x11;
/// Offset of the command register, and of Message Control behind the capability's start.
const COMMAND: usize = 4;
const MESSAGE_CONTROL: usize = 2;
/// Enable and Function Mask, of a word.
const CONTROL_WRITABLE: [u8; 2] = [0, 0xc0];
const FUNCTION_MASK: u16 = 1 << 14;
/// Bus Master of the command register.
const BUS_MASTER: u16 = 1 << 2;

/// How often a driver may move notifications before they come by exits for good: each time KVM
/// waits for all vCPUs, and Linux does so a few times in its life.
const MOVES: u32 = 256;

/// No vector for an event.
const NO_VECTOR: u16 = abi::VIRTIO_MSI_NO_VECTOR;

/// include/uapi/linux/virtio_pci.h of Linux, sections 4.1.4 and 4.1.4.3: what the crate with
/// virtio's numbers does not have.
mod abi {
    pub const VIRTIO_MSI_NO_VECTOR: u16 = 0xffff;

    pub const VIRTIO_PCI_CAP_COMMON_CFG: u8 = 1;
    pub const VIRTIO_PCI_CAP_NOTIFY_CFG: u8 = 2;
    pub const VIRTIO_PCI_CAP_ISR_CFG: u8 = 3;
    pub const VIRTIO_PCI_CAP_DEVICE_CFG: u8 = 4;
    pub const VIRTIO_PCI_CAP_PCI_CFG: u8 = 5;
    /// Offsets in a capability.
    pub const VIRTIO_PCI_CAP_BAR: usize = 4;
    pub const VIRTIO_PCI_CAP_DATA: usize = 16;

    pub const VIRTIO_PCI_COMMON_DFSELECT: u32 = 0x00;
    pub const VIRTIO_PCI_COMMON_DF: u32 = 0x04;
    pub const VIRTIO_PCI_COMMON_GFSELECT: u32 = 0x08;
    pub const VIRTIO_PCI_COMMON_GF: u32 = 0x0c;
    pub const VIRTIO_PCI_COMMON_MSIX: u32 = 0x10;
    pub const VIRTIO_PCI_COMMON_NUMQ: u32 = 0x12;
    pub const VIRTIO_PCI_COMMON_STATUS: u32 = 0x14;
    pub const VIRTIO_PCI_COMMON_CFGGENERATION: u32 = 0x15;
    pub const VIRTIO_PCI_COMMON_Q_SELECT: u32 = 0x16;
    pub const VIRTIO_PCI_COMMON_Q_SIZE: u32 = 0x18;
    pub const VIRTIO_PCI_COMMON_Q_MSIX: u32 = 0x1a;
    pub const VIRTIO_PCI_COMMON_Q_ENABLE: u32 = 0x1c;
    pub const VIRTIO_PCI_COMMON_Q_DESCLO: u32 = 0x20;
    pub const VIRTIO_PCI_COMMON_Q_DESCHI: u32 = 0x24;
    pub const VIRTIO_PCI_COMMON_Q_AVAILLO: u32 = 0x28;
    pub const VIRTIO_PCI_COMMON_Q_AVAILHI: u32 = 0x2c;
    pub const VIRTIO_PCI_COMMON_Q_USEDLO: u32 = 0x30;
    pub const VIRTIO_PCI_COMMON_Q_USEDHI: u32 = 0x34;
}

/// Has writes to ports signal kicks. A failure costs time only: a write that KVM does not know
/// comes to the function.
pub trait Doorbells: Send + Sync {
    /// A 16-bit write of `queue` to `port` signals `kick` from now on.
    fn connect(&self, kick: &EventFd, port: u16, queue: u16);
    /// Takes that back.
    fn disconnect(&self, kick: &EventFd, port: u16, queue: u16);
}

/// Which message tells of what.
struct Messages {
    msix: Msix,
    /// Vector of each queue, and behind them that of the configuration.
    vectors: Vec<AtomicU16>,
}

impl Messages {
    fn new(queues: usize, sink: Arc<dyn MessageSink>) -> Messages {
        let vectors: Vec<_> = (0..=queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        Messages { msix: Msix::new(vectors.len() as u16, sink), vectors }
    }

    fn place(&self, event: Event) -> Option<&AtomicU16> {
        let (config, queues) = self.vectors.split_last()?;
        match event {
            Event::Config => Some(config),
            Event::Queue(index) => queues.get(usize::from(index)),
        }
    }

    fn vector(&self, event: Event) -> u16 {
        self.place(event).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// One that there is not is none (section 4.1.5.1.2.1).
    fn set_vector(&self, event: Event, vector: u16) {
        let known = usize::from(vector) < self.vectors.len();
        if let Some(place) = self.place(event) {
            place.store(if known { vector } else { NO_VECTOR }, Ordering::SeqCst);
        }
    }

    fn forget(&self) {
        self.vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::SeqCst));
    }
}

impl Irq for Messages {
    fn raise(&self, event: Event) {
        self.msix.raise(self.vector(event));
    }
}

/// A device as a function of the bus.
pub struct PciTransport {
    transport: Transport,
    messages: Arc<Messages>,
    doorbells: Arc<dyn Doorbells>,
    config: Mutex<ConfigSpace>,
    /// How often notifications were connected.
    moves: AtomicU32,
    /// Where the capability of MSI-X is, and the one that is a way to the registers.
    msix: usize,
    access: usize,
}

impl PciTransport {
    /// Makes `device`, whose handlers will live on `event_loop`, a function that tells its
    /// driver by messages to `sink`.
    ///
    /// # Errors
    /// As [`Transport::new`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GrowingRam,
        event_loop: Arc<EventLoop>,
        sink: Arc<dyn MessageSink>,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<PciTransport> {
        let messages = Arc::new(Messages::new(device.queue_sizes().len(), sink));
        // Nobody but this reads the window.
        let window = Windows::new(1)?.each().next().expect("there is one");
        let wiring = Wiring { window, irq: messages.clone() };
        let id = device.id();
        let transport = Transport::new(device, memory, event_loop, wiring)?;
        let who = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + id as u16,
            revision: REVISION,
            class: if id == NET { NETWORK } else { OTHER },
        };
        let mut config = ConfigSpace::new(
            who,
            &[
                Bar { space: Space::Io, bytes: NOTIFY_BYTES },
                Bar { space: Space::Memory, bytes: REGISTERS_BYTES },
            ],
        );
        let msix = config.add_capability(
            MSIX,
            &msix_body(messages.vectors.len() as u16),
            &CONTROL_WRITABLE,
        );
        let kinds = [
            (abi::VIRTIO_PCI_CAP_COMMON_CFG, REGISTERS, COMMON, COMMON_BYTES),
            (abi::VIRTIO_PCI_CAP_ISR_CFG, REGISTERS, ISR, 1),
            (abi::VIRTIO_PCI_CAP_DEVICE_CFG, REGISTERS, DEVICE, DEVICE_BYTES),
            // All queues at one port: behind it, a multiplier of zero.
            (abi::VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, 0, u64::from(NOTIFY_BYTES)),
        ];
        for (kind, bar, offset, bytes) in kinds {
            let further = kind == abi::VIRTIO_PCI_CAP_NOTIFY_CFG;
            let body = virtio_body(kind, bar, offset, bytes, further);
            config.add_capability(VENDOR_SPECIFIC, &body, &[]);
        }
        let body = virtio_body(abi::VIRTIO_PCI_CAP_PCI_CFG, 0, 0, 0, true);
        // The BAR, offset, length and data are the driver's.
        let writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 12]].concat();
        let access = config.add_capability(VENDOR_SPECIFIC, &body, &writable);
        let config = config.into();
        let moves = AtomicU32::new(0);
        Ok(PciTransport { transport, messages, doorbells, config, moves, msix, access })
    }

    /// The device's life.
    pub fn device(&self) -> &Transport {
        &self.transport
    }

    /// Stops the device for good: nothing changes guest memory, or interrupts, any more.
    pub fn retire(&self) {
        self.write_config(COMMAND, &[0; 2]);
        self.transport.retire();
    }

    /// What a driver reads of the common configuration (section 4.1.4.3).
    fn common(&self) -> [u8; COMMON_BYTES as usize] {
        let mut status = [0; 4];
        self.transport.read(u64::from(register::VIRTIO_MMIO_STATUS), &mut status);
        let mut generation = [0; 4];
        self.transport.read(u64::from(register::VIRTIO_MMIO_CONFIG_GENERATION), &mut generation);
        let queues = self.messages.vectors.len() - 1;
        let registers = self.transport.registers();
        let select = registers.queue_sel as u16;
        let queue = registers.queues.get(usize::from(select));
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |at: u32, bytes: &[u8]| {
            image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        };
        let select_driver = registers.driver_features_sel;
        put(abi::VIRTIO_PCI_COMMON_DFSELECT, &registers.device_features_sel.to_le_bytes());
        let offered = half(registers.offered, registers.device_features_sel);
        put(abi::VIRTIO_PCI_COMMON_DF, &offered.to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_GFSELECT, &select_driver.to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_GF, &half(registers.accepted, select_driver).to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_MSIX, &self.messages.vector(Event::Config).to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_NUMQ, &(queues as u16).to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_STATUS, &status[..1]);
        put(abi::VIRTIO_PCI_COMMON_CFGGENERATION, &generation[..1]);
        put(abi::VIRTIO_PCI_COMMON_Q_SELECT, &select.to_le_bytes());
        let vector = self.messages.vector(Event::Queue(select));
        put(abi::VIRTIO_PCI_COMMON_Q_MSIX, &vector.to_le_bytes());
        // One that there is not has no entries.
        let Some(queue) = queue else { return image };
        put(abi::VIRTIO_PCI_COMMON_Q_SIZE, &(queue.size as u16).to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_Q_ENABLE, &u16::from(queue.ready).to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_Q_DESCLO, &queue.desc_table.to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_Q_AVAILLO, &queue.avail_ring.to_le_bytes());
        put(abi::VIRTIO_PCI_COMMON_Q_USEDLO, &queue.used_ring.to_le_bytes());
        image
    }

    /// A driver writes to it: each register by itself and whole.
    fn write_common(&self, offset: u32, data: &[u8]) {
        let write = |register, value| self.transport.write_register(register, value);
        match *data {
            [value] if offset == abi::VIRTIO_PCI_COMMON_STATUS => {
                if value == 0 {
                    self.messages.forget();
                }
                write(register::VIRTIO_MMIO_STATUS, value.into());
            }
            [low, high] => {
                let value = u16::from_le_bytes([low, high]);
                let selected = || Event::Queue(self.transport.registers().queue_sel as u16);
                match offset {
                    abi::VIRTIO_PCI_COMMON_MSIX => self.messages.set_vector(Event::Config, value),
                    abi::VIRTIO_PCI_COMMON_Q_MSIX => self.messages.set_vector(selected(), value),
                    abi::VIRTIO_PCI_COMMON_Q_SELECT => {
                        write(register::VIRTIO_MMIO_QUEUE_SEL, value.into());
                    }
                    abi::VIRTIO_PCI_COMMON_Q_SIZE => {
                        write(register::VIRTIO_MMIO_QUEUE_NUM, value.into());
                    }
                    abi::VIRTIO_PCI_COMMON_Q_ENABLE => {
                        write(register::VIRTIO_MMIO_QUEUE_READY, value.into());
                    }
                    _ => {}
                }
            }
            [a, b, c, d] => {
                let register = match offset {
                    abi::VIRTIO_PCI_COMMON_DFSELECT => register::VIRTIO_MMIO_DEVICE_FEATURES_SEL,
                    abi::VIRTIO_PCI_COMMON_GFSELECT => register::VIRTIO_MMIO_DRIVER_FEATURES_SEL,
                    abi::VIRTIO_PCI_COMMON_GF => register::VIRTIO_MMIO_DRIVER_FEATURES,
                    abi::VIRTIO_PCI_COMMON_Q_DESCLO => register::VIRTIO_MMIO_QUEUE_DESC_LOW,
                    abi::VIRTIO_PCI_COMMON_Q_DESCHI => register::VIRTIO_MMIO_QUEUE_DESC_HIGH,
                    abi::VIRTIO_PCI_COMMON_Q_AVAILLO => register::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                    abi::VIRTIO_PCI_COMMON_Q_AVAILHI => register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                    abi::VIRTIO_PCI_COMMON_Q_USEDLO => register::VIRTIO_MMIO_QUEUE_USED_LOW,
                    abi::VIRTIO_PCI_COMMON_Q_USEDHI => register::VIRTIO_MMIO_QUEUE_USED_HIGH,
                    _ => return,
                };
                write(register, u32::from_le_bytes([a, b, c, d]));
            }
            // The addresses of a queue, in halves or whole.
            [ref low @ .., _, _, _, _] if low.len() == 4 => {
                self.write_common(offset, low);
                self.write_common(offset + 4, &data[4..]);
            }
            _ => {}
        }
    }

    /// What the driver asked the other way for: BAR, offset and length of registers that it
    /// reads and writes through the configuration space (section 4.1.4.9); none where they are
    /// not.
    fn accessed(&self) -> Option<(usize, u64, usize)> {
        let mut fields = [0; 12];
        self.lock().read(self.access + abi::VIRTIO_PCI_CAP_BAR, &mut fields);
        let word = |at: usize| {
            u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]])
        };
        let (bar, offset, len) = (usize::from(fields[0]), word(4), word(8));
        let bytes = match bar {
            NOTIFY => NOTIFY_BYTES,
            REGISTERS => REGISTERS_BYTES,
            _ => return None,
        };
        let whole = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        (whole && offset.checked_add(len)? <= bytes).then_some((bar, offset.into(), len as usize))
    }

    /// Where the data of that are in the configuration space.
    fn data(&self) -> usize {
        self.access + abi::VIRTIO_PCI_CAP_DATA
    }

    fn connect(&self, port: u16) {
        if self.moves.fetch_add(1, Ordering::Relaxed) >= MOVES {
            return;
        }
        for (kick, queue) in self.transport.kicks().iter().zip(0..) {
            self.doorbells.connect(kick, port, queue);
        }
    }

    /// Also of what was not connected, which KVM refuses.
    fn disconnect(&self, port: u16) {
        for (kick, queue) in self.transport.kicks().iter().zip(0..) {
            self.doorbells.disconnect(kick, port, queue);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().expect("no panic while locked")
    }
}

/// Number of vectors, and where the table and the pending bits are.
fn msix_body(vectors: u16) -> Vec<u8> {
    let place = |offset: u64| (offset as u32 | REGISTERS as u32).to_le_bytes();
    [&(vectors - 1).to_le_bytes()[..], &place(TABLE), &place(PENDING)].concat()
}

/// `struct virtio_pci_cap` behind its first two bytes, and a word more for some.
fn virtio_body(kind: u8, bar: usize, offset: u64, bytes: u64, further: bool) -> Vec<u8> {
    let mut body = vec![if further { 20 } else { 16 }, kind, bar as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((bytes as u32).to_le_bytes());
    body.resize(if further { 18 } else { 14 }, 0);
    body
}

impl Function for PciTransport {
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.lock().read(offset, data);
        let at = self.data();
        if offset == at
            && let Some((bar, register, len)) = self.accessed()
            && let Some(data) = data.get_mut(..len)
        {
            self.read(bar, register, data);
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        {
            // Held until all follows what was written: two vCPUs may write at once.
            let mut config = self.lock();
            let port = |config: &ConfigSpace| u16::try_from(config.base(NOTIFY)?).ok();
            let before = port(&config);
            config.write(offset, data);
            let after = port(&config);
            if before != after {
                before.iter().for_each(|port| self.disconnect(*port));
                after.iter().for_each(|port| self.connect(*port));
            }
            let control = config.word(self.msix + MESSAGE_CONTROL);
            let master = config.word(COMMAND) & BUS_MASTER != 0;
            self.messages.msix.control(if master { control } else { control | FUNCTION_MASK });
        }
        if offset == self.data()
            && let Some((bar, register, len)) = self.accessed()
            && let Some(data) = data.get(..len)
        {
            self.write(bar, register, data);
        }
    }

    fn find(&self, space: Space, address: u64, len: usize) -> Option<(usize, u64)> {
        self.lock().find(space, address, len)
    }

    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let end = offset + data.len() as u64;
        match offset {
            _ if bar == NOTIFY => {}
            COMMON.. if end <= COMMON_BYTES => {
                data.copy_from_slice(&self.common()[offset as usize..end as usize]);
            }
            // Reading it acknowledges (section 4.1.4.5).
            ISR if end == ISR + 1 => data[0] = self.transport.take_interrupt_status() as u8,
            DEVICE.. if end <= DEVICE + DEVICE_BYTES => {
                self.transport.read(offset - DEVICE + CONFIG, data);
            }
            TABLE.. if end <= PENDING => self.messages.msix.read_table(offset - TABLE, data),
            PENDING.. => self.messages.msix.read_pending(offset - PENDING, data),
            _ => {}
        }
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        match offset {
            _ if bar == NOTIFY => {
                if let ([low, high], 0) = (data, offset) {
                    let queue = u16::from_le_bytes([*low, *high]);
                    self.transport.write_register(register::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
                }
            }
            COMMON.. if end <= COMMON_BYTES => self.write_common(offset as u32, data),
            DEVICE.. if end <= DEVICE + DEVICE_BYTES => {
                self.transport.write(offset - DEVICE + CONFIG, data);
            }
            TABLE.. if end <= PENDING => self.messages.msix.write_table(offset - TABLE, data),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
