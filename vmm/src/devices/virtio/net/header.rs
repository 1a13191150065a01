//! The header before each frame (virtio 1.2, section 5.1.6), as it comes from a guest.
//!
//! The host's kernel acts on it: it writes a checksum where the header says, and cuts the
//! frame into segments. So it is checked here, and what no rule needs is not passed on.

use virtio_bindings::virtio_net as net;

use super::{ETHERNET, HEADER};

/// The header does not fit its frame, or asks for what was not negotiated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

const fn has(features: u64, bit: u32) -> bool {
    features & 1 << bit != 0
}

/// What is to be sent instead of `header`, for a frame of `len` bytes whose first `fixed`
/// bytes (at least an Ethernet header) no checksum may be written to.
pub(super) fn checked(
    header: &[u8; HEADER],
    len: usize,
    fixed: usize,
    features: u64,
) -> Result<[u8; HEADER], Malformed> {
    let number = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    // Further flags are to be ignored (section 5.1.6.2.1).
    let flags = header[0] & net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    let (gso, ecn) = (header[1] & !(ECN as u8), header[1] & ECN as u8 != 0);
    let (header_len, gso_size, start, offset) = (number(2), number(4), number(6), number(8));
    let mut sent = [0; HEADER];
    if flags != 0 {
        let fits = start >= fixed.max(ETHERNET) && start + offset + 2 <= len;
        if !fits || !has(features, net::VIRTIO_NET_F_CSUM) {
            return Err(Malformed);
        }
        sent[0] = flags;
        sent[6..10].copy_from_slice(&header[6..10]);
    }
    let negotiated = match u32::from(gso) {
        net::VIRTIO_NET_HDR_GSO_NONE if !ecn => return Ok(sent),
        net::VIRTIO_NET_HDR_GSO_TCPV4 => has(features, net::VIRTIO_NET_F_HOST_TSO4),
        net::VIRTIO_NET_HDR_GSO_TCPV6 => has(features, net::VIRTIO_NET_F_HOST_TSO6),
        _ => false,
    };
    let negotiated = negotiated && (!ecn || has(features, net::VIRTIO_NET_F_HOST_ECN));
    // Segments need checksums of their own (section 5.1.6.2).
    if !negotiated || flags == 0 || gso_size < MIN_SEGMENT || header_len > len {
        return Err(Malformed);
    }
    sent[1..6].copy_from_slice(&header[1..6]);
    Ok(sent)
}

/// Least bytes of a segment, as Linux's TCP has it (TCP_MIN_SND_MSS in include/net/tcp.h):
/// smaller ones would make one frame of the guest's tens of thousands for the host.
const MIN_SEGMENT: usize = 48;
const ECN: u32 = net::VIRTIO_NET_HDR_GSO_ECN;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = u64::MAX;

    fn header(flags: u8, gso: u8, words: [u16; 4]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&[flags, gso]);
        for (word, place) in words.iter().zip(bytes[2..10].chunks_exact_mut(2)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn what_is_asked_for_must_fit() {
        let check = |bytes| checked(&bytes, 1000, 34, ALL);
        assert_eq!(check([0; 12]), Ok([0; 12]));
        // What no flag asks for is not passed on.
        assert_eq!(check(header(2, 0, [9, 9, 9, 9])), Ok([0; 12]));
        let checksum = header(1, 0, [0, 0, 34, 16]);
        assert_eq!(check(checksum), Ok(checksum));
        assert_eq!(check(header(1, 0, [0, 0, 34, 964])), Ok(header(1, 0, [0, 0, 34, 964])));
        for (start, offset) in [(34, 965), (33, 16), (0, 6), (999, 0), (u16::MAX, u16::MAX)] {
            assert_eq!(check(header(1, 0, [0, 0, start, offset])), Err(Malformed), "{start}");
        }
        let segments = header(1, 1, [54, 1448, 34, 16]);
        assert_eq!(check(segments), Ok(segments));
        assert!(check(header(1, 1, [54, 48, 34, 16])).is_ok());
        assert_eq!(check(header(1, 0x81, [54, 1448, 34, 16])).unwrap()[1], 0x81);
        for odd in [
            header(0, 1, [54, 1448, 34, 16]),
            header(1, 1, [54, 0, 34, 16]),
            header(1, 1, [54, 47, 34, 16]),
            header(1, 1, [1001, 1448, 34, 16]),
            header(1, 3, [54, 1448, 34, 16]),
            header(1, 5, [54, 1448, 34, 16]),
            header(1, 0x80, [54, 1448, 34, 16]),
            header(1, 0x7f, [54, 1448, 34, 16]),
        ] {
            assert_eq!(check(odd), Err(Malformed), "{odd:?}");
        }
    }

    #[test]
    fn only_what_was_negotiated() {
        let of = |bits: &[u32]| bits.iter().fold(0, |features, bit| features | 1u64 << bit);
        let segments = |gso| header(1, gso, [54, 1448, 54, 16]);
        let check = |gso, bits: &[u32]| checked(&segments(gso), 1000, 14, of(bits)).is_ok();
        let (csum, four, six, ecn) = (0, 11, 12, 13);
        assert!(!check(0, &[]) && check(0, &[csum]));
        assert!(!check(1, &[csum, six]) && check(1, &[csum, four]));
        assert!(!check(4, &[csum, four]) && check(4, &[csum, six]));
        assert!(!check(0x81, &[csum, four]) && check(0x81, &[csum, four, ecn]));
        assert!(!check(1, &[four]));
    }

    proptest! {
        /// No checksum is ever written outside of the frame, or to bytes that were checked.
        #[test]
        fn the_checksum_stays_in_its_place(
            bytes: [u8; HEADER], len in 14usize..70_000, fixed in 0usize..60,
        ) {
            if let Ok(sent) = checked(&bytes, len, fixed, ALL)
                && sent[0] != 0
            {
                let start = usize::from(u16::from_le_bytes([sent[6], sent[7]]));
                let offset = usize::from(u16::from_le_bytes([sent[8], sent[9]]));
                prop_assert!(start >= fixed && start >= 14 && start + offset + 2 <= len);
            }
        }
    }
}
