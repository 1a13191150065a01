//! The bus: finds the function that a port or an address belongs to.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};

use super::config::{ConfigSpace, Identity, Space};
use crate::devices::bus::BusDevice;

/// Devices of a bus, of one function each.
const DEVICES: usize = 32;

/// CONFIG_ADDRESS: what stands there is an address.
const ENABLE: u32 = 1 << 31;
/// Offset of CONFIG_DATA behind CONFIG_ADDRESS.
const DATA: u64 = 4;

/// Linux looks for one before it believes that there is a bus (pci_sanity_check in
/// arch/x86/pci/direct.c). The ids are those of QEMU's generic bridge, which no driver wants.
const BRIDGE: Identity = Identity { vendor: 0x1b36, device: 0x0008, revision: 0, class: 0x06_0000 };

/// A function of the bus. Called on vCPU threads, as a [`BusDevice`].
pub trait Function: Send + Sync {
    /// A driver reads its configuration space.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// A driver writes to it.
    fn write_config(&self, offset: usize, data: &[u8]);
    /// Which of its registers are there, `len` bytes in all, and the offset in them.
    fn find(&self, space: Space, address: u64, len: usize) -> Option<(usize, u64)>;
    /// A driver reads registers.
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]);
    /// A driver writes to them.
    fn write(&self, bar: usize, offset: u64, data: &[u8]);
}

/// Read for the duration of each access, so that whoever takes a function away waits for vCPUs
/// that are with it. No thread of a device ever takes it.
type Slot = RwLock<Option<Arc<dyn Function>>>;

/// See the module.
pub struct Root {
    /// CONFIG_ADDRESS.
    address: AtomicU32,
    bridge: ConfigSpace,
    /// Of device 1 and all others.
    slots: [Slot; DEVICES - 1],
}

impl Default for Root {
    fn default() -> Root {
        Root {
            address: AtomicU32::new(0),
            bridge: ConfigSpace::new(BRIDGE, &[]),
            slots: Default::default(),
        }
    }
}

impl Root {
    /// Puts a function into the empty slot of device `number`; the guest finds it when it looks
    /// again.
    ///
    /// # Panics
    /// When there is no such device: no guest chooses it.
    pub fn fill(&self, number: u8, function: Arc<dyn Function>) {
        *self.slot(number).write().expect("no panic while locked") = Some(function);
    }

    /// Empties it. No vCPU is with the function any more.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn empty(&self, number: u8) {
        *self.slot(number).write().expect("no panic while locked") = None;
    }

    fn slot(&self, number: u8) -> &Slot {
        let index = usize::from(number).checked_sub(1).expect("0 is the bridge");
        self.slots.get(index).expect("a device of the bus")
    }

    /// `work` with the function and the register that CONFIG_ADDRESS selects.
    fn selected<R>(&self, byte: u64, work: impl FnOnce(Selected, usize) -> R) -> Option<R> {
        let address = self.address.load(Ordering::Relaxed);
        let (bus, function) = (address >> 16 & 0xff, address >> 8 & 7);
        if address & ENABLE == 0 || bus != 0 || function != 0 {
            return None;
        }
        let offset = (address & 0xfc) as usize + byte as usize;
        match address >> 11 & 0x1f {
            0 => Some(work(Selected::Bridge(&self.bridge), offset)),
            number => {
                let slot = self.slot(number as u8).read().expect("no panic while locked");
                slot.as_deref().map(|function| work(Selected::Function(function), offset))
            }
        }
    }

    /// `work` with the function that has these addresses, its register and the offset there.
    fn at(
        &self,
        space: Space,
        address: u64,
        len: usize,
        work: impl FnOnce(&dyn Function, usize, u64),
    ) {
        for slot in &self.slots {
            let slot = slot.read().expect("no panic while locked");
            let Some(function) = slot.as_deref() else { continue };
            if let Some((bar, offset)) = function.find(space, address, len) {
                return work(function, bar, offset);
            }
        }
    }
}

enum Selected<'a> {
    Bridge(&'a ConfigSpace),
    Function(&'a dyn Function),
}

/// What a machine's buses see of a [`Root`].
pub enum Face {
    /// CONFIG_ADDRESS and CONFIG_DATA, eight ports.
    Config(Arc<Root>),
    /// Registers in a space, from an address on.
    Registers(Arc<Root>, Space, u64),
}

impl BusDevice for Face {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // What nobody answers reads as ones on this bus, but in memory as zeros: Linux resets a
        // device that is gone already by its address, and waits for a status of zero for ever
        // (vp_reset in drivers/virtio/virtio_pci_modern.c).
        let absent = if matches!(self, Face::Registers(_, Space::Memory, _)) { 0 } else { 0xff };
        data.fill(absent);
        match self {
            Face::Config(root) if offset >= DATA => {
                root.selected(offset - DATA, |selected, at| match selected {
                    Selected::Bridge(bridge) => bridge.read(at, data),
                    Selected::Function(function) => function.read_config(at, data),
                });
            }
            Face::Config(root) => {
                if offset == 0 && data.len() == 4 {
                    data.copy_from_slice(&root.address.load(Ordering::Relaxed).to_le_bytes());
                }
            }
            Face::Registers(root, space, base) => {
                root.at(*space, base + offset, data.len(), |function, bar, offset| {
                    function.read(bar, offset, data);
                });
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match self {
            Face::Config(root) if offset >= DATA => {
                root.selected(offset - DATA, |selected, at| match selected {
                    Selected::Bridge(_) => {}
                    Selected::Function(function) => function.write_config(at, data),
                });
            }
            // Only a whole word selects (section 3.2.2.3.2).
            Face::Config(root) => {
                if let (0, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
                    root.address.store(u32::from_le_bytes(word), Ordering::Relaxed);
                }
            }
            Face::Registers(root, space, base) => {
                root.at(*space, base + offset, data.len(), |function, bar, offset| {
                    function.write(bar, offset, data);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::devices::pci::config::Bar;

    /// 256 bytes of memory as registers.
    struct Scratch(Mutex<(ConfigSpace, [u8; 256])>);

    impl Scratch {
        fn new(device: u16) -> Arc<Scratch> {
            let who = Identity { vendor: 0x1af4, device, revision: 0, class: 0xff_0000 };
            let bars = [Bar { space: Space::Memory, bytes: 256 }];
            Arc::new(Scratch(Mutex::new((ConfigSpace::new(who, &bars), [0; 256]))))
        }
    }

    impl Function for Scratch {
        fn read_config(&self, offset: usize, data: &mut [u8]) {
            self.0.lock().unwrap().0.read(offset, data);
        }
        fn write_config(&self, offset: usize, data: &[u8]) {
            self.0.lock().unwrap().0.write(offset, data);
        }
        fn find(&self, space: Space, address: u64, len: usize) -> Option<(usize, u64)> {
            self.0.lock().unwrap().0.find(space, address, len)
        }
        fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
            assert_eq!(bar, 0);
            let at = offset as usize;
            data.copy_from_slice(&self.0.lock().unwrap().1[at..at + data.len()]);
        }
        fn write(&self, bar: usize, offset: u64, data: &[u8]) {
            assert_eq!(bar, 0);
            let at = offset as usize;
            self.0.lock().unwrap().1[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn read(face: &Face, offset: u64) -> u32 {
        let mut data = [0; 4];
        face.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn config(face: &Face, device: u32, register: u32) -> u32 {
        face.write(0, &(ENABLE | device << 11 | register).to_le_bytes());
        read(face, DATA)
    }

    #[test]
    fn a_guest_finds_what_there_is() {
        let root = Arc::<Root>::default();
        let face = Face::Config(root.clone());
        let present = || {
            let vendors = (0..32).map(|device| config(&face, device, 0));
            vendors.enumerate().filter(|(_, id)| *id != u32::MAX).collect::<Vec<_>>()
        };
        assert_eq!(present(), [(0, 0x0008_1b36)]);
        assert_eq!(config(&face, 0, 8) >> 8, 0x06_0000);
        root.fill(31, Scratch::new(2));
        root.fill(1, Scratch::new(1));
        assert_eq!(present(), [(0, 0x0008_1b36), (1, 0x0001_1af4), (31, 0x0002_1af4)]);
        root.empty(1);
        assert_eq!(present(), [(0, 0x0008_1b36), (31, 0x0002_1af4)]);
        // Other functions, buses, and no address at all.
        for address in [1 << 31 | 0x100, 1 << 31 | 0x1_0000, 0u32] {
            face.write(0, &address.to_le_bytes());
            assert_eq!(read(&face, DATA), u32::MAX);
            face.write(DATA, &[0; 4]);
        }
        face.write(3, &[1]);
        face.write(0, &[1, 2]);
        assert_eq!(read(&face, 0), 0, "only words select");
    }

    #[test]
    fn registers_are_where_the_guest_put_them() {
        let root = Arc::<Root>::default();
        let ports = Face::Config(root.clone());
        root.fill(1, Scratch::new(1));
        root.fill(2, Scratch::new(2));
        let memory = Face::Registers(root.clone(), Space::Memory, 0xc000_0000);
        for device in [1, 2] {
            config(&ports, device, 0x10);
            ports.write(DATA, &(0xc000_0000 + device * 0x100).to_le_bytes());
            config(&ports, device, 4);
            // By its second byte as well as by its first.
            ports.write(DATA, &[2]);
            ports.write(DATA + 1, &[4]);
            assert_eq!(config(&ports, device, 4), 0x402);
        }
        memory.write(0x1fc, &1u32.to_le_bytes());
        memory.write(0x200, &2u32.to_le_bytes());
        assert_eq!([0xfc, 0x1fc, 0x1fe, 0x200, 0x300].map(|at| read(&memory, at)), [0, 1, 0, 2, 0]);
        let other = Face::Registers(root, Space::Io, 0xc000_0000);
        assert_eq!(read(&other, 0x200), u32::MAX);
    }
}
