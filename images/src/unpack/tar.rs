//! A streaming tar reader that bounds everything before it is in memory.
//!
//! Headers are parsed by the `tar` crate. Its `Archive` is not used: it reads
//! long names and PAX headers of any declared size into memory, loses PAX
//! values with newlines in them, and knows no PAX sparse files.

use std::io::{self, BufReader, Read, Seek};

use tar::{EntryType, Header};

use super::pax::Pax;
use super::sparse::{self, Sparse};

pub(super) const BLOCK: usize = 512;
/// Bytes of one long name, link or PAX header: attributes may have 64 KiB
/// each, names 4 KiB.
const MAX_EXTENSION: u64 = 1 << 20;

/// What a tar stream can fail with.
#[derive(Debug)]
pub(crate) enum TarError {
    /// The stream below failed.
    Io(io::Error),
    /// The format is broken; says how.
    Malformed(&'static str),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Malformed("it ends in the middle of an entry"),
            _ => Self::Io(error),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    /// A type byte that layers have no use for.
    Unknown(u8),
}

/// One entry, extensions applied, nothing checked yet but the format.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since the epoch and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes in the archive.
    pub(crate) stored_size: u64,
    pub(crate) sparse: Option<Sparse>,
}

impl Entry {
    /// Size of the file, holes included, in bytes.
    pub(crate) fn apparent_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.stored_size, |sparse| sparse.real_size)
    }
}

/// Reads entries one after the other; the data of the current one is read
/// through [`TarReader::read_data`], what is left of it is skipped.
pub(crate) struct TarReader<R> {
    inner: R,
    data_left: u64,
    padding: u64,
    position: u64,
    ended: bool,
}

/// Extension headers collected for the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, data_left: 0, padding: 0, position: 0, ended: false }
    }

    pub(super) fn inner(&self) -> &R {
        &self.inner
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// Offset in the stream of the next byte to be read.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the current entry that are not read yet.
    pub(crate) fn data_left(&self) -> u64 {
        self.data_left
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return match extensions.is_empty() {
                    true => Ok(None),
                    false => Err(TarError::Malformed("a long name belongs to no entry")),
                };
            };
            let size = number(header.entry_size(), &header.as_old().size)?;
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(self.text(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.text(size)?),
                EntryType::XHeader => extensions.pax = Some(Pax::parse(&self.extension(size)?)?),
                // Comments of git and the like; docker ignores them as well.
                EntryType::XGlobalHeader => self.start_data(size)?,
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let pax = extensions.pax.unwrap_or_default();
        let old = header.as_old();
        let mut path = pax.path.or(extensions.path);
        let kind = kind(header, path.as_deref())?;
        // Links, directories and nodes have no data, whatever the size says:
        // Go's reader (docker, containerd) sees it so, and two readers must
        // not see two archives in one.
        let size = match kind {
            Kind::File | Kind::Unknown(_) => pax.size.unwrap_or(size),
            _ => 0,
        };
        self.start_data(size)?;
        let sparse = match (kind, header.entry_type()) {
            (Kind::File, EntryType::GNUSparse) => {
                // The map's blocks stand between the header and the data.
                self.data_left = 0;
                let map = sparse::gnu(header, size, self)?;
                self.data_left = size;
                Some(map)
            }
            (Kind::File, _) => sparse::pax(&pax.sparse, self)?,
            _ => None,
        };
        if sparse.is_some() && pax.sparse.name.is_some() {
            path = pax.sparse.name;
        }
        Ok(Entry {
            path: path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: pax
                .link
                .or(extensions.link)
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default(),
            kind,
            mode: number(header.mode().map(u64::from), &old.mode)? as u32 & 0o7777,
            uid: pax.uid.map_or_else(|| number(header.uid(), &old.uid), Ok)?,
            gid: pax.gid.map_or_else(|| number(header.gid(), &old.gid), Ok)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (number(header.mtime(), &old.mtime)? as i64, 0),
            },
            xattrs: pax.xattrs,
            stored_size: self.data_left,
            sparse,
        })
    }

    /// The next header, or `None` at the end: zeros or no more bytes.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < BLOCK {
            match self.read_raw(&mut block[have..])? {
                0 if have == 0 => {
                    self.ended = true;
                    return Ok(None);
                }
                0 => return Err(TarError::Malformed("it ends in the middle of a header")),
                n => have += n,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum = bytes[..148].iter().chain(&bytes[156..]);
        let sum = sum.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        match header.cksum() {
            Ok(told) if told == sum => Ok(Some(header)),
            _ => Err(TarError::Malformed("a header has a wrong checksum")),
        }
    }

    fn start_data(&mut self, size: u64) -> Result<(), TarError> {
        self.data_left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        match size.checked_add(self.padding) {
            Some(_) => Ok(()),
            None => Err(TarError::Malformed("an entry has an impossible size")),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(TarError::Malformed("a long name or PAX header is above 1 MiB"));
        }
        self.start_data(size)?;
        let mut data = vec![0; size as usize];
        self.read_exact_data(&mut data)?;
        Ok(data)
    }

    /// A long name: ends at its NUL.
    fn text(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut text = self.extension(size)?;
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn read_data(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        let want = self.data_left.min(buf.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        match self.read_raw(&mut buf[..want])? {
            0 => Err(TarError::Malformed("it ends in the middle of a file")),
            n => {
                self.data_left -= n as u64;
                Ok(n)
            }
        }
    }

    pub(crate) fn read_exact_data(&mut self, mut buf: &mut [u8]) -> Result<(), TarError> {
        while !buf.is_empty() {
            match self.read_data(buf)? {
                0 => return Err(TarError::Malformed("a file is shorter than declared")),
                n => buf = &mut buf[n..],
            }
        }
        Ok(())
    }

    /// One block outside of any entry's data.
    pub(super) fn read_block(&mut self, block: &mut [u8]) -> Result<(), TarError> {
        self.inner.read_exact(block)?;
        self.position += block.len() as u64;
        Ok(())
    }

    /// Reads to the end of the stream, past the end of the archive.
    pub(crate) fn drain(&mut self) -> Result<(), TarError> {
        let mut buf = vec![0; 64 << 10];
        while self.read_raw(&mut buf)? != 0 {}
        Ok(())
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let mut buf = [0; 16 << 10];
        while self.read_data(&mut buf)? != 0 {}
        while self.padding > 0 {
            let want = self.padding.min(buf.len() as u64) as usize;
            match self.read_raw(&mut buf[..want])? {
                // Some writers leave the last padding out.
                0 => self.padding = 0,
                n => self.padding -= n as u64,
            }
        }
        Ok(())
    }

    fn read_raw(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buf) {
                Ok(n) => {
                    self.position += n as u64;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<R: Read + Seek> TarReader<BufReader<R>> {
    /// Skips the current entry's data without reading it.
    pub(crate) fn seek_past(&mut self) -> Result<(), TarError> {
        let ahead = self.data_left + self.padding;
        let step =
            i64::try_from(ahead).map_err(|_| TarError::Malformed("an entry is too large"))?;
        self.inner.seek_relative(step)?;
        self.position += ahead;
        (self.data_left, self.padding) = (0, 0);
        Ok(())
    }
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.pax.is_none()
    }
}

fn kind(header: &Header, long_path: Option<&[u8]>) -> Result<Kind, TarError> {
    let device = |block| -> Result<Kind, TarError> {
        let bad = TarError::Malformed("a device node has no valid number");
        match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok(Kind::Device { block, major, minor }),
            _ => Err(bad),
        }
    };
    Ok(match header.entry_type() {
        // The first tars had no type for directories.
        EntryType::Regular => {
            let short = header.path_bytes();
            match long_path.unwrap_or(&short).ends_with(b"/") {
                true => Kind::Directory,
                false => Kind::File,
            }
        }
        EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => device(false)?,
        EntryType::Block => device(true)?,
        other => Kind::Unknown(other.as_byte()),
    })
}

/// A numeric field; blank ones count as 0.
fn number(parsed: io::Result<u64>, field: &[u8]) -> Result<u64, TarError> {
    match parsed {
        Ok(value) => Ok(value),
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        Err(_) => Err(TarError::Malformed("a header has an invalid number")),
    }
}
