//! MSI-X (PCI Local Bus Specification 3.0, section 6.8.2): the messages of a function.
//!
//! ```text
//! vector --> entry: address, data, masked --> sink (KVM), or pending until unmasked
//! ```

use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of an entry.
const ENTRY: usize = 16;
/// Vector Control: the only bit that there is.
const MASKED: u32 = 1;
/// Message Control.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// Where messages go: KVM, which has the guest's interrupt controllers.
pub trait MessageSink: Send + Sync {
    /// Sends one. An address at which there is no interrupt controller is the guest's mistake,
    /// and the message is lost.
    fn send(&self, address: u64, data: u32);
}

#[derive(Clone)]
struct Entry {
    /// As the driver reads and writes them: address (two), data, control.
    words: [u32; 4],
    pending: bool,
}

struct Inner {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
}

/// Table and state of a function.
pub struct Msix {
    sink: Arc<dyn MessageSink>,
    inner: Mutex<Inner>,
}

impl Msix {
    /// With so many vectors, 1 to 2048.
    pub fn new(vectors: u16, sink: Arc<dyn MessageSink>) -> Msix {
        let entry = Entry { words: [0, 0, 0, MASKED], pending: false };
        let entries = vec![entry; usize::from(vectors)];
        Msix { sink, inner: Inner { enabled: false, masked: false, entries }.into() }
    }

    /// Sends the message of a vector, now or when it is not masked any more. Under the lock, so
    /// that nothing is sent after the driver has masked it.
    pub fn raise(&self, vector: u16) {
        let mut inner = self.lock();
        let Inner { enabled, masked, entries } = &mut *inner;
        let Some(entry) = entries.get_mut(usize::from(vector)).filter(|_| *enabled) else { return };
        entry.pending = *masked || entry.words[3] & MASKED != 0;
        if !entry.pending {
            self.send(entry);
        }
    }

    /// Message Control was written.
    pub fn control(&self, control: u16) {
        let mut inner = self.lock();
        inner.enabled = control & ENABLE != 0;
        inner.masked = control & FUNCTION_MASK != 0;
        if !inner.enabled {
            // Nothing of this is for whoever enables it next.
            inner.entries.iter_mut().for_each(|entry| entry.pending = false);
        }
        self.flush(&mut inner);
    }

    /// A driver reads the table, of at most 64 KiB: aligned words, one or two at once; else
    /// zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !aligned(offset, data) {
            return;
        }
        let inner = self.lock();
        for (at, bytes) in (offset..).step_by(4).zip(data.as_chunks_mut().0) {
            let (entry, word) = (at as usize / ENTRY, at as usize % ENTRY / 4);
            *bytes =
                inner.entries.get(entry).map_or([0; 4], |entry| entry.words[word].to_le_bytes());
        }
    }

    /// A driver writes to it.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !aligned(offset, data) {
            return;
        }
        let mut inner = self.lock();
        for (at, bytes) in (offset..).step_by(4).zip(data.as_chunks().0) {
            let (entry, word) = (at as usize / ENTRY, at as usize % ENTRY / 4);
            let Some(entry) = inner.entries.get_mut(entry) else { continue };
            let value = u32::from_le_bytes(*bytes);
            entry.words[word] = if word == 3 { value & MASKED } else { value };
        }
        self.flush(&mut inner);
    }

    /// A driver reads which messages wait: a bit each, in words of 64.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        for (at, byte) in (offset as usize..).zip(data) {
            let eight = inner.entries.iter().skip(at.saturating_mul(8)).take(8);
            *byte =
                eight.zip(0..).fold(0, |byte, (entry, bit)| byte | u8::from(entry.pending) << bit);
        }
    }

    /// Sends what waits and may go.
    fn flush(&self, inner: &mut Inner) {
        if !inner.enabled || inner.masked {
            return;
        }
        for entry in &mut inner.entries {
            if entry.pending && entry.words[3] & MASKED == 0 {
                entry.pending = false;
                self.send(entry);
            }
        }
    }

    fn send(&self, entry: &Entry) {
        let [low, high, data, _] = entry.words;
        self.sink.send(u64::from(high) << 32 | u64::from(low), data);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while locked")
    }
}

fn aligned(offset: u64, data: &[u8]) -> bool {
    matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);

    impl MessageSink for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    fn msix() -> (Msix, Arc<Sent>) {
        let sent = Arc::<Sent>::default();
        let msix = Msix::new(3, sent.clone());
        for vector in 0..3u32 {
            let at = u64::from(vector) * 16;
            msix.write_table(at, &0xfee0_0000u64.to_le_bytes());
            msix.write_table(at + 8, &(0x40 + vector).to_le_bytes());
        }
        (msix, sent)
    }

    fn word(msix: &Msix, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        msix.read_table(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn pending(msix: &Msix) -> [u8; 2] {
        let mut bits = [0xff; 2];
        msix.read_pending(0, &mut bits);
        bits
    }

    #[test]
    fn a_message_is_sent_or_waits() {
        let (msix, sent) = msix();
        let taken = || std::mem::take(&mut *sent.0.lock().unwrap());
        msix.raise(2);
        msix.control(ENABLE);
        assert!(taken().is_empty(), "nothing of what came before");
        msix.raise(2);
        assert_eq!((taken(), pending(&msix)), (vec![], [0b100, 0]), "masked at first");
        msix.write_table(2 * 16 + 12, &[0; 4]);
        assert_eq!((taken(), pending(&msix)), (vec![(0xfee0_0000, 0x42)], [0, 0]));
        msix.raise(2);
        msix.raise(3);
        msix.raise(0xffff);
        assert_eq!(taken(), [(0xfee0_0000, 0x42)], "there are no others");
        // All of a function masked.
        msix.control(ENABLE | FUNCTION_MASK);
        msix.raise(2);
        msix.raise(2);
        assert_eq!((taken(), pending(&msix)), (vec![], [0b100, 0]));
        msix.control(ENABLE);
        assert_eq!((taken().len(), pending(&msix)), (1, [0, 0]), "once for both");
        // Disabled, nothing waits for the next one who enables it.
        msix.control(ENABLE | FUNCTION_MASK);
        msix.raise(2);
        msix.control(0);
        msix.control(ENABLE);
        assert_eq!((taken().len(), pending(&msix)), (0, [0, 0]));
    }

    #[test]
    fn the_table_is_read_as_it_was_written() {
        let (msix, _) = msix();
        assert_eq!([0, 4, 8, 12].map(|at| word(&msix, at)), [0xfee0_0000, 0, 0x40, 1]);
        msix.write_table(12, &[0xfe; 4]);
        msix.write_table(4, &[0xff; 2]);
        msix.write_table(2, &[0xff; 4]);
        msix.write_table(4, &[0xff; 8]);
        msix.write_table(3 * 16, &[0xff; 8]);
        let words = [0, 4, 8, 12, 48, 0x7ff0].map(|at| word(&msix, at));
        assert_eq!(words, [0xfee0_0000, 0, 0x40, 0, 0, 0]);
        let mut odd = [0xff; 3];
        msix.read_table(0, &mut odd);
        assert_eq!(odd, [0; 3]);
    }
}
