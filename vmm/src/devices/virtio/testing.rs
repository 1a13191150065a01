//! A driver's side for tests, honest and hostile. Property tests and the fuzz
//! targets of `vmm/fuzz` call the same functions.

mod pci;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollFlags};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub use self::pci::{Board, PciDriver, TABLE, function, hostile_function};
use super::device::{Activation, ActiveQueue, Event, Interrupt, VirtioDevice};
use super::transport::{Irq, TRANSPORT_FEATURES, Transport, Windows, Wiring};
use crate::devices::bus::BusDevice;
use crate::event_loop::{EventLoop, Handler, HandlerError, Registration};
use crate::memory::GuestRam;

/// Bytes of each of the two regions of [`memory`].
pub const REGION: u64 = 1 << 20;
/// Start of the second region; between them lies a hole.
pub const HIGH: u64 = 4 << 20;
/// Where buffers of tests may lie: the rings are below.
pub const BUFFERS: u64 = 0x40000;
/// Descriptor flags (section 2.7.5).
pub const NEXT: u16 = 1;
/// The device writes this buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// 1 MiB at 0 and 1 MiB at 4 MiB.
pub fn memory() -> GuestRam {
    let ranges = [(GuestAddress(0), REGION as usize), (GuestAddress(HIGH), REGION as usize)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("two mappings"))
}

/// Counts interrupts.
#[derive(Default)]
pub struct Recorder {
    /// Of used buffers.
    pub queue: AtomicU32,
}

impl Interrupt for Recorder {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts edges.
#[derive(Default)]
pub struct Edges(pub AtomicU32);

impl Irq for Edges {
    fn raise(&self, _event: Event) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The driver's side of a queue.
pub struct Ring {
    memory: GuestRam,
    /// Entries.
    pub size: u16,
    /// Address of the descriptor table.
    pub base: u64,
    free: u16,
}

impl Ring {
    /// A ring of up to 256 entries, the `slot`th below [`BUFFERS`].
    pub fn new(memory: &GuestRam, slot: u64, size: u16) -> Ring {
        Ring { memory: memory.clone(), size, base: slot * 0x4000, free: 0 }
    }

    /// Address of the available ring.
    pub fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    /// Address of the used ring.
    pub fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let address = GuestAddress(self.base + u64::from(index % self.size) * 16);
        self.memory.write_slice(&bytes, address).expect("in memory");
    }

    /// Makes the chain that begins at `head` available.
    pub fn offer(&self, head: u16) {
        let index: u16 = self.read(self.avail() + 2);
        self.write(self.avail() + 4 + u64::from(index % self.size) * 2, head);
        self.write(self.avail() + 2, index.wrapping_add(1));
    }

    /// Makes a chain of (address, length, flags) available.
    pub fn chain(&mut self, buffers: &[(u64, u32, u16)]) {
        let head = self.free;
        for (position, &(addr, len, flags)) in buffers.iter().enumerate() {
            let next = if position + 1 < buffers.len() { NEXT } else { 0 };
            self.describe(self.free, addr, len, flags | next, (self.free + 1) % self.size);
            self.free = (self.free + 1) % self.size;
        }
        self.offer(head);
    }

    /// Lengths in the used ring, from the `first` entry on.
    pub fn used(&self, first: u16) -> Vec<u32> {
        let end: u16 = self.read(self.used_ring() + 2);
        let count = end.wrapping_sub(first);
        let entry = |i: u16| u64::from(first.wrapping_add(i) % self.size);
        let address = |i| GuestAddress(self.used_ring() + 4 + entry(i) * 8 + 4);
        (0..count).map(|i| self.memory.read_obj(address(i)).expect("in memory")).collect()
    }

    /// Waits until `count` chains came back in all.
    pub fn wait(&self, count: u16) -> Vec<u32> {
        for _ in 0..5000 {
            let used = self.used(0);
            if used.len() >= usize::from(count) {
                return used;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("{count} chains did not come back in five seconds");
    }

    fn read(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::SeqCst).expect("in memory")
    }

    fn write(&self, address: u64, value: u16) {
        self.memory.store(value, GuestAddress(address), Ordering::SeqCst).expect("in memory");
    }

    fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue.set_desc_table_address(Some(self.base as u32), None);
        queue.set_avail_ring_address(Some(self.avail() as u32), None);
        queue.set_used_ring_address(Some(self.used_ring() as u32), None);
        queue.set_ready(true);
        ActiveQueue { queue, kick: EventFd::new(libc::EFD_NONBLOCK).expect("a descriptor") }
    }
}

/// A device's handler without transport and thread.
pub struct Bench {
    /// The guest's memory.
    pub memory: GuestRam,
    /// One per queue, in order.
    pub rings: Vec<Ring>,
    /// What the handler signalled.
    pub interrupt: Arc<Recorder>,
    handler: Box<dyn Handler>,
    epoll: Epoll,
}

impl Bench {
    /// Activates `device` with rings at these indices.
    pub fn new(device: &mut dyn VirtioDevice, memory: GuestRam, indices: &[usize]) -> Bench {
        Bench::without(0, device, memory, indices)
    }

    /// As `new`, for a driver that does not know these `features`.
    pub fn without(
        features: u64,
        device: &mut dyn VirtioDevice,
        memory: GuestRam,
        indices: &[usize],
    ) -> Bench {
        let sizes = device.queue_sizes().to_vec();
        let mut queues: Vec<_> = sizes.iter().map(|_| None).collect();
        let mut rings = Vec::new();
        for (slot, &index) in indices.iter().enumerate() {
            let ring = Ring::new(&memory, slot as u64, sizes[index]);
            queues[index] = Some(ring.active());
            rings.push(ring);
        }
        let interrupt = Arc::new(Recorder::default());
        let activation = Activation {
            memory: memory.clone().into(),
            queues,
            features: (device.features() | TRANSPORT_FEATURES) & !features,
            interrupt: interrupt.clone(),
        };
        let handler = device.activate(activation).expect("all queues are there");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a descriptor");
        Bench { memory, rings, interrupt, handler, epoll }
    }

    /// One wake-up of the handler by its queue `index`.
    ///
    /// # Errors
    /// As the handler's own.
    pub fn kick(&mut self, index: u64) -> Result<(), HandlerError> {
        self.event(index, EpollFlags::EPOLLIN)
    }

    /// One wake-up of the handler by whatever it registered with `token`.
    ///
    /// # Errors
    /// As the handler's own.
    pub fn event(&mut self, token: u64, flags: EpollFlags) -> Result<(), HandlerError> {
        self.handler.ready(token, flags, &Registration::detached(&self.epoll))
    }

    /// The handler, stopped.
    pub fn handler(&self) -> &dyn Handler {
        &*self.handler
    }

    /// Reads `len` bytes of guest memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
        bytes
    }

    /// Writes guest memory.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("in memory");
    }

    /// Lets a hostile driver, driven by `data`, use the queue `index` behind
    /// ring `slot`. Panics when an invariant of every device is broken.
    pub fn hostile(&mut self, slot: usize, index: u64, data: &[u8]) {
        self.hostile_with(slot, index, data, &[], || ());
    }

    /// As `hostile`, with `first` at the start of the buffers, and with what is done before
    /// each round: in each, the driver writes other descriptors over those of the last.
    pub fn hostile_with(
        &mut self,
        slot: usize,
        index: u64,
        data: &[u8],
        first: &[u8],
        mut before: impl FnMut(),
    ) {
        const ROUNDS: usize = 3;
        let (words, rest) = data.as_chunks::<8>();
        let mut buffers = data[..data.len().min(0x1000)].to_vec();
        for header in buffers.chunks_exact_mut(16) {
            // Small numbers are what headers of requests are made of.
            header[0] %= 16;
            header[1..4].fill(0);
            header[9..].fill(0);
        }
        self.put(BUFFERS, &buffers);
        self.put(BUFFERS, first);
        self.put(BUFFERS + 0x1000, rest);
        let mut offered = 0;
        for words in words.chunks(words.len().div_ceil(ROUNDS).max(1)) {
            let ring = &self.rings[slot];
            for (position, word) in words.iter().enumerate().take(usize::from(ring.size)) {
                let (addr, len, flags, next) = hostile_descriptor(word, ring);
                ring.describe(position as u16, addr, len, flags, next);
                if word[7] & 0x80 != 0 || position == 0 {
                    ring.offer(if word[7] == 0xff { 0xfff0 } else { position as u16 });
                    offered += 1;
                }
            }
            before();
            if (0..4).any(|_| self.kick(index).is_err()) {
                break;
            }
        }
        if !words.iter().any(|word| word[1] & 0xe0 == 0x20) {
            // No buffer was put over the rings: the used ring is the device's.
            assert!(self.rings[slot].used(0).len() <= offered);
        }
    }
}

/// Eight bytes -> (address, length, flags, next), mostly near something that
/// matters.
fn hostile_descriptor(word: &[u8; 8], ring: &Ring) -> (u64, u32, u16, u16) {
    let low = u64::from(u16::from_le_bytes([word[2], word[3]]));
    let addr = match word[1] >> 5 {
        0 | 2 | 3 => BUFFERS + (low & 0x1ff0),
        1 => ring.base + low % 0x4000,
        4 => REGION - (low & 0xff),
        5 => HIGH + low,
        6 => HIGH + REGION - (low & 0x1ff),
        _ => u64::MAX - low,
    };
    let len = match word[4] >> 5 {
        0 => 1,
        1 => 16,
        2 => 512 * u32::from(word[5]),
        3 => u32::from(word[5]),
        4 => u32::from(word[5]) << 12,
        5 => REGION as u32,
        6 => 0,
        _ => u32::MAX - u32::from(word[5]),
    };
    let flags = u16::from(word[6] & (NEXT | WRITE) as u8);
    let indirect = if word[6] & 0xf0 == 0xf0 { INDIRECT } else { 0 };
    (addr, len, flags | indirect, u16::from(word[0] & 0x1f))
}

/// The driver's side of a transport.
pub struct Driver<'a>(pub &'a Transport);

impl Driver<'_> {
    /// Reads a register.
    pub fn read(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.0.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&self, register: u64, value: u32) {
        self.0.write(register, &value.to_le_bytes());
    }

    /// Takes the device from reset to FEATURES_OK with all features.
    pub fn negotiate(&self) {
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        for half in [0, 1] {
            self.write(0x14, half);
            self.write(0x24, half);
            self.write(0x20, self.read(0x10));
        }
        self.write(0x70, 11);
        assert_eq!(self.read(0x70), 11, "FEATURES_OK");
    }

    /// Configures queue `index`.
    pub fn queue(&self, index: u32, ring: &Ring) {
        self.write(0x30, index);
        assert!(self.read(0x34) >= ring.size.into() && self.read(0x44) == 0);
        self.write(0x38, ring.size.into());
        self.write(0x80, ring.base as u32);
        self.write(0x90, ring.avail() as u32);
        self.write(0xa0, ring.used_ring() as u32);
        self.write(0x44, 1);
        assert_eq!(self.read(0x44), 1);
    }

    /// From reset to DRIVER_OK, with one fresh ring per index.
    pub fn start(&self, memory: &GuestRam, indices: &[u32]) -> Vec<Ring> {
        self.start_with(memory, indices, 16)
    }

    /// The same, with queues of `size` entries.
    pub fn start_with(&self, memory: &GuestRam, indices: &[u32], size: u16) -> Vec<Ring> {
        self.negotiate();
        let ring = |(slot, &index): (usize, &u32)| {
            let ring = Ring::new(memory, slot as u64, size);
            memory.write_slice(&[0; 0x4000], GuestAddress(ring.base)).expect("in memory");
            self.queue(index, &ring);
            ring
        };
        let rings = indices.iter().enumerate().map(ring).collect();
        self.write(0x70, 15);
        rings
    }
}

static LOOP: LazyLock<Arc<EventLoop>> =
    LazyLock::new(|| Arc::new(EventLoop::spawn("test-devices", || ()).expect("a thread")));

/// Waits until the loop that all tests share has done what was asked of it before.
pub fn settle() {
    for _ in 0..2 {
        LOOP.run(|| ()).expect("a thread");
    }
}

/// A place for a device, and the edges of its interrupt.
pub fn wiring() -> (Wiring, Arc<Edges>) {
    let windows = Windows::new(1).expect("a page");
    let edges = Arc::<Edges>::default();
    let window = windows.each().next().expect("there is one");
    (Wiring { window, irq: edges.clone() }, edges)
}

/// A transport on a loop that all tests share, in a place of its own.
pub fn transport(device: impl VirtioDevice + 'static, memory: &GuestRam) -> Transport {
    transport_at(&wiring().0, device, memory)
}

/// As [`transport`], there.
pub fn transport_at(
    wiring: &Wiring,
    device: impl VirtioDevice + 'static,
    memory: &GuestRam,
) -> Transport {
    let memory = memory.clone().into();
    let transport = Transport::new(Box::new(device), memory, LOOP.clone(), wiring.clone())
        .expect("descriptors");
    transport.appear();
    transport
}

/// Random reads and writes of registers, then a driver that must get its due.
pub fn hostile_registers(data: &[u8]) {
    let memory = memory();
    let transport = transport(super::rng::Rng, &memory);
    let driver = Driver(&transport);
    for word in data.as_chunks::<8>().0 {
        let value = u32::from_le_bytes([word[4], word[5], word[6], word[7]]);
        let register = u64::from(u16::from_le_bytes([word[2], word[3]]) & 0xfff);
        match word[0] % 8 {
            0 => transport.read(register, &mut [0; 8][..usize::from(word[1] % 9)]),
            1 => transport.write(register, &[word[4]; 8][..usize::from(word[1] % 9)]),
            2 => driver.write(0x70, [1, 3, 11, 15, 0, 128, 64, value][usize::from(word[1] % 8)]),
            3 => driver.write(0x20, TRANSPORT_FEATURES as u32),
            4 => driver.write(0x24, u32::from(word[1] & 3)),
            5 => driver.write(u64::from(word[1] & 0xfc), value & 0x7_fff0),
            6 => driver.negotiate(),
            _ => driver.write(0x44, u32::from(word[1] & 1)),
        }
        let status = driver.read(0x70);
        assert!([0, 1, 3, 11, 15].contains(&(status & !0xc0)), "status {status:#x}");
    }
    let mut rings = driver.start(&memory, &[0]);
    rings[0].chain(&[(BUFFERS, 32, WRITE)]);
    driver.write(0x50, 0);
    assert_eq!(rings[0].wait(1), [32]);
    assert_eq!(driver.read(0x70), 15);
}

/// A hostile driver of the entropy device.
pub fn hostile_rng(data: &[u8]) {
    Bench::new(&mut super::rng::Rng, memory(), &[0]).hostile(0, 0, data);
}

/// A hostile driver of a disk of 16 sectors.
pub fn hostile_block(data: &[u8]) {
    let file = tempfile();
    file.set_len(16 * super::block::SECTOR).expect("a small file");
    let disk = super::block::Disk::new(file.try_clone().expect("a descriptor"), "fuzz", false);
    let mut device = super::block::Block::new(disk.expect("a size"));
    Bench::new(&mut device, memory(), &[0]).hostile(0, 0, data);
    assert_eq!(file.metadata().expect("a file").len(), 16 * super::block::SECTOR);
}

/// A hostile driver of the balloon; the first byte chooses the queue.
pub fn hostile_balloon(data: &[u8]) {
    let memory = memory();
    let inside = memory.clone();
    let reclaim = move |gpa: u64, len: u64| {
        assert!(gpa.is_multiple_of(4096) && len.is_multiple_of(4096) && len > 0);
        assert!(inside.check_range(GuestAddress(gpa), len as usize), "{gpa:#x} + {len:#x}");
        Ok(())
    };
    let (mut device, _handle) = super::balloon::Balloon::new(&memory, Arc::new(reclaim));
    let queue = usize::from(data.first().copied().unwrap_or(0) % 3);
    Bench::new(&mut device, memory, &[0, 1, 2]).hostile(queue, queue as u64, data);
}

fn tempfile() -> std::fs::File {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    nix::sys::memfd::memfd_create(c"disk", flags).expect("a descriptor").into()
}
