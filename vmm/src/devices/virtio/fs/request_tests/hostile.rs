//! What a hostile guest asks, and does not get.

use super::*;

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
    let prepared = crate::devices::virtio::fs::prepare_thread();
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
