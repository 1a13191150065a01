//! Requests as a guest's kernel would send them, and as a hostile one would.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CreateIn, EntryOut, FsOptions, InitIn, InitOut, OpenOut, ROOT_ID,
};
use proptest::prelude::*;
use protocol::machine::ShareKind;
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::super::policy::ShareConfig;
use super::*;

mod honest;
mod hostile;

const IN: u64 = 0x10_0000;
const OUT: u64 = 0x20_0000;

struct Session {
    memory: GuestMemoryMmap,
    server: Server<Arc<ShareTree>>,
    tree: Arc<ShareTree>,
    dir: tempfile::TempDir,
    uid: u32,
}

type Answer = Result<Vec<u8>, i32>;

impl Session {
    /// The three kinds of shares, each with a file `hello` in a directory `sub`.
    fn new() -> Session {
        let dir = tempfile::tempdir().unwrap();
        let share = |kind: ShareKind| {
            let path = dir.path().join(kind.dir());
            fs::create_dir_all(path.join("sub")).unwrap();
            fs::write(path.join("sub/hello"), "hello world").unwrap();
            ShareConfig { name: "it".into(), path, kind, read_only: false, passing: false }
        };
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let kinds = [ShareKind::Immutable, ShareKind::Private, ShareKind::Live];
        let mut shares = kinds.map(share).to_vec();
        let file = ShareConfig { path: dir.path().join("secret"), ..shares[2].clone() };
        shares.push(ShareConfig { name: "file".into(), read_only: true, ..file });
        let tree = Arc::new(ShareTree::open(&shares).unwrap());
        let server = Server::new(tree.clone());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let session = Session { memory, server, tree, dir, uid: 0 };
        let init = InitIn { major: 7, minor: 40, max_readahead: 1 << 20, flags: u32::MAX >> 2 };
        let out = session.call(Opcode::Init, 0, init.as_slice()).unwrap();
        let out = InitOut::from_slice(&out).copied().unwrap();
        assert_eq!((out.max_pages, out.max_write), (256, 1 << 20));
        let flags = FsOptions::from_bits_truncate(out.flags.into());
        for off in [FsOptions::WRITEBACK_CACHE, FsOptions::POSIX_LOCKS, FsOptions::FLOCK_LOCKS] {
            assert!(!flags.contains(off));
        }
        session
    }

    fn raw(&self, input: &[u8], room: u32) -> Served {
        self.memory.write_slice(input, GuestAddress(IN)).unwrap();
        let queue = MockSplitQueue::new(&self.memory, 16);
        let mut descriptors = Vec::new();
        let (first, second) = input.split_at(input.len().min(40));
        descriptors.push(Descriptor::new(IN, first.len() as u32, 0, 0));
        if !second.is_empty() {
            descriptors.push(Descriptor::new(IN + 40, second.len() as u32, 0, 0));
        }
        if room > 0 {
            descriptors.push(Descriptor::new(OUT, room, VRING_DESC_F_WRITE as u16, 0));
        }
        let descriptors: Vec<_> = descriptors.into_iter().map(RawDescriptor::from).collect();
        serve(&self.server, &self.memory, queue.build_desc_chain(&descriptors).unwrap())
    }

    fn call(&self, opcode: Opcode, nodeid: u64, body: &[u8]) -> Answer {
        let len = (size_of::<InHeader>() + body.len()) as u32;
        let (opcode, uid) = (opcode as u32, self.uid);
        let header =
            InHeader { len, opcode, nodeid, unique: 7, uid, gid: uid, ..InHeader::default() };
        let served = self.raw(&[header.as_slice(), body].concat(), 64 << 10);
        let out: OutHeader = self.memory.read_obj(GuestAddress(OUT)).unwrap();
        assert_eq!((out.len, out.unique), (served.written, 7));
        let mut answer = vec![0; out.len as usize - size_of::<OutHeader>()];
        self.memory.read_slice(&mut answer, GuestAddress(OUT + 16)).unwrap();
        if out.error == 0 { Ok(answer) } else { Err(-out.error) }
    }

    /// Gives one reference back. There is no answer.
    fn forget(&self, nodeid: u64) {
        let (len, opcode) = (size_of::<InHeader>() as u32 + 8, Opcode::Forget as u32);
        let header = InHeader { len, opcode, nodeid, ..InHeader::default() };
        assert_eq!(self.raw(&[header.as_slice(), &words(&[1, 0])].concat(), 0).written, 0);
    }

    fn entry(&self, opcode: Opcode, parent: u64, body: &[u8]) -> Result<EntryOut, i32> {
        let answer = self.call(opcode, parent, body)?;
        Ok(*EntryOut::from_slice(&answer[..size_of::<EntryOut>()]).unwrap())
    }

    fn lookup(&self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.entry(Opcode::Lookup, parent, &cstr(name))
    }

    fn walk(&self, path: &str) -> u64 {
        path.split('/').fold(ROOT_ID, |node, name| self.lookup(node, name).unwrap().nodeid)
    }

    fn open(&self, node: u64, flags: i32) -> Result<u64, i32> {
        let answer = self.call(Opcode::Open, node, &words(&[flags as u32, 0]))?;
        Ok(OpenOut::from_slice(&answer).unwrap().fh)
    }

    fn read(&self, node: u64, handle: u64) -> Answer {
        let body = [&handle.to_le_bytes()[..], &[0; 8], &words(&[4096, 0, 0, 0, 0, 0])].concat();
        self.call(Opcode::Read, node, &body)
    }

    fn create(&self, parent: u64, name: &str, flags: i32) -> Result<(u64, u64), i32> {
        let flags = flags as u32;
        let body = CreateIn { flags, mode: 0o100_644, umask: 0o22, fuse_flags: 0 };
        let answer = self.call(Opcode::Create, parent, &[body.as_slice(), &cstr(name)].concat())?;
        let (entry, open) = answer.split_at(size_of::<EntryOut>());
        Ok((EntryOut::from_slice(entry).unwrap().nodeid, OpenOut::from_slice(open).unwrap().fh))
    }

    fn write(&self, node: u64, handle: u64, data: &[u8]) -> Answer {
        let size = data.len() as u32;
        let head = [&handle.to_le_bytes()[..], &[0; 8], &words(&[size, 0, 0, 0, 1, 0])].concat();
        self.call(Opcode::Write, node, &[&head, data].concat())
    }

    fn list(&self, opcode: Opcode, node: u64) -> Vec<(String, u64)> {
        let answer = self.call(Opcode::Opendir, node, &words(&[0, 0])).unwrap();
        let handle = OpenOut::from_slice(&answer).unwrap().fh;
        let skip = if opcode as u32 == Opcode::Readdirplus as u32 { 128 } else { 0 };
        let body = [&handle.to_le_bytes()[..], &[0; 8], &words(&[4096, 0, 0, 0, 0, 0])].concat();
        let answer = self.call(opcode, node, &body).unwrap();
        let (mut rest, mut names) = (&answer[..], Vec::new());
        while !rest.is_empty() {
            rest = &rest[skip..];
            let ino = u64::from_le_bytes(rest[..8].try_into().unwrap());
            let len = u32::from_le_bytes(rest[16..20].try_into().unwrap()) as usize;
            names.push((String::from_utf8(rest[24..24 + len].to_vec()).unwrap(), ino));
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
        names.sort();
        names
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}

fn cstr(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn setxattr(name: &str, value: &str) -> Vec<u8> {
    [words(&[value.len() as u32, 0]), cstr(name), value.into()].concat()
}
