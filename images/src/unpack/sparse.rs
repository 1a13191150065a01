//! Files with holes: old GNU headers and the PAX formats 0.0, 0.1 and 1.0.

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax::{PaxSparse, number};
use super::tar::{BLOCK, TarError, TarReader};

/// More pieces than this in one file are refused: the map is held in memory.
const MAX_SEGMENTS: usize = 65_536;

/// Where the stored bytes of a file go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Offset and length of each piece of data, in bytes, ascending.
    pub(crate) segments: Vec<(u64, u64)>,
    /// Size of the file with its holes, in bytes.
    pub(crate) real_size: u64,
}

impl Sparse {
    fn checked(self, stored: u64) -> Result<Self, TarError> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, length) in &self.segments {
            let next = offset.checked_add(*length);
            match next {
                Some(next) if *offset >= end && next <= self.real_size => end = next,
                _ => return Err(TarError::Malformed("the map of a sparse file overlaps")),
            }
            sum += length;
        }
        if sum != stored {
            return Err(TarError::Malformed("the map of a sparse file does not fit its data"));
        }
        Ok(self)
    }
}

const TOO_MANY: TarError = TarError::Malformed("a sparse file has too many pieces");

fn push(map: &mut Vec<(u64, u64)>, piece: &GnuSparseHeader) -> Result<(), TarError> {
    let bad = |_| TarError::Malformed("the map of a sparse file has no valid numbers");
    // The format fills its fixed tables up with empty pieces.
    if !piece.is_empty() {
        if map.len() == MAX_SEGMENTS {
            return Err(TOO_MANY);
        }
        map.push((piece.offset().map_err(bad)?, piece.length().map_err(bad)?));
    }
    Ok(())
}

/// Old GNU format: the map is in the header and in blocks right behind it.
pub(super) fn gnu<R: Read>(
    header: &Header,
    stored: u64,
    tar: &mut TarReader<R>,
) -> Result<Sparse, TarError> {
    let bad = TarError::Malformed("a sparse entry without a GNU header");
    let gnu = header.as_gnu().ok_or(bad)?;
    let real_size =
        gnu.real_size().map_err(|_| TarError::Malformed("a sparse entry has no valid size"))?;
    let mut segments = Vec::new();
    for piece in &gnu.sparse {
        push(&mut segments, piece)?;
    }
    let mut more = gnu.is_extended();
    while more {
        let mut block = GnuExtSparseHeader::new();
        tar.read_block(block.as_mut_bytes())?;
        for piece in block.sparse() {
            push(&mut segments, piece)?;
        }
        more = block.is_extended();
    }
    Sparse { segments, real_size }.checked(stored)
}

/// PAX formats. `None` if the records do not describe a sparse file. Format
/// 1.0 keeps its map in front of the data, which is read off here.
pub(super) fn pax<R: Read>(
    pax: &PaxSparse,
    tar: &mut TarReader<R>,
) -> Result<Option<Sparse>, TarError> {
    let missing = TarError::Malformed("a sparse entry has no size");
    if pax.major == Some(1) && pax.minor == Some(0) {
        let real_size = pax.real_size.ok_or(missing)?;
        let segments = leading_map(tar)?;
        let sparse = Sparse { segments, real_size };
        return sparse.checked(tar.data_left()).map(Some);
    }
    if !pax.has_map {
        return Ok(None);
    }
    if !pax.map.len().is_multiple_of(2) || pax.map.len() / 2 > MAX_SEGMENTS {
        return Err(TOO_MANY);
    }
    let segments = pax.map.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    let sparse = Sparse { segments, real_size: pax.real_size.ok_or(missing)? };
    sparse.checked(tar.data_left()).map(Some)
}

/// Decimal lines, the count first, filled up to a whole block.
fn leading_map<R: Read>(tar: &mut TarReader<R>) -> Result<Vec<(u64, u64)>, TarError> {
    let short = TarError::Malformed("the map of a sparse file is cut short");
    let mut numbers: Vec<u64> = Vec::new();
    let mut line = Vec::new();
    let mut wanted = None;
    loop {
        let mut block = [0; BLOCK];
        if tar.data_left() < BLOCK as u64 {
            return Err(short);
        }
        tar.read_exact_data(&mut block)?;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(short);
                }
                continue;
            }
            let value = number(&line)?;
            line.clear();
            match wanted {
                None if value > MAX_SEGMENTS as u64 => return Err(TOO_MANY),
                None => wanted = Some(value as usize * 2),
                Some(_) => numbers.push(value),
            }
            if wanted == Some(numbers.len()) {
                return Ok(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect());
            }
        }
    }
}
