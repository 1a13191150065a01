//! Files of an archive by name, whether it is a directory or a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use super::ArchiveError;
use crate::store::{Scratch, Store, StoreError};
use crate::unpack::tar::{Kind, TarError, TarReader};
use crate::unpack::{Compression, EntryName, Limits, UnpackError, decoder, sniff};

/// More files than this are in no image archive.
const MAX_FILES: usize = 1_000_000;
/// Links that point to links.
const MAX_HOPS: usize = 8;

/// An opened archive.
pub(super) struct Source {
    path: PathBuf,
    files: Files,
    /// Holds what a compressed archive was uncompressed to.
    _scratch: Option<Scratch>,
}

enum Files {
    Dir(OwnedFd),
    Tar { file: Arc<File>, places: HashMap<PathBuf, Place> },
}

/// Where a file of a tar is.
#[derive(Debug, Clone)]
enum Place {
    Data {
        offset: u64,
        size: u64,
    },
    /// docker's old archives share layers by links.
    Link(PathBuf),
}

/// A file of an archive, opened.
pub(super) struct Content {
    pub(super) reader: Box<dyn Read + Send>,
    /// In bytes.
    pub(super) size: u64,
}

impl Source {
    pub(super) fn open(path: &Path, store: &Store, limits: &Limits) -> Result<Self, ArchiveError> {
        let unreadable = |source| ArchiveError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let meta = file.metadata().map_err(unreadable)?;
        if meta.is_dir() {
            return Ok(Self {
                path: path.to_owned(),
                files: Files::Dir(file.into()),
                _scratch: None,
            });
        }
        let mut magic = [0; 8];
        let plain = meta.is_file() && {
            let n = file.read_at(&mut magic, 0).map_err(unreadable)?;
            sniff(&magic[..n]).map_err(|error| bad_tar(path, &error))? == Compression::None
        };
        // A pipe or a compressed file has no random access.
        let (file, scratch) = match plain {
            true => (file, None),
            false => {
                let scratch = store.scratch()?;
                let plain = spool(path, file, &scratch, limits)?;
                (plain, Some(scratch))
            }
        };
        let places = index(path, &file)?;
        Ok(Self {
            path: path.to_owned(),
            files: Files::Tar { file: Arc::new(file), places },
            _scratch: scratch,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file `name`, or `None` if the archive has none.
    pub(super) fn get(&self, name: &str) -> Result<Option<Content>, ArchiveError> {
        let found = match &self.files {
            Files::Dir(dir) => from_dir(dir, name),
            Files::Tar { file, places } => Ok(from_tar(file, places, name)),
        };
        found.map_err(|source| ArchiveError::Read { path: self.path.join(name), source })
    }

    /// The file `name`, which has to be there.
    pub(super) fn need(&self, name: &str) -> Result<Content, ArchiveError> {
        self.get(name)?
            .ok_or_else(|| ArchiveError::Missing { path: self.path.clone(), name: name.to_owned() })
    }

    /// A small file's content.
    pub(super) fn text(&self, content: Content, name: &str) -> Result<Vec<u8>, ArchiveError> {
        crate::manifest::check_size("file", content.size)
            .map_err(|source| ArchiveError::Manifest { path: self.path.join(name), source })?;
        let mut text = Vec::new();
        let mut reader = content.reader.take(content.size);
        match reader.read_to_end(&mut text) {
            Ok(_) => Ok(text),
            Err(source) => Err(ArchiveError::Read { path: self.path.join(name), source }),
        }
    }
}

/// Opens a file below a directory. Links are followed within it: archives
/// unpacked by hand may have them.
fn from_dir(dir: &OwnedFd, name: &str) -> io::Result<Option<Content>> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(dir, name, how) {
        Ok(fd) => File::from(fd),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(Some(Content { size: meta.len(), reader: Box::new(file) }))
}

fn from_tar(file: &Arc<File>, places: &HashMap<PathBuf, Place>, name: &str) -> Option<Content> {
    let mut name = clean(Path::new(name))?;
    for _ in 0..MAX_HOPS {
        match places.get(&name)? {
            Place::Data { offset, size } => {
                return Some(Content {
                    reader: Box::new(Section {
                        file: Arc::clone(file),
                        at: *offset,
                        end: offset + size,
                    }),
                    size: *size,
                });
            }
            Place::Link(target) => name = target.clone(),
        }
    }
    None
}

/// Resolves `.` and `..` by the text; `None` above the top.
fn clean(path: &Path) -> Option<PathBuf> {
    use std::path::Component;
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// A piece of a file.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = (self.end - self.at).min(buf.len() as u64) as usize;
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Where each file of the tar is.
fn index(path: &Path, file: &File) -> Result<HashMap<PathBuf, Place>, ArchiveError> {
    let broken = |error: TarError| match error {
        TarError::Io(source) => ArchiveError::Read { path: path.to_owned(), source },
        TarError::Malformed(what) => bad_tar(path, &what),
    };
    let mut file = file;
    file.rewind().map_err(|error| broken(TarError::Io(error)))?;
    let mut tar = TarReader::new(BufReader::with_capacity(64 << 10, file));
    let limits = Limits::default();
    let mut places = HashMap::new();
    while let Some(entry) = tar.next_entry().map_err(broken)? {
        let name = EntryName::parse(&entry.path, &limits)
            .map_err(|error| bad_tar(path, &format!("{}: {error}", name_of(&entry.path))))?;
        let name = name.path().to_owned();
        let offset = tar.position();
        tar.seek_past().map_err(broken)?;
        if places.len() >= MAX_FILES {
            return Err(bad_tar(path, &"it has too many files"));
        }
        let link = PathBuf::from(String::from_utf8_lossy(&entry.link).into_owned());
        let place = match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                Some(Place::Data { offset, size: entry.stored_size })
            }
            Kind::Symlink => {
                let dir = name.parent().unwrap_or(Path::new(""));
                clean(&dir.join(link)).map(Place::Link)
            }
            Kind::HardLink => clean(&link).map(Place::Link),
            _ => None,
        };
        if let Some(place) = place {
            places.insert(name, place);
        }
    }
    Ok(places)
}

fn name_of(raw: &[u8]) -> String {
    crate::unpack::printable(raw)
}

fn bad_tar(path: &Path, what: &impl std::fmt::Display) -> ArchiveError {
    ArchiveError::BadTar { path: path.to_owned(), what: what.to_string() }
}

/// Uncompresses into scratch space.
fn spool(
    path: &Path,
    file: File,
    scratch: &Scratch,
    limits: &Limits,
) -> Result<File, ArchiveError> {
    let mut plain = decoder(file).map_err(|error| match error {
        UnpackError::Read { source, .. } => ArchiveError::Read { path: path.to_owned(), source },
        other => bad_tar(path, &other),
    })?;
    let to = scratch.path().join("archive");
    let mut out = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&to)
        .map_err(StoreError::io("create", &to))?;
    let mut buf = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let n = plain
            .read(&mut buf)
            .map_err(|source| ArchiveError::Read { path: path.to_owned(), source })?;
        if n == 0 {
            return Ok(out);
        }
        total += n as u64;
        if total > limits.max_bytes {
            return Err(ArchiveError::TooLarge { path: path.to_owned(), limit: limits.max_bytes });
        }
        out.write_all(&buf[..n]).map_err(StoreError::io("write", &to))?;
    }
}
