//! preadv(2) and pwritev(2) straight between the backing file and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::GuestMemory;
use vm_memory::bitmap::Bitmap;
use vm_memory::volatile_memory::{PtrGuardMut, VolatileSlice};

use super::disk::DiskError;
use super::request::Segment;
use crate::memory::GuestRam;

/// Entries of one system call; the kernel's own limit is 1024.
const MAX_VECTORS: usize = 256;

/// Fills `segments` from the file at `offset`.
pub(super) fn read(
    file: &File,
    offset: u64,
    memory: &GuestRam,
    segments: &[Segment],
) -> Result<(), DiskError> {
    let slices = slices(memory, segments)?;
    let result = transfer(&slices, offset, |vectors, offset| preadv(file, vectors, offset));
    for slice in &slices {
        slice.bitmap().mark_dirty(0, slice.len());
    }
    result
}

/// Writes `segments` to the file at `offset`.
pub(super) fn write(
    file: &File,
    offset: u64,
    memory: &GuestRam,
    segments: &[Segment],
) -> Result<(), DiskError> {
    let slices = slices(memory, segments)?;
    transfer(&slices, offset, |vectors, offset| pwritev(file, vectors, offset))
}

/// Guest memory of the segments, checked. A segment may lie across two regions.
fn slices<'a>(
    memory: &'a GuestRam,
    segments: &[Segment],
) -> Result<Vec<VolatileSlice<'a>>, DiskError> {
    let mut slices = Vec::with_capacity(segments.len());
    for segment in segments {
        for slice in memory.get_slices(segment.address, segment.len as usize) {
            slices.push(slice.map_err(|_| DiskError::Memory)?);
        }
    }
    Ok(slices)
}

/// Calls `operation` until every byte is moved. Ends: each call moves a byte or
/// is an error, and the transfer is bounded by the caller.
fn transfer(
    slices: &[VolatileSlice],
    mut offset: u64,
    operation: impl Fn(&[libc::iovec], libc::off_t) -> io::Result<usize>,
) -> Result<(), DiskError> {
    let guards: Vec<PtrGuardMut> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .filter(|vector| vector.iov_len > 0)
        .collect();
    let mut rest = vectors.as_mut_slice();
    while !rest.is_empty() {
        let position = libc::off_t::try_from(offset).map_err(|_| DiskError::Bounds)?;
        let moved = match operation(&rest[..rest.len().min(MAX_VECTORS)], position) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        offset += moved as u64;
        rest = advance(rest, moved);
    }
    Ok(())
}

/// The vectors without their first `moved` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while moved > 0 && !vectors.is_empty() {
        let first = &mut vectors[0];
        let step = moved.min(first.iov_len);
        // Stays inside the slice, or one past its end.
        first.iov_base = first.iov_base.wrapping_byte_add(step);
        first.iov_len -= step;
        moved -= step;
        if first.iov_len == 0 {
            vectors = &mut vectors[1..];
        }
    }
    vectors
}

#[allow(unsafe_code)]
fn preadv(file: &File, vectors: &[libc::iovec], offset: libc::off_t) -> io::Result<usize> {
    let count = vectors.len() as libc::c_int;
    // SAFETY: each vector lies in a slice of guest memory whose guard `transfer`
    // holds; the kernel may write there as the guest may, Rust holds no reference.
    let moved = unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[allow(unsafe_code)]
fn pwritev(file: &File, vectors: &[libc::iovec], offset: libc::off_t) -> io::Result<usize> {
    let count = vectors.len() as libc::c_int;
    // SAFETY: as in `preadv`, and the kernel only reads there.
    let moved = unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, offset) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advance_cuts_whole_and_partial_vectors() {
        let mut bytes = [0u8; 30];
        let base: *mut u8 = bytes.as_mut_ptr();
        let at = |start: usize, len| libc::iovec {
            iov_base: base.wrapping_add(start).cast(),
            iov_len: len,
        };
        let mut vectors = [at(0, 10), at(10, 10), at(20, 10)];
        let rest = advance(&mut vectors, 13);
        assert_eq!((rest.len(), rest[0].iov_len), (2, 7));
        assert_eq!(rest[0].iov_base.cast::<u8>(), base.wrapping_add(13));
        assert!(advance(rest, 17).is_empty());
    }
}
