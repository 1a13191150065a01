//! Bytes of the guest that a slow host reader has not taken yet. Credit bounds
//! them; nothing is allocated while the reader keeps up.

use std::collections::VecDeque;

use vm_memory::{Bytes, VolatileSlice};

/// See the module.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    /// Leading bytes that are our own (the handshake's answer) and so no
    /// business of the guest's credit.
    own: usize,
}

impl Backlog {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Puts our own line first.
    pub fn greet(&mut self, line: &[u8]) {
        debug_assert!(self.is_empty());
        self.bytes.extend(line);
        self.own = line.len();
    }

    /// Appends guest memory.
    pub fn push(&mut self, slice: &VolatileSlice) {
        let start = self.bytes.len();
        self.bytes.resize(start + slice.len(), 0);
        let (first, second) = self.bytes.as_mut_slices();
        // The new bytes lie in the second half, or span both.
        let split = first.len();
        let mut done = 0;
        if start < split {
            done = slice.read(&mut first[start..], 0).unwrap_or(0);
        }
        if done < slice.len() {
            let from = (start + done).saturating_sub(split);
            // In bounds: `resize` made the room.
            let _ = slice.read(&mut second[from..], done);
        }
    }

    /// The first contiguous bytes.
    pub fn front(&mut self) -> VolatileSlice<'_> {
        VolatileSlice::from(self.bytes.as_mut_slices().0)
    }

    /// Drops the first `count` bytes; gives how many of them were the guest's.
    pub fn pop(&mut self, count: usize) -> usize {
        let own = self.own.min(count);
        self.own -= own;
        self.bytes.drain(..count);
        if self.bytes.is_empty() {
            // An idle connection holds no memory.
            self.bytes = VecDeque::new();
        }
        count - own
    }

    /// Drops everything; gives how many bytes were the guest's.
    pub fn clear(&mut self) -> usize {
        self.pop(self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn first_in_first_out(steps in prop::collection::vec((1usize..40, 0usize..40), 1..60)) {
            let mut backlog = Backlog::default();
            let (mut next_in, mut next_out) = (0u8, 0u8);
            for (push, pop) in steps {
                let mut data: Vec<u8> = (0..push).map(|i| next_in.wrapping_add(i as u8)).collect();
                next_in = next_in.wrapping_add(push as u8);
                backlog.push(&VolatileSlice::from(data.as_mut_slice()));
                let front = backlog.front();
                let mut out = vec![0; front.len().min(pop)];
                front.read(&mut out, 0).unwrap();
                let count = out.len();
                for byte in out {
                    prop_assert_eq!(byte, next_out);
                    next_out = next_out.wrapping_add(1);
                }
                prop_assert_eq!(backlog.pop(count), count);
            }
        }
    }
}
