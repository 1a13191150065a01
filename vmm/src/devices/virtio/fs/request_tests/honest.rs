//! What a guest's kernel asks, and gets.

use super::*;

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
