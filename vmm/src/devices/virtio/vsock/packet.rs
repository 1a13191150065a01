//! Packets: the header (virtio 1.2, 5.10.6) and the guest buffers that carry
//! header and payload.
//!
//! A device must not assume how a driver frames a message over descriptors
//! (2.7.4.1): Linux sends header and payload in one descriptor, in two, or, for
//! MSG_ZEROCOPY, in up to eighteen. The parser of the `virtio-vsock` crate takes
//! at most two, so that this module gathers the descriptors itself.

use std::io;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, VolatileSlice};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 44;
/// Largest payload of one packet, both ways. Linux sends at most 64 KiB.
pub const MAX_PAYLOAD: usize = 64 << 10;
/// Most guest buffers in one chain; Linux uses up to 18.
const MAX_BUFFERS: usize = 64;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;

/// What a packet asks for (5.10.6, `enum virtio_vsock_op`).
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends one.
    pub const RST: u16 = 3;
    /// Half-closes one; see [`super::shutdown`].
    pub const SHUTDOWN: u16 = 4;
    /// Carries payload.
    pub const RW: u16 = 5;
    /// Tells the sender's credit.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the receiver's credit.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`] (5.10.6.5).
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = 3;
}

/// The header of a packet, in host byte order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that left that buffer so far.
    pub fwd_cnt: u32,
}

impl Header {
    /// Decodes the wire form.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Header {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Header {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// Encodes the wire form.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The RST that answers this packet, whatever it was.
    pub fn refusal(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Header::default()
        }
    }
}

/// Why a descriptor chain is not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A buffer points outside of guest memory.
    #[error("a buffer lies outside of guest memory")]
    Address,
    /// More than [`MAX_BUFFERS`] buffers.
    #[error("too many descriptors")]
    TooMany,
    /// Less room than the header and its payload need.
    #[error("the buffers are too short")]
    Short,
    /// The header tells more than [`MAX_PAYLOAD`].
    #[error("the payload is too long")]
    Long,
}

/// The guest buffers of one packet: the header's and the payload's.
pub struct Buffers<'a> {
    head: Vec<VolatileSlice<'a>>,
    /// Where the payload goes or comes from.
    pub payload: Vec<VolatileSlice<'a>>,
}

impl<'a> Buffers<'a> {
    /// Gathers the device-readable buffers of a tx chain and reads the header,
    /// once. `payload` is cut to what the header tells.
    ///
    /// # Errors
    /// When the chain is not a whole packet.
    pub fn read(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<&'a GuestMemoryMmap>,
    ) -> Result<(Header, Buffers<'a>), PacketError> {
        let mut buffers = Self::gather(memory, chain, false)?;
        let mut bytes = [0; HEADER_SIZE];
        let mut at = 0;
        for slice in &buffers.head {
            at += slice.read(&mut bytes[at..], 0).map_err(|_| PacketError::Address)?;
        }
        let header = Header::decode(&bytes);
        let len = header.len as usize;
        if len > MAX_PAYLOAD {
            return Err(PacketError::Long);
        }
        if total(&buffers.payload) < len {
            return Err(PacketError::Short);
        }
        truncate(&mut buffers.payload, len);
        Ok((header, buffers))
    }

    /// Gathers the device-writable buffers of an rx chain.
    ///
    /// # Errors
    /// When not even a header fits.
    pub fn write(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<&'a GuestMemoryMmap>,
    ) -> Result<Buffers<'a>, PacketError> {
        let mut buffers = Self::gather(memory, chain, true)?;
        truncate(&mut buffers.payload, MAX_PAYLOAD);
        Ok(buffers)
    }

    /// Writes the header before the payload.
    ///
    /// # Errors
    /// Never in practice: the room was checked.
    pub fn set_header(&self, header: &Header) -> Result<(), PacketError> {
        let bytes = header.encode();
        let mut at = 0;
        for slice in &self.head {
            at += slice.write(&bytes[at..], 0).map_err(|_| PacketError::Address)?;
        }
        Ok(())
    }

    fn gather(
        memory: &'a GuestMemoryMmap,
        chain: DescriptorChain<&'a GuestMemoryMmap>,
        writable: bool,
    ) -> Result<Buffers<'a>, PacketError> {
        let mut head = Vec::with_capacity(1);
        let mut payload = Vec::with_capacity(2);
        let mut missing = HEADER_SIZE;
        let mut seen = 0;
        // Device-readable descriptors come before device-writable ones
        // (2.7.4.2), and a vsock chain has one kind only.
        for descriptor in chain.filter(|d| d.is_write_only() == writable) {
            seen += 1;
            if seen > MAX_BUFFERS {
                return Err(PacketError::TooMany);
            }
            // A buffer may span memory regions.
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                let slice = slice.map_err(|_| PacketError::Address)?;
                let take = missing.min(slice.len());
                if take > 0 {
                    head.push(slice.subslice(0, take).map_err(|_| PacketError::Address)?);
                    missing -= take;
                }
                if take < slice.len() {
                    payload.push(slice.offset(take).map_err(|_| PacketError::Address)?);
                }
            }
        }
        if missing > 0 { Err(PacketError::Short) } else { Ok(Buffers { head, payload }) }
    }
}

/// Bytes in `slices`.
pub fn total(slices: &[VolatileSlice]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Cuts `slices` to their first `len` bytes.
pub fn truncate(slices: &mut Vec<VolatileSlice>, mut len: usize) {
    slices.retain_mut(|slice| {
        let take = slice.len().min(len);
        len -= take;
        if take > 0 && take < slice.len() {
            // `take` is below the length, so that this cannot fail.
            if let Ok(cut) = slice.subslice(0, take) {
                *slice = cut;
            }
        }
        take > 0
    });
}

/// The bytes of `slices` after the first `skip`, in pieces.
pub fn after<'a>(
    slices: &'a [VolatileSlice<'a>],
    mut skip: usize,
) -> impl Iterator<Item = io::Result<VolatileSlice<'a>>> {
    slices.iter().filter_map(move |slice| {
        let jump = skip.min(slice.len());
        skip -= jump;
        (jump < slice.len()).then(|| slice.offset(jump).map_err(io::Error::other))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_round_trip(bytes: [u8; HEADER_SIZE]) {
            prop_assert_eq!(Header::decode(&bytes).encode(), bytes);
        }

        #[test]
        fn truncate_keeps_the_first_bytes(
            lens in prop::collection::vec(0usize..50, 0..6), keep in 0usize..200,
        ) {
            let mut data: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; len]).collect();
            let mut slices: Vec<VolatileSlice> =
                data.iter_mut().map(|d| VolatileSlice::from(d.as_mut_slice())).collect();
            let before = total(&slices);
            truncate(&mut slices, keep);
            prop_assert_eq!(total(&slices), before.min(keep));
            let rest: usize = after(&slices, 7).map(|s| s.unwrap().len()).sum();
            prop_assert_eq!(rest, before.min(keep).saturating_sub(7));
        }
    }
}
