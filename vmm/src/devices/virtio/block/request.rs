//! From a descriptor chain to a request (virtio 1.2, section 5.2.6).

use virtio_bindings::virtio_blk as blk;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::devices::virtio::serve::Chain;
use crate::memory::GuestRam;

/// Most data segments of a request (`seg_max`).
pub(super) const SEG_MAX: u32 = 126;
/// Largest data segment (`size_max`).
pub(super) const SIZE_MAX: u32 = 256 << 10;
/// Segments of a discard or write-zeroes request.
pub(super) const MAX_RANGES: usize = 16;
/// Sectors of one such segment.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Header, data, status. A driver may cut the header into pieces (section
/// 2.7.4), but none does, and the surplus counts as data segments.
const MAX_DESCRIPTORS: usize = SEG_MAX as usize + 2;
const HEADER: u64 = 16;
const RANGE: usize = 16;

/// Part of guest memory. Not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    pub(super) len: u32,
}

/// Sectors to discard or to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SectorRange {
    pub(super) sector: u64,
    pub(super) sectors: u32,
    pub(super) flags: u32,
}

/// What the driver wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// From the disk into these segments.
    Read { sector: u64, into: Vec<Segment> },
    /// From these segments to the disk.
    Write { sector: u64, from: Vec<Segment> },
    /// Make all writes so far durable.
    Flush,
    /// The serial number into these segments.
    GetId { into: Vec<Segment> },
    /// The contents do not matter any more.
    Discard { ranges: Vec<SectorRange> },
    /// The contents are to be zeros.
    WriteZeroes { ranges: Vec<SectorRange> },
}

/// Why a chain is no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParseError {
    #[error("a chain of more than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    #[error("a readable buffer after a writable one")]
    Order,
    #[error("no room for the header or the status")]
    Short,
    #[error("the header or a range list cannot be read")]
    Memory,
    #[error("a range list of {0} bytes")]
    RangeList(u64),
    #[error("request type {0}")]
    Unsupported(u32),
}

/// A chain, taken apart: where the answer goes, and the request if it is one.
pub(super) struct Parsed {
    /// Address of the status byte, if the chain has room for one.
    pub(super) status: Option<GuestAddress>,
    pub(super) request: Result<Request, ParseError>,
}

impl Request {
    /// Takes a chain apart. Nothing is written to.
    pub(super) fn parse(memory: &GuestRam, chain: Chain) -> Parsed {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut count, mut ordered) = (0, true);
        for descriptor in chain.take(MAX_DESCRIPTORS + 1) {
            count += 1;
            let segment = Segment { address: descriptor.addr(), len: descriptor.len() };
            if descriptor.is_write_only() {
                writable.push(segment);
            } else {
                ordered &= writable.is_empty();
                readable.push(segment);
            }
        }
        // In a chain that was cut, what looks like the last byte is not.
        if count > MAX_DESCRIPTORS {
            return Parsed { status: None, request: Err(ParseError::TooLong) };
        }
        let status = take_last_byte(&mut writable);
        let request = match (ordered, status) {
            (false, _) => Err(ParseError::Order),
            (true, None) => Err(ParseError::Short),
            (true, Some(_)) => Request::from_segments(memory, readable, writable),
        };
        Parsed { status, request }
    }

    fn from_segments(
        memory: &GuestRam,
        mut readable: Vec<Segment>,
        into: Vec<Segment>,
    ) -> Result<Request, ParseError> {
        let mut header = [0; HEADER as usize];
        gather(memory, &mut readable, &mut header)?;
        let kind = u32::from_le_bytes(header[..4].try_into().expect("4 of 16 bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("8 of 16 bytes"));
        match kind {
            blk::VIRTIO_BLK_T_IN => Ok(Request::Read { sector, into }),
            blk::VIRTIO_BLK_T_OUT => Ok(Request::Write { sector, from: readable }),
            blk::VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            blk::VIRTIO_BLK_T_GET_ID => Ok(Request::GetId { into }),
            blk::VIRTIO_BLK_T_DISCARD => Ok(Request::Discard { ranges: list(memory, readable)? }),
            blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                Ok(Request::WriteZeroes { ranges: list(memory, readable)? })
            }
            other => Err(ParseError::Unsupported(other)),
        }
    }
}

/// `struct virtio_blk_discard_write_zeroes[]`.
fn list(memory: &GuestRam, mut from: Vec<Segment>) -> Result<Vec<SectorRange>, ParseError> {
    let total: u64 = from.iter().map(|segment| u64::from(segment.len)).sum();
    let size = usize::try_from(total)
        .ok()
        .filter(|&size| size > 0 && size.is_multiple_of(RANGE) && size / RANGE <= MAX_RANGES)
        .ok_or(ParseError::RangeList(total))?;
    let mut bytes = [0; RANGE * MAX_RANGES];
    let bytes = &mut bytes[..size];
    gather(memory, &mut from, bytes)?;
    let (ranges, _) = bytes.as_chunks::<RANGE>();
    let range = |bytes: &[u8; RANGE]| SectorRange {
        sector: u64::from_le_bytes(bytes[..8].try_into().expect("8 of 16 bytes")),
        sectors: u32::from_le_bytes(bytes[8..12].try_into().expect("4 of 16 bytes")),
        flags: u32::from_le_bytes(bytes[12..].try_into().expect("4 of 16 bytes")),
    };
    Ok(ranges.iter().map(range).collect())
}

/// Moves the first `target.len()` bytes out of the segments, which shrink.
fn gather(
    memory: &GuestRam,
    segments: &mut Vec<Segment>,
    target: &mut [u8],
) -> Result<(), ParseError> {
    let mut filled = 0;
    let mut used = 0;
    for segment in segments.iter_mut() {
        if filled == target.len() {
            break;
        }
        let len = (segment.len as usize).min(target.len() - filled);
        memory
            .read_slice(&mut target[filled..filled + len], segment.address)
            .map_err(|_| ParseError::Memory)?;
        filled += len;
        segment.len -= len as u32;
        segment.address = segment.address.checked_add(len as u64).ok_or(ParseError::Memory)?;
        used += usize::from(segment.len == 0);
    }
    segments.drain(..used);
    if filled == target.len() { Ok(()) } else { Err(ParseError::Short) }
}

/// Cuts the last byte off the writable segments: the status.
fn take_last_byte(writable: &mut Vec<Segment>) -> Option<GuestAddress> {
    while let Some(last) = writable.last_mut() {
        if last.len > 0 {
            last.len -= 1;
            let status = last.address.checked_add(u64::from(last.len));
            if last.len == 0 {
                writable.pop();
            }
            return status;
        }
        writable.pop();
    }
    None
}
