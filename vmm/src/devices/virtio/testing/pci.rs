//! The driver of a function of the PCI bus.

use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{BUFFERS, LOOP, Ring, WRITE, memory};
use crate::devices::pci::{Function, MessageSink};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::{Doorbells, PciTransport};
use crate::memory::GuestRam;

/// BAR with the registers.
pub const REGISTERS: usize = 1;
/// BAR with the notification.
pub const NOTIFY: usize = 0;
/// Offset of the MSI-X table.
pub const TABLE: u64 = 0x1000;
/// Offset of Message Control in the configuration space.
const CONTROL: usize = 0x42;

/// What a function asked of its machine.
#[derive(Default)]
pub struct Board {
    /// Address and data of each message.
    pub messages: Mutex<Vec<(u64, u32)>>,
    /// Port and queue of what is connected.
    pub doorbells: Mutex<Vec<(u16, u16)>>,
}

impl Board {
    /// Data of the messages since the last call.
    pub fn taken(&self) -> Vec<u32> {
        self.messages.lock().expect("no panic").drain(..).map(|(_, data)| data).collect()
    }
}

impl MessageSink for Board {
    fn send(&self, address: u64, data: u32) {
        self.messages.lock().expect("no panic").push((address, data));
    }
}

impl Doorbells for Board {
    fn connect(&self, _kick: &EventFd, port: u16, queue: u16) {
        self.doorbells.lock().expect("no panic").push((port, queue));
    }

    fn disconnect(&self, _kick: &EventFd, port: u16, queue: u16) {
        let mut all = self.doorbells.lock().expect("no panic");
        all.retain(|bell| *bell != (port, queue));
    }
}

/// A function on a loop that all tests share, and what it asks for.
pub fn function(
    device: impl VirtioDevice + 'static,
    memory: &GuestRam,
) -> (PciTransport, Arc<Board>) {
    let board = Arc::<Board>::default();
    let (device, memory) = (Box::new(device), memory.clone().into());
    let function = PciTransport::new(device, memory, LOOP.clone(), board.clone(), board.clone());
    (function.expect("descriptors"), board)
}

/// See the module.
pub struct PciDriver<'a>(pub &'a PciTransport);

impl PciDriver<'_> {
    /// Reads a word of the configuration space.
    pub fn config(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.0.read_config(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Reads a register of up to eight bytes.
    pub fn read(&self, offset: u64, len: usize) -> u64 {
        let mut word = [0; 8];
        self.0.read(REGISTERS, offset, &mut word[..len]);
        u64::from_le_bytes(word)
    }

    /// Writes a register of up to eight bytes.
    pub fn write(&self, offset: u64, len: usize, value: u64) {
        self.0.write(REGISTERS, offset, &value.to_le_bytes()[..len]);
    }

    /// device_status.
    pub fn status(&self) -> u64 {
        self.read(0x14, 1)
    }

    /// Gives the function its addresses, and each event a message of its own: the queue's
    /// index as data, and behind them that of the configuration.
    pub fn enable(&self) {
        self.0.write_config(0x10, &0x1000u32.to_le_bytes());
        self.0.write_config(0x14, &0xc000_0000u32.to_le_bytes());
        self.0.write_config(4, &7u16.to_le_bytes());
        self.0.write_config(CONTROL, &(1u16 << 15).to_le_bytes());
        for vector in 0..=self.read(0x12, 2) {
            self.write(TABLE + 16 * vector, 4, 0xfee0_0000);
            self.write(TABLE + 16 * vector + 8, 4, vector);
            self.write(TABLE + 16 * vector + 12, 4, 0);
        }
    }

    /// From reset to DRIVER_OK, with all features, messages of all events, and one fresh ring
    /// of 16 entries for each of these queues.
    pub fn start(&self, memory: &GuestRam, indices: &[u16]) -> Vec<Ring> {
        for status in [0, 1, 3] {
            self.write(0x14, 1, status);
        }
        for half in [0, 1] {
            self.write(0x00, 4, half);
            self.write(0x08, 4, half);
            self.write(0x0c, 4, self.read(0x04, 4));
        }
        self.write(0x14, 1, 11);
        assert_eq!(self.status(), 11, "FEATURES_OK");
        self.write(0x10, 2, self.read(0x12, 2));
        let ring = |(slot, &index): (usize, &u16)| {
            let ring = Ring::new(memory, slot as u64, 16);
            memory.write_slice(&[0; 0x4000], GuestAddress(ring.base)).expect("in memory");
            self.write(0x16, 2, index.into());
            assert!(self.read(0x18, 2) >= 16 && self.read(0x1c, 2) == 0);
            self.write(0x18, 2, 16);
            self.write(0x1a, 2, index.into());
            assert_eq!(self.read(0x1a, 2), u64::from(index));
            self.write(0x20, 8, ring.base);
            self.write(0x28, 8, ring.avail());
            // In halves, as Linux does it.
            self.write(0x30, 4, ring.used_ring() & 0xffff_ffff);
            self.write(0x34, 4, ring.used_ring() >> 32);
            self.write(0x1c, 2, 1);
            ring
        };
        let rings = indices.iter().enumerate().map(ring).collect();
        self.write(0x14, 1, 15);
        rings
    }

    /// Notifies the device of a queue.
    pub fn kick(&self, queue: u16) {
        self.0.write(NOTIFY, 0, &queue.to_le_bytes());
    }
}

/// Random reads and writes of a function, then a driver that must get its due.
pub fn hostile_function(data: &[u8]) {
    let memory = memory();
    let (function, board) = function(Rng, &memory);
    let driver = PciDriver(&function);
    for word in data.as_chunks::<12>().0 {
        let [what, len, low, high, value @ ..] = *word;
        let place = u16::from_le_bytes([low, high]);
        let len = usize::from(len % 9);
        // As the bus has it: an access lies within its BAR.
        let bar = usize::from(what >> 7);
        let bytes = if bar == NOTIFY { 4 } else { 0x4000 };
        let at = u64::from(place) % bytes;
        let inside = at + len as u64 <= bytes;
        match what % 8 {
            0 if inside => function.read(bar, at, &mut [0; 8][..len]),
            1 if inside => function.write(bar, at, &value[..len]),
            2 => function.read_config(usize::from(place) % 260, &mut [0; 4][..len.min(4)]),
            3 => function.write_config(usize::from(place) % 260, &value[..len.min(4)]),
            4 => driver.enable(),
            5 => driver.write(0x14, 1, u64::from([1, 3, 11, 15, 0, 128, 64, value[0]][len % 8])),
            6 => driver.write(u64::from(low & 0x3f), 1 << (high % 4), u64::from_le_bytes(value)),
            _ => driver.kick(place),
        }
        assert!([0, 1, 3, 11, 15].contains(&(driver.status() & !0xc0)));
        assert!(board.doorbells.lock().expect("no panic").len() <= 1, "one queue, one port");
    }
    driver.enable();
    let mut rings = driver.start(&memory, &[0]);
    board.taken();
    rings[0].chain(&[(BUFFERS, 32, WRITE)]);
    driver.kick(0);
    assert_eq!(rings[0].wait(1), [32]);
    assert_eq!(driver.status(), 15);
    super::settle();
    assert!(board.taken().contains(&0), "and it is told");
    function.retire();
    assert!(board.doorbells.lock().expect("no panic").is_empty());
}
