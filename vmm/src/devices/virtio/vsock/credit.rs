//! Credit-based flow control (virtio 1.2, 5.10.6.3): neither side sends more
//! than the other has room for. All counters wrap at 32 bits.

use std::num::Wrapping;

use super::packet::Header;

/// Bytes that we keep for one connection while the host reads slowly. Told to
/// the guest as `buf_alloc`.
pub const BUF_ALLOC: u32 = 256 << 10;

/// Both directions' counters of one connection.
#[derive(Debug, Default)]
pub struct Credit {
    /// The guest's `buf_alloc` and `fwd_cnt` as last told.
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    /// Payload bytes sent to the guest.
    sent: Wrapping<u32>,
    /// Payload bytes received from the guest.
    received: Wrapping<u32>,
    /// Those of them that left our buffer.
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest last heard it.
    told: Wrapping<u32>,
}

/// The guest sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl Credit {
    /// Takes the credit that every packet of the guest carries.
    pub fn learn(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = Wrapping(header.fwd_cnt);
    }

    /// Bytes that the guest has room for. A guest that tells nonsense has none.
    pub fn available(&self) -> usize {
        self.peer_buf_alloc.saturating_sub((self.sent - self.peer_fwd_cnt).0) as usize
    }

    /// `len` bytes go to the guest.
    pub fn send(&mut self, len: usize) {
        debug_assert!(len <= self.available());
        self.sent += len as u32;
    }

    /// `len` bytes came from the guest.
    ///
    /// # Errors
    /// When the guest had no credit for them.
    pub fn receive(&mut self, len: usize) -> Result<(), Overrun> {
        if len > (BUF_ALLOC - (self.received - self.forwarded).0) as usize {
            return Err(Overrun);
        }
        self.received += len as u32;
        Ok(())
    }

    /// `len` received bytes left our buffer.
    pub fn forward(&mut self, len: usize) {
        self.forwarded += len as u32;
    }

    /// Whether the guest ought to hear of its credit: it believes to have less
    /// than half of the buffer, and there is news.
    pub fn worth_telling(&self) -> bool {
        self.told != self.forwarded && (self.received - self.told).0 > BUF_ALLOC / 2
    }

    /// Puts our credit into a header for the guest.
    pub fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = BUF_ALLOC;
        header.fwd_cnt = self.forwarded.0;
        self.told = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_wrap() {
        let mut credit = Credit { sent: Wrapping(u32::MAX - 9), ..Credit::default() };
        credit.learn(&Header { buf_alloc: 100, fwd_cnt: u32::MAX - 9, ..Header::default() });
        assert_eq!(credit.available(), 100);
        credit.send(60);
        assert_eq!(credit.available(), 40);
        credit.learn(&Header { buf_alloc: 100, fwd_cnt: 20, ..Header::default() });
        assert_eq!(credit.available(), 70);
    }

    #[test]
    fn a_lying_guest_has_no_credit() {
        let mut credit = Credit::default();
        credit.learn(&Header { buf_alloc: u32::MAX, fwd_cnt: 1, ..Header::default() });
        assert_eq!(credit.available(), 0);
        // A shrunk buffer.
        let mut credit = Credit::default();
        credit.learn(&Header { buf_alloc: 100, ..Header::default() });
        credit.send(100);
        credit.learn(&Header { buf_alloc: 10, ..Header::default() });
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn an_overrun_is_seen_and_news_are_told() {
        let mut credit = Credit::default();
        credit.receive(BUF_ALLOC as usize).unwrap();
        assert_eq!(credit.receive(1), Err(Overrun));
        assert!(!credit.worth_telling());
        credit.forward(1);
        assert!(credit.worth_telling());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (BUF_ALLOC, 1));
        assert!(!credit.worth_telling());
        credit.receive(1).unwrap();
    }
}
