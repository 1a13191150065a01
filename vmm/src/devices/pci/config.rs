//! The configuration space of a function (PCI Local Bus Specification 3.0, chapter 6) as
//! pure logic: what reads as what, which bits a driver may change, and where that puts the
//! function's registers.

/// Bytes of a configuration space.
pub const BYTES: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const FIRST_BAR: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Capabilities begin behind the header.
const HEADER: usize = 0x40;

/// Command: I/O and memory space, bus master, no INTx.
const COMMAND_WRITABLE: u16 = 0b100_0000_0111;
/// Status: there are capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// A port.
    Io,
    /// Memory, below 4 GiB.
    Memory,
}

impl Space {
    /// Bit of the command register that lets the function answer there.
    fn enabled(self) -> u8 {
        match self {
            Space::Io => 1,
            Space::Memory => 2,
        }
    }

    /// Low bits of a base address register, which say what it is.
    fn kind(self) -> u32 {
        match self {
            Space::Io => 1,
            Space::Memory => 0,
        }
    }
}

/// Registers of a function, somewhere in a space (section 6.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Where.
    pub space: Space,
    /// Bytes, a power of two: 4 to 256 ports, or at least 16 bytes of memory.
    pub bytes: u32,
}

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor, of the function and of the subsystem.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, 24 bits.
    pub class: u32,
}

/// See the module.
pub struct ConfigSpace {
    bytes: [u8; BYTES],
    /// Bits that a driver may change.
    writable: [u8; BYTES],
    bars: Vec<Bar>,
    /// Where the pointer to the next capability goes, and where that one begins.
    last_pointer: usize,
    end: usize,
}

impl ConfigSpace {
    /// A function with these registers, in their order.
    ///
    /// # Panics
    /// When there are more than six, or one has a size that is none: no guest chooses them.
    pub fn new(who: Identity, bars: &[Bar]) -> ConfigSpace {
        assert!(bars.len() <= 6, "a function has six base address registers");
        let mut space = ConfigSpace {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            bars: bars.to_vec(),
            last_pointer: CAPABILITIES,
            end: HEADER,
        };
        space.put(0, &[who.vendor.to_le_bytes(), who.device.to_le_bytes()].concat());
        let class = who.class << 8 | u32::from(who.revision);
        space.put(0x08, &class.to_le_bytes());
        space.put(SUBSYSTEM, &[who.vendor.to_le_bytes(), who.device.to_le_bytes()].concat());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Of no meaning here; firmware and drivers write to them.
        space.allow(CACHE_LINE, &[0xff, 0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        for (index, bar) in bars.iter().enumerate() {
            let sizes = if bar.space == Space::Io { 4..=256 } else { 16..=1 << 31 };
            assert!(bar.bytes.is_power_of_two() && sizes.contains(&bar.bytes), "{bar:?}");
            // The bits below the size stay zero: by them a driver finds the size.
            space.put(FIRST_BAR + 4 * index, &bar.space.kind().to_le_bytes());
            space.allow(FIRST_BAR + 4 * index, &(!(bar.bytes - 1)).to_le_bytes());
        }
        space
    }

    /// Adds a capability (section 6.7): `body` follows the id and the pointer, and `writable`
    /// has its bits that a driver may change. Gives its offset.
    ///
    /// # Panics
    /// When there is no room: no guest chooses them.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.end;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(self.last_pointer, &[at as u8]);
        self.put(STATUS, &HAS_CAPABILITIES.to_le_bytes());
        self.last_pointer = at + 1;
        self.end = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// What a driver reads at `offset`; ones beyond the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(bytes) =
            offset.checked_add(data.len()).and_then(|end| self.bytes.get(offset..end))
        {
            data.copy_from_slice(bytes);
        }
    }

    /// A driver writes.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), new) in bytes.zip(data) {
            *byte = *byte & !writable | new & writable;
        }
    }

    /// Sixteen bits at `offset`.
    pub fn word(&self, offset: usize) -> u16 {
        let mut word = [0; 2];
        self.read(offset, &mut word);
        u16::from_le_bytes(word)
    }

    /// Where the registers with this number are, while the function answers there.
    pub fn base(&self, index: usize) -> Option<u32> {
        let bar = self.bars.get(index)?;
        let mut base = [0; 4];
        self.read(FIRST_BAR + 4 * index, &mut base);
        let base = u32::from_le_bytes(base) & !(bar.bytes - 1);
        // None was given yet, or one is being asked for its size.
        let given = base != 0 && base != !(bar.bytes - 1);
        (given && self.bytes[COMMAND] & bar.space.enabled() != 0).then_some(base)
    }

    /// Which registers answer `len` bytes at an address, and the offset there.
    pub fn find(&self, space: Space, address: u64, len: usize) -> Option<(usize, u64)> {
        self.bars.iter().enumerate().find_map(|(index, bar)| {
            let base = u64::from(self.base(index).filter(|_| bar.space == space)?);
            let offset = address.checked_sub(base)?;
            let end = offset.checked_add(len as u64)?;
            (end <= u64::from(bar.bytes)).then_some((index, offset))
        })
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Identity = Identity { vendor: 0x1af4, device: 0x1041, revision: 1, class: 0x20000 };
    const BARS: [Bar; 2] =
        [Bar { space: Space::Io, bytes: 4 }, Bar { space: Space::Memory, bytes: 0x4000 }];

    fn dword(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_sees_who_it_is() {
        let mut space = ConfigSpace::new(WHO, &BARS);
        assert_eq!(dword(&space, 0), 0x1041_1af4);
        assert_eq!(dword(&space, 8), 0x0200_0001);
        assert_eq!(dword(&space, 0x2c), 0x1041_1af4);
        assert_eq!(dword(&space, 4), 0, "no capability");
        space.write(0, &[0; 4]);
        space.write(0xfe, &[0; 8]);
        assert_eq!(dword(&space, 0), 0x1041_1af4, "and cannot change it");
        let mut beyond = [0; 4];
        space.read(0xfe, &mut beyond);
        assert_eq!(beyond, [0xff; 4]);
        space.read(usize::MAX, &mut beyond);
    }

    #[test]
    fn sizes_are_found_and_addresses_given() {
        let mut space = ConfigSpace::new(WHO, &BARS);
        for offset in [0x10, 0x14, 0x18, 0x30] {
            space.write(offset, &[0xff; 4]);
        }
        let sizes = [0x10, 0x14, 0x18, 0x30].map(|offset| dword(&space, offset));
        assert_eq!(sizes, [0xffff_fffd, 0xffff_c000, 0, 0]);
        space.write(4, &[0xff; 2]);
        assert_eq!(space.word(4), 0x407);
        assert_eq!([space.base(0), space.base(1), space.base(2)], [None; 3], "sizes, no addresses");
        space.write(0x10, &0x1003u32.to_le_bytes());
        space.write(0x14, &0xc000_4fffu32.to_le_bytes());
        assert_eq!([space.base(0), space.base(1)], [Some(0x1000), Some(0xc000_4000)]);
        assert_eq!(space.find(Space::Io, 0x1002, 2), Some((0, 2)));
        assert_eq!(space.find(Space::Io, 0x1002, 4), None, "passes the end");
        assert_eq!(space.find(Space::Memory, 0x1002, 2), None);
        assert_eq!(space.find(Space::Memory, 0xc000_7ffc, 4), Some((1, 0x3ffc)));
        assert_eq!(space.find(Space::Memory, u64::MAX, 8), None);
        space.write(4, &[2]);
        assert_eq!([space.base(0), space.base(1)], [None, Some(0xc000_4000)], "switched off");
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = ConfigSpace::new(WHO, &BARS);
        let first = space.add_capability(0x11, &[1, 2, 3, 4], &[0, 0xc0]);
        let second = space.add_capability(0x09, &[7; 14], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!((space.word(0x06), space.word(0x34) & 0xff), (0x10, 0x40));
        assert_eq!(dword(&space, first), 0x0201_4811);
        assert_eq!(dword(&space, second), 0x0707_0009);
        space.write(first, &[0xff; 6]);
        assert_eq!((dword(&space, first), space.word(first + 4)), (0xc201_4811, 0x0403));
    }
}
