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

#[test]
fn kinds_are_cached_as_promised() {
    let session = Session::new();
    let year = 365 * 24 * 3600;
    for (kind, timeout) in [("immutable", year), ("private", year), ("live", 0)] {
        let root = session.lookup(ROOT_ID, kind).unwrap().nodeid;
        let share = session.lookup(root, "it").unwrap();
        assert_eq!((share.entry_valid, share.attr_valid), (timeout, timeout));
        let file = session.lookup(session.walk(&format!("{kind}/it/sub")), "hello").unwrap();
        assert_eq!((file.entry_valid, file.attr_valid), (timeout, timeout));
        let absent = session.lookup(share.nodeid, "absent");
        match kind {
            "live" => assert_eq!(absent.err(), Some(libc::ENOENT)),
            _ => assert_eq!(absent.map(|e| (e.nodeid, e.entry_valid)), Ok((0, year))),
        }
        let answer = session.call(Opcode::Open, file.nodeid, &words(&[0, 0])).unwrap();
        let keep = OpenOut::from_slice(&answer).unwrap().open_flags & 2;
        assert_eq!(keep != 0, kind != "live");
        let host = fs::metadata(session.host(&format!("{kind}/sub/hello"))).unwrap();
        assert_eq!(file.attr.ino, host.ino());
    }
}

#[test]
fn files_are_read_and_written() {
    let session = Session::new();
    let file = session.walk("immutable/it/sub/hello");
    let handle = session.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(session.read(file, handle).unwrap(), b"hello world");
    let share = session.walk("private/it");
    let (node, handle) = session.create(share, "new", libc::O_RDWR).unwrap();
    session.write(node, handle, b"data").unwrap();
    assert_eq!(fs::read(session.host("private/new")).unwrap(), b"data");
    let mode = fs::metadata(session.host("private/new")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
    session.call(Opcode::Fsync, node, &[&handle.to_le_bytes()[..], &[0; 8]].concat()).unwrap();
    let released = [&handle.to_le_bytes()[..], &[0; 16]].concat();
    session.call(Opcode::Release, node, &released).unwrap();
    assert_eq!(session.read(node, handle), Err(libc::EBADF));
}

#[test]
fn directories_links_and_names_change() {
    let session = Session::new();
    let share = session.walk("private/it");
    let mkdir = [words(&[0o777, 0o22]), cstr("made")].concat();
    let made = session.entry(Opcode::Mkdir, share, &mkdir).unwrap();
    assert_eq!(made.attr.mode & 0o777, 0o755);
    let rename = [&made.nodeid.to_le_bytes()[..], &cstr("sub"), &cstr("moved")].concat();
    session.call(Opcode::Rename, share, &rename).unwrap();
    assert!(session.host("private/made/moved/hello").exists());
    // A file and a symbolic link, each by a second name.
    let file = session.walk("private/it/made/moved/hello");
    let link = |node: u64, name| [&node.to_le_bytes()[..], &cstr(name)].concat();
    let linked = session.entry(Opcode::Link, share, &link(file, "twice")).unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (file, 2));
    let to = [cstr("sym"), cstr("/etc/passwd")].concat();
    let sym = session.entry(Opcode::Symlink, share, &to).unwrap();
    assert_eq!(session.call(Opcode::Readlink, sym.nodeid, &[]).unwrap(), b"/etc/passwd");
    assert!(session.entry(Opcode::Link, share, &link(sym.nodeid, "sym2")).is_ok());
    // The first name is gone, the file is not.
    session.call(Opcode::Unlink, made.nodeid, &cstr("moved")).unwrap_err();
    session.call(Opcode::Unlink, share, &cstr("twice")).unwrap();
    session.entry(Opcode::Link, share, &link(file, "thrice")).unwrap();
    // Another share is another file system.
    let other = session.walk("live/it");
    assert_eq!(session.entry(Opcode::Link, other, &link(file, "x")).err(), Some(libc::EXDEV));
}

#[test]
fn shares_come_and_go() {
    let session = Session::new();
    let more = tempfile::tempdir().unwrap();
    fs::create_dir(more.path().join("1-root")).unwrap();
    fs::write(more.path().join("1-root/hello"), "new").unwrap();
    fs::write(more.path().join("2-file"), "one").unwrap();
    let attach = |names: &[&str]| {
        let mounts = std::os::fd::OwnedFd::from(fs::File::open(more.path()).unwrap());
        let config = |name: &&str| ShareConfig {
            name: (*name).into(),
            path: format!("/proc/self/fd/{}/{name}", mounts.as_raw_fd()).into(),
            kind: ShareKind::Private,
            read_only: false,
            passing: true,
        };
        let configs: Vec<_> = names.iter().map(config).collect();
        session.tree.add(&configs, mounts)
    };
    let private = session.walk("private");
    attach(&["1-root", "2-file"]).unwrap();
    let root = session.lookup(private, "1-root").unwrap();
    assert_eq!((root.entry_valid, root.entry_valid_nsec), (0, 0), "its name does not hold");
    let hello = session.lookup(root.nodeid, "hello").unwrap().nodeid;
    let handle = session.open(hello, libc::O_RDONLY).unwrap();
    assert_eq!(session.read(hello, handle).unwrap(), b"new");
    // One that cannot be opened, or is there: none of them comes.
    assert!(attach(&["3-new", "no-such"]).is_err());
    assert!(attach(&["1-root"]).is_err());

    session.tree.remove(&["1-root".into(), "2-file".into(), "never".into()]);
    assert_eq!(session.lookup(private, "1-root").unwrap_err(), libc::ENOENT);
    assert_eq!(session.read(hello, handle).unwrap_err(), libc::ESTALE);
    // The guest still has nodes of the first: its number is not given away.
    attach(&["1-root"]).unwrap();
    let again = session.lookup(private, "1-root").unwrap().nodeid;
    assert_ne!(again, root.nodeid);
    session.tree.remove(&["1-root".into()]);
    for node in [root.nodeid, hello, again] {
        session.forget(node);
    }
    attach(&["1-root"]).unwrap();
    assert_eq!(session.lookup(private, "1-root").unwrap().nodeid, root.nodeid);
}

#[test]
fn whiteouts_yes_devices_no() {
    let session = Session::new();
    let share = session.walk("private/it");
    let mknod = |mode: u32, rdev, name| [words(&[mode, rdev, 0, 0]), cstr(name)].concat();
    let device = session.entry(Opcode::Mknod, share, &mknod(libc::S_IFCHR, 0x103, "null"));
    assert_eq!(device.err(), Some(libc::EPERM));
    let disk = session.entry(Opcode::Mknod, share, &mknod(libc::S_IFBLK, 0, "disk"));
    assert_eq!(disk.err(), Some(libc::EPERM));
    session.entry(Opcode::Mknod, share, &mknod(libc::S_IFIFO | 0o600, 0, "fifo")).unwrap();
    let whiteout = session.entry(Opcode::Mknod, share, &mknod(libc::S_IFCHR, 0, "gone"));
    match whiteout {
        Ok(_) => {
            let host = fs::symlink_metadata(session.host("private/gone")).unwrap();
            assert!(host.file_type().is_char_device() && host.rdev() == 0);
        }
        // Not allowed to whoever runs this test.
        Err(error) => assert_eq!(error, libc::EPERM),
    }
    // What is no file is not opened: a fifo would block us.
    let fifo = session.walk("private/it/fifo");
    assert_eq!(session.open(fifo, libc::O_RDONLY), Err(libc::EBADF));
}

#[test]
fn directories_are_listed() {
    let session = Session::new();
    let names = |list: Vec<(String, u64)>| list.into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
        assert_eq!(names(session.list(opcode, ROOT_ID)), ["immutable", "live", "private"]);
    }
    let live = session.walk("live");
    assert_eq!(names(session.list(Opcode::Readdirplus, live)), ["file", "it"]);
    let share = session.walk("private/it");
    for name in ["a", "b", "c"] {
        fs::write(session.host("private").join(name), "").unwrap();
    }
    let plain = session.list(Opcode::Readdir, share);
    assert_eq!(plain, session.list(Opcode::Readdirplus, share));
    for (name, ino) in plain {
        assert_eq!(ino, fs::metadata(session.host("private").join(name)).unwrap().ino());
    }
}

#[test]
fn attributes_are_those_that_mean_something() {
    let session = Session::new();
    let sub = session.walk("private/it/sub");
    let set = |name, value| session.call(Opcode::Setxattr, sub, &setxattr(name, value));
    for name in ["trusted.overlay.opaque", "system.posix_acl_access", "security.selinux"] {
        assert_eq!(set(name, "y"), Err(libc::EOPNOTSUPP));
        let get = [words(&[100, 0]), cstr(name)].concat();
        assert_eq!(session.call(Opcode::Getxattr, sub, &get), Err(libc::EOPNOTSUPP));
    }
    match set("user.overlay.opaque", "y") {
        // The test's directory lies on a file system without them.
        Err(error) => assert_eq!(error, libc::EOPNOTSUPP),
        Ok(_) => {
            let get = |size| [words(&[size, 0]), cstr("user.overlay.opaque")].concat();
            assert_eq!(session.call(Opcode::Getxattr, sub, &get(100)).unwrap(), b"y");
            // What would be 4 GiB of buffer.
            assert_eq!(session.call(Opcode::Getxattr, sub, &get(u32::MAX)).unwrap(), b"y");
            let list = session.call(Opcode::Listxattr, sub, &words(&[100, 0])).unwrap();
            assert!(list.windows(20).any(|name| name == b"user.overlay.opaque\0"));
            session.call(Opcode::Removexattr, sub, &cstr("user.overlay.opaque")).unwrap();
        }
    }
}

#[test]
fn read_only_shares_refuse_changes() {
    let session = Session::new();
    let file = session.walk("live/file");
    let handle = session.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(session.read(file, handle).unwrap(), b"secret");
    assert_eq!(session.write(file, handle, b"x"), Err(libc::EROFS));
    assert_eq!(session.open(file, libc::O_WRONLY), Err(libc::EROFS));
    assert_eq!(session.open(file, libc::O_RDONLY | libc::O_TRUNC), Err(libc::EROFS));
    let share = session.walk("immutable/it");
    let hello = session.walk("immutable/it/sub/hello");
    let two = [cstr("sub"), cstr("other")].concat();
    let here = [&share.to_le_bytes()[..], &two].concat();
    let link = [&hello.to_le_bytes()[..], &cstr("l")].concat();
    let attempts = [
        session.create(share, "new", libc::O_RDWR).map(|_| ()),
        session.call(Opcode::Mkdir, share, &[words(&[0o755, 0]), cstr("d")].concat()).map(drop),
        session
            .call(Opcode::Mknod, share, &[words(&[0o10_0644, 0, 0, 0]), cstr("n")].concat())
            .map(drop),
        session.call(Opcode::Unlink, share, &cstr("sub")).map(drop),
        session.call(Opcode::Rmdir, share, &cstr("sub")).map(drop),
        session.call(Opcode::Symlink, share, &two).map(drop),
        session.call(Opcode::Rename, share, &here).map(drop),
        session.call(Opcode::Link, share, &link).map(drop),
        session.call(Opcode::Setattr, hello, &[0; 88]).map(drop),
        session.call(Opcode::Setxattr, hello, &setxattr("user.a", "b")).map(drop),
        session.call(Opcode::Removexattr, hello, &cstr("user.a")).map(drop),
        session.call(Opcode::Fallocate, hello, &[0; 32]).map(drop),
    ];
    assert_eq!(attempts, [Err(libc::EROFS); 12]);
}

#[test]
fn nothing_leads_out() {
    let session = Session::new();
    symlink("../secret", session.host("private/out")).unwrap();
    symlink("..", session.host("private/up")).unwrap();
    let share = session.walk("private/it");
    let sub = session.walk("private/it/sub");
    for parent in [ROOT_ID, session.walk("private"), share, sub] {
        for name in ["..", ".", "", "../secret", "sub/hello", "/etc/passwd"] {
            let result = session.lookup(parent, name);
            assert!(matches!(result, Err(libc::EINVAL | libc::ENOENT)), "{name}: {result:?}");
        }
    }
    let out = session.walk("private/it/out");
    assert_eq!(session.open(out, libc::O_RDONLY), Err(libc::EBADF));
    // O_PATH makes the kernel forget O_CREAT, O_EXCL and follow the link.
    assert_eq!(session.create(share, "out", libc::O_PATH), Err(libc::EBADF));
    assert_eq!(session.create(share, "out", libc::O_RDWR), Err(libc::EBADF));
    assert_eq!(session.create(share, "../new", libc::O_RDWR), Err(libc::EINVAL));
    let up = session.walk("private/it/up");
    assert_eq!(session.lookup(up, "secret").map(|e| e.nodeid), Err(libc::ENOTDIR));
    assert_eq!(fs::read(session.host("secret")).unwrap(), b"secret");
}

#[test]
fn nodes_that_were_never_given_are_refused() {
    let session = Session::new();
    let share = session.walk("private/it");
    for node in [0, 5, 1 << 40, share + 1, share & !0xff, u64::MAX, 200 << 56 | 1] {
        for opcode in [Opcode::Getattr, Opcode::Open, Opcode::Opendir, Opcode::Readlink] {
            let result = session.call(opcode, node, &[0; 16]);
            assert!(matches!(result, Err(libc::ESTALE | libc::EBADF | libc::EROFS)), "{node}");
        }
    }
    // Forgotten ones as well.
    let hello = session.lookup(session.walk("private/it/sub"), "hello").unwrap().nodeid;
    let forget =
        InHeader { len: 48, opcode: Opcode::Forget as u32, nodeid: hello, ..InHeader::default() };
    let served = session.raw(&[forget.as_slice(), &9u64.to_le_bytes()].concat(), 0);
    assert_eq!(served.written, 0);
    assert_eq!(session.open(hello, libc::O_RDONLY), Err(libc::EBADF));
}

#[test]
fn owners_are_those_of_the_guest() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root may make files of others");
        return;
    }
    let prepared = super::super::prepare_thread();
    let mut session = Session::new();
    session.uid = 1000;
    let share = session.walk("private/it");
    if prepared.is_ok() {
        // 0755 of root: the guest's kernel already decided that it may.
        session.create(share, "mine", libc::O_RDWR).unwrap();
        let host = fs::metadata(session.host("private/mine")).unwrap();
        assert_eq!((host.uid(), host.gid()), (1000, 1000));
    }
    assert!(nix::unistd::geteuid().is_root());
}

#[test]
fn bad_chains_are_given_back() {
    let session = Session::new();
    let queue = MockSplitQueue::new(&session.memory, 16);
    let write = VRING_DESC_F_WRITE as u16;
    let chains: [&[(u64, u32, u16)]; 7] = [
        &[(8 << 20, 40, 0)],
        &[(IN, 40, 0), (u64::MAX - 8, 40, write)],
        &[(IN, 40, 0), ((4 << 20) - 8, 40, write)],
        &[(IN, 39, 0), (OUT, 64, write)],
        &[(OUT, 64, write), (IN, 40, 0)],
        &[(IN, 2 << 20, 0)],
        &[(OUT, 64, write)],
    ];
    for chain in chains {
        let descriptors: Vec<_> = chain
            .iter()
            .map(|&(addr, len, flags)| RawDescriptor::from(Descriptor::new(addr, len, flags, 0)))
            .collect();
        let chain = queue.build_desc_chain(&descriptors).unwrap();
        assert_eq!(serve(&session.server, &session.memory, chain), NOTHING);
    }
    // An answer to what cannot even be decoded.
    assert_eq!(session.call(Opcode::Setxattr, ROOT_ID, b"ab"), Err(libc::EIO));
    assert!(
        session
            .call(Opcode::Getattr, ROOT_ID, &[0; 16])
            .map(|a| a.len() == size_of::<AttrOut>())
            .unwrap()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_requests_never_panic(
        requests in prop::collection::vec(
            (0u32..56, 0usize..10, prop::collection::vec(any::<u8>(), 0..120), 0u32..5000, 0u32..200),
            1..20,
        ),
    ) {
        let session = Session::new();
        let mut nodes = vec![0, 1, 2, 3, 4, session.walk("private/it"), session.walk("live/it/sub")];
        nodes.push(session.walk("live/it/sub/hello"));
        nodes.push(session.walk("immutable/it"));
        nodes.push(u64::MAX);
        for (opcode, node, body, room, slack) in requests {
            let len = (40 + body.len() as u32).wrapping_add(slack % 3).wrapping_sub(slack % 2);
            let nodeid = nodes[node];
            let header = InHeader { len, opcode, nodeid, unique: 1, ..InHeader::default() };
            let served = session.raw(&[header.as_slice(), &body].concat(), room);
            prop_assert!(served.written <= room);
        }
        prop_assert_eq!(fs::read(session.host("secret")).unwrap(), b"secret");
    }

    #[test]
    fn random_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 1..200)) {
        let session = Session::new();
        session.raw(&input, 100);
    }
}
