//! Address ranges -> devices, for memory-mapped and for port I/O alike.
//!
//! A bus is built once and never changes, so that vCPU threads look it up
//! without a lock; a device that has something to protect locks inside.
//!
//! Invariants: no two ranges overlap; an access reaches a device only when all
//! of its bytes lie in the device's range; everything else reads as ones.

use std::sync::Arc;

/// A device on a bus. `offset` is relative to the start of the device's range
/// and `offset + data.len()` never exceeds its length. Called on vCPU threads:
/// it must not block for long and never panic.
pub trait BusDevice: Send + Sync {
    /// The guest reads: fill all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device cannot be put on the bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range has no byte or passes the end of the address space.
    #[error("{base:#x} with {len:#x} bytes is not a range")]
    Range {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
    },
    /// Another device has some of the addresses.
    #[error("{base:#x} with {len:#x} bytes overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Bytes.
        len: u64,
        /// First address of the device that is there.
        other: u64,
    },
}

struct Entry {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Collects the devices of a [`Bus`].
#[derive(Default)]
pub struct BusBuilder {
    /// Sorted by `base`, disjoint.
    entries: Vec<Entry>,
}

impl BusBuilder {
    /// Puts `device` at `base..base + len`.
    ///
    /// # Errors
    /// When the range is none or taken.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|span| base.checked_add(span))
            .ok_or(BusError::Range { base, len })?;
        let position = self.entries.partition_point(|entry| entry.last < base);
        if let Some(entry) = self.entries.get(position)
            && entry.base <= last
        {
            return Err(BusError::Overlap { base, len, other: entry.base });
        }
        self.entries.insert(position, Entry { base, last, device });
        Ok(())
    }

    /// The finished bus.
    pub fn build(self) -> Bus {
        Bus { entries: self.entries.into() }
    }
}

/// Finds the device of an address.
pub struct Bus {
    entries: Box<[Entry]>,
}

impl Bus {
    /// Reads `data.len()` bytes at `address`; an unclaimed access gives ones.
    /// True when a device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes `data` at `address`; an unclaimed access is dropped. True when a
    /// device took it.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let found = self.find(address, data.len());
        if let Some((offset, device)) = found {
            device.write(offset, data);
        }
        found.is_some()
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let position = self.entries.partition_point(|entry| entry.last < address);
        let entry = self.entries.get(position)?;
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        (entry.base <= address && last <= entry.last)
            .then(|| (address - entry.base, entry.device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// Answers its own number and notes the last offset written.
    struct Probe(u8, Mutex<Option<u64>>);

    impl BusDevice for Probe {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&self, offset: u64, _data: &[u8]) {
            *self.1.lock().unwrap() = Some(offset);
        }
    }

    fn probe(number: u8) -> Arc<Probe> {
        Arc::new(Probe(number, Mutex::new(None)))
    }

    #[test]
    fn reads_and_writes_reach_the_device() {
        let (device, mut builder) = (probe(7), BusBuilder::default());
        builder.insert(0x1000, 0x100, device.clone()).unwrap();
        let bus = builder.build();
        let mut data = [0; 4];
        assert!(bus.read(0x10fc, &mut data));
        assert_eq!(data, [7; 4]);
        assert!(bus.write(0x1010, &[0; 4]));
        assert_eq!(*device.1.lock().unwrap(), Some(0x10));
        assert!(!bus.read(0x10fd, &mut data), "straddles the end");
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(u64::MAX, &[0; 8]));
    }

    #[test]
    fn bad_ranges_are_refused() {
        let mut builder = BusBuilder::default();
        assert!(matches!(builder.insert(1, 0, probe(0)), Err(BusError::Range { .. })));
        assert!(matches!(builder.insert(u64::MAX, 2, probe(0)), Err(BusError::Range { .. })));
        builder.insert(0x600, 1, probe(0)).unwrap();
        assert_eq!(
            builder.insert(0x5ff, 2, probe(0)),
            Err(BusError::Overlap { base: 0x5ff, len: 2, other: 0x600 })
        );
        builder.insert(u64::MAX, 1, probe(0)).unwrap();
    }

    proptest! {
        /// The bus agrees with a list that is searched from end to end.
        #[test]
        fn lookup_is_a_linear_search(
            ranges in prop::collection::vec((0u64..300, 0u64..40), 0..20),
            accesses in prop::collection::vec((0u64..360, 0usize..9), 1..60),
        ) {
            let (mut builder, mut model) = (BusBuilder::default(), Vec::<(u64, u64, u8)>::new());
            for (number, &(base, len)) in ranges.iter().enumerate() {
                let free = model.iter().all(|&(b, l, _)| base + len <= b || b + l <= base);
                let inserted = builder.insert(base, len, probe(number as u8)).is_ok();
                prop_assert_eq!(inserted, len > 0 && free);
                if inserted {
                    model.push((base, len, number as u8));
                }
            }
            let bus = builder.build();
            for (address, len) in accesses {
                let expected = model.iter().find(|&&(base, size, _)| {
                    len > 0 && base <= address && address + len as u64 <= base + size
                });
                let mut data = vec![0xaa; len];
                prop_assert_eq!(bus.read(address, &mut data), expected.is_some());
                let byte = expected.map_or(0xff, |&(_, _, number)| number);
                prop_assert!(data.iter().all(|&b| b == byte));
            }
        }
    }
}
