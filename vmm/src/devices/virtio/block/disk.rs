//! Executes requests on the backing file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use nix::fcntl::{FallocateFlags, fallocate};
use virtio_bindings::virtio_blk as blk;
use vm_memory::Bytes;

use super::request::{MAX_RANGE_SECTORS, Request, SIZE_MAX, SectorRange, Segment};
use super::vectored;
use crate::memory::GuestRam;

/// Bytes of a sector, the unit of the protocol.
pub const SECTOR: u64 = 512;
/// Bytes of the answer to GET_ID.
pub(super) const ID_BYTES: usize = 20;

/// A raw file as a disk.
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    serial: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Some of it is not on the disk.
    #[error("beyond the end of the disk")]
    Bounds,
    /// A length is not a whole number of sectors, or larger than was offered.
    #[error("bad length")]
    Length,
    /// A write to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A flag, or an operation that the file system of the file lacks.
    #[error("not supported")]
    Unsupported,
    /// The driver's buffer is not in guest memory.
    #[error("a buffer outside memory")]
    Memory,
    /// The backing file failed.
    #[error("the backing file failed")]
    Io(#[from] io::Error),
}

impl Disk {
    /// A disk as large as `file`, in whole sectors. The file must be open for
    /// writing unless `read_only`. Of the serial number, 20 bytes are used.
    ///
    /// # Errors
    /// When the size cannot be told.
    pub fn new(mut file: File, serial: &str, read_only: bool) -> io::Result<Disk> {
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        Ok(Disk { file, sectors, read_only, serial: serial.to_owned() })
    }

    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    pub(super) fn serial(&self) -> &str {
        &self.serial
    }

    /// Does what is asked; returns how many bytes went into the driver's
    /// buffers.
    pub(super) fn execute(&self, memory: &GuestRam, request: &Request) -> Result<u32, DiskError> {
        match request {
            Request::Read { sector, into } => {
                let (offset, len) = self.span(*sector, into)?;
                vectored::read(&self.file, offset, memory, into)?;
                Ok(len)
            }
            Request::Write { sector, from } => {
                self.writable()?;
                let (offset, _) = self.span(*sector, from)?;
                vectored::write(&self.file, offset, memory, from)?;
                Ok(0)
            }
            Request::Flush => {
                self.file.sync_data()?;
                Ok(0)
            }
            Request::GetId { into } => self.get_id(memory, into),
            Request::Discard { ranges } => {
                // Section 5.2.6.2: unmap is for write-zeroes only.
                self.for_each(ranges, 0, |_| FallocateFlags::FALLOC_FL_PUNCH_HOLE)
            }
            Request::WriteZeroes { ranges } => {
                self.for_each(ranges, blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, |flags| {
                    match flags & blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP {
                        0 => FallocateFlags::FALLOC_FL_ZERO_RANGE,
                        _ => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
                    }
                })
            }
        }
    }

    fn writable(&self) -> Result<(), DiskError> {
        if self.read_only { Err(DiskError::ReadOnly) } else { Ok(()) }
    }

    /// Offset in the file and length of a transfer, both checked.
    fn span(&self, sector: u64, segments: &[Segment]) -> Result<(u64, u32), DiskError> {
        if segments.iter().any(|segment| segment.len > SIZE_MAX) {
            return Err(DiskError::Length);
        }
        let len: u64 = segments.iter().map(|segment| u64::from(segment.len)).sum();
        if !len.is_multiple_of(SECTOR) {
            return Err(DiskError::Length);
        }
        let offset = self.offset(sector, len / SECTOR)?;
        Ok((offset, u32::try_from(len).map_err(|_| DiskError::Length)?))
    }

    fn offset(&self, sector: u64, sectors: u64) -> Result<u64, DiskError> {
        let end = sector.checked_add(sectors).ok_or(DiskError::Bounds)?;
        if end > self.sectors { Err(DiskError::Bounds) } else { Ok(sector * SECTOR) }
    }

    fn get_id(&self, memory: &GuestRam, into: &[Segment]) -> Result<u32, DiskError> {
        let mut id = [0; ID_BYTES];
        let len = self.serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&self.serial.as_bytes()[..len]);
        let mut done = 0;
        for segment in into {
            let piece = (segment.len as usize).min(ID_BYTES - done);
            memory
                .write_slice(&id[done..done + piece], segment.address)
                .map_err(|_| DiskError::Memory)?;
            done += piece;
        }
        Ok(done as u32)
    }

    fn for_each(
        &self,
        ranges: &[SectorRange],
        allowed_flags: u32,
        mode: impl Fn(u32) -> FallocateFlags,
    ) -> Result<u32, DiskError> {
        self.writable()?;
        for range in ranges {
            if range.flags & !allowed_flags != 0 {
                return Err(DiskError::Unsupported);
            }
            if range.sectors > MAX_RANGE_SECTORS {
                return Err(DiskError::Length);
            }
            let offset = self.offset(range.sector, range.sectors.into())?;
            if range.sectors == 0 {
                continue;
            }
            let mode = mode(range.flags) | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let len = i64::from(range.sectors) * SECTOR as i64;
            let offset = i64::try_from(offset).map_err(|_| DiskError::Bounds)?;
            match fallocate(&self.file, mode, offset, len) {
                Err(nix::Error::EOPNOTSUPP) => return Err(DiskError::Unsupported),
                result => result.map_err(io::Error::from)?,
            }
        }
        Ok(0)
    }
}
