//! Layers made by hand: good ones, hostile ones, random ones.

mod hostile;
mod layers;
mod random;

use std::path::{Path, PathBuf};

use ::tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

/// A tar written entry by entry, with none of the checks of a real writer.
#[derive(Default, Clone)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// An entry with `change` applied to its header.
    pub(super) fn with(
        self,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        if kind == EntryType::Char || kind == EntryType::Block {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        let mut tar = self;
        if name.len() > 100 {
            tar = tar.extension(b'L', name);
        }
        if link.len() > 100 {
            tar = tar.extension(b'K', link);
        }
        let old = header.as_old_mut();
        let cut = name.len().min(100);
        old.name[..cut].copy_from_slice(&name[..cut]);
        let cut = link.len().min(100);
        old.linkname[..cut].copy_from_slice(&link[..cut]);
        change(&mut header);
        header.set_cksum();
        tar.raw(&header, data)
    }

    pub(super) fn extension(self, kind: u8, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.raw(&header, data)
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.extension(b'x', &data)
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> Self {
        self.with(EntryType::Regular, name.as_bytes(), b"", data, |_| {})
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.with(EntryType::Directory, name.as_bytes(), b"", b"", |_| {})
    }

    pub(super) fn symlink(self, name: &str, to: &str) -> Self {
        self.with(EntryType::Symlink, name.as_bytes(), to.as_bytes(), b"", |_| {})
    }

    pub(super) fn hard_link(self, name: &str, to: &str) -> Self {
        self.with(EntryType::Link, name.as_bytes(), to.as_bytes(), b"", |_| {})
    }

    pub(super) fn device(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        self.with(kind, name.as_bytes(), b"", b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// An unpacked layer and its surroundings, which must stay untouched.
pub(super) struct Cell {
    pub(super) dir: TempDir,
}

impl Cell {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("layer")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
        Self { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("layer").join(name)
    }

    pub(super) fn unpack(&self, blob: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_with(blob, &Limits::default())
    }

    pub(super) fn unpack_with(
        &self,
        blob: &[u8],
        limits: &Limits,
    ) -> Result<Unpacked, UnpackError> {
        unpack(blob, &self.path(""), limits, &Cancel::default(), &|_| {})
    }

    /// Nothing outside of the layer has changed.
    pub(super) fn assert_contained(&self) {
        let list = |dir: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(list(self.dir.path()), ["layer", "outside"]);
        assert_eq!(list(&self.dir.path().join("outside")), ["secret"]);
        let secret = std::fs::read(self.dir.path().join("outside/secret")).unwrap();
        assert_eq!(secret, b"secret");
    }
}

/// Reads an extended attribute with the system's own tool-free interface.
pub(super) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    sys::tests::get(path, name)
}
