//! Layers made by hand, also such as no honest tool would write.

use tar::{Builder, EntryType, Header};

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: String,
    kind: EntryType,
    mode: u32,
    owner: (u64, u64),
    content: Vec<u8>,
    link: String,
    device: (u32, u32),
    attributes: Vec<(String, Vec<u8>)>,
    /// What its header says, if that is not true.
    announced: Option<u64>,
}

impl Entry {
    fn new(kind: EntryType, path: &str, mode: u32) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode,
            owner: (0, 0),
            content: Vec::new(),
            link: String::new(),
            device: (0, 0),
            attributes: Vec::new(),
            announced: None,
        }
    }

    /// A directory.
    pub fn dir(path: &str) -> Entry {
        Entry::new(EntryType::Directory, path, 0o755)
    }

    /// A regular file.
    pub fn file(path: &str, content: impl AsRef<[u8]>) -> Entry {
        Entry { content: content.as_ref().into(), ..Entry::new(EntryType::Regular, path, 0o644) }
    }

    /// A program.
    pub fn program(path: &str, content: impl AsRef<[u8]>) -> Entry {
        Entry::file(path, content).mode(0o755)
    }

    /// A symbolic link.
    pub fn symlink(path: &str, target: &str) -> Entry {
        Entry { link: target.into(), ..Entry::new(EntryType::Symlink, path, 0o777) }
    }

    /// A further name of a file.
    pub fn hard_link(path: &str, target: &str) -> Entry {
        Entry { link: target.into(), ..Entry::new(EntryType::Link, path, 0o644) }
    }

    /// A named pipe.
    pub fn fifo(path: &str) -> Entry {
        Entry::new(EntryType::Fifo, path, 0o644)
    }

    /// A character device.
    pub fn device(path: &str, major: u32, minor: u32) -> Entry {
        Entry { device: (major, minor), ..Entry::new(EntryType::Char, path, 0o666) }
    }

    /// A block device.
    pub fn disk(path: &str, major: u32, minor: u32) -> Entry {
        Entry { device: (major, minor), ..Entry::new(EntryType::Block, path, 0o660) }
    }

    /// With other permissions.
    pub fn mode(self, mode: u32) -> Entry {
        Entry { mode, ..self }
    }

    /// With another owner.
    pub fn owner(self, uid: u64, gid: u64) -> Entry {
        Entry { owner: (uid, gid), ..self }
    }

    /// With another size in its header than the content has, in bytes.
    pub fn announcing(self, size: u64) -> Entry {
        Entry { announced: Some(size), ..self }
    }

    /// With an extended attribute.
    pub fn attribute(mut self, name: &str, value: &str) -> Entry {
        self.attributes.push((format!("SCHILY.xattr.{name}"), value.into()));
        self
    }

    fn append(&self, archive: &mut Builder<Vec<u8>>) -> std::io::Result<()> {
        let mut attributes = self.attributes.clone();
        // The old header holds 100 bytes of a name.
        if self.path.len() >= 100 {
            attributes.push(("path".into(), self.path.clone().into()));
        }
        if !attributes.is_empty() {
            let pairs = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            archive.append_pax_extensions(pairs)?;
        }
        let mut header = Header::new_ustar();
        // By hand: the library refuses hostile names.
        fill(&mut header.as_old_mut().name, &self.path);
        fill(&mut header.as_old_mut().linkname, &self.link);
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(self.announced.unwrap_or(self.content.len() as u64));
        header.set_device_major(self.device.0)?;
        header.set_device_minor(self.device.1)?;
        header.set_cksum();
        archive.append(&header, self.content.as_slice())
    }
}

fn fill(field: &mut [u8; 100], text: &str) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// The archive of `entries`.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for entry in entries {
        entry.append(&mut archive).expect("memory takes everything");
    }
    archive.into_inner().expect("memory takes everything")
}
