//! What a good layer becomes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

fn is_whiteout(path: &Path) -> bool {
    let meta = fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    let both = ["user.overlay.opaque", "trusted.overlay.opaque"];
    let set = both.map(|name| xattr(path, name).as_deref() == Some(b"y"));
    assert_eq!(set[0], set[1], "{}", path.display());
    set[0]
}

#[test]
fn owners_modes_times_and_links_are_kept() {
    let cell = Cell::new();
    let tar = Tar::default()
        .with(EntryType::Directory, b"./", b"", b"", |h| h.set_mode(0o711))
        .with(EntryType::Directory, b"bin/", b"", b"", |h| {
            h.set_mode(0o1777);
            h.set_mtime(5_000);
        })
        .with(EntryType::Regular, b"bin/su", b"", b"#!", |h| {
            h.set_mode(0o4755);
            h.set_uid(12);
            h.set_gid(60_000);
            h.set_mtime(7_000);
        })
        .hard_link("bin/su2", "./bin/su")
        .symlink("bin/sh", "/usr/bin/dash")
        .with(EntryType::Fifo, b"run/pipe", b"", b"", |_| {})
        .device(EntryType::Char, "dev/null", 1, 3)
        .hard_link("bin/sh2", "bin/sh")
        .end();
    let unpacked = cell.unpack(&tar).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(&tar));
    assert_eq!((unpacked.entries, unpacked.bytes), (8, 2));

    let su = fs::metadata(cell.path("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o4755, 12, 60_000));
    assert_eq!((su.mtime(), su.nlink()), (7_000, 2));
    let bin = fs::metadata(cell.path("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 5_000));
    let root = fs::metadata(cell.path("")).unwrap();
    assert_eq!((root.mode() & 0o7777, root.mtime()), (0o711, 1_000_000));
    for link in ["bin/sh", "bin/sh2"] {
        let target = fs::read_link(cell.path(link)).unwrap();
        assert_eq!(target, Path::new("/usr/bin/dash"));
    }
    let null = fs::symlink_metadata(cell.path("dev/null")).unwrap();
    assert_eq!(null.rdev(), nix::sys::stat::makedev(1, 3));
    assert!(fs::symlink_metadata(cell.path("run/pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn whiteouts_become_overlay_form() {
    let cell = Cell::new();
    let tar = Tar::default()
        .file("etc/.wh.passwd", b"")
        .file("var/cache/.wh..wh..opq", b"")
        .file("var/cache/new", b"x")
        // Deleted below and made anew in this layer, in both orders.
        .file(".wh.opt", b"")
        .file("opt/tool/bin", b"x")
        .dir("srv")
        .file(".wh.srv", b"")
        .file(".wh.home", b"")
        .dir("home")
        .file(".wh.motd", b"")
        .file("motd", b"hello")
        .file("kept", b"x")
        .file(".wh.kept", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
        .end();
    let unpacked = cell.unpack(&tar).unwrap();
    assert!(!unpacked.opaque_root);
    assert!(is_whiteout(&cell.path("etc/passwd")));
    assert!(is_opaque(&cell.path("var/cache")));
    for dir in ["opt", "srv", "home"] {
        assert!(is_opaque(&cell.path(dir)), "{dir}");
    }
    assert!(!is_opaque(&cell.path("opt/tool")));
    assert_eq!(fs::read(cell.path("motd")).unwrap(), b"hello");
    assert_eq!(fs::read(cell.path("kept")).unwrap(), b"x");
    assert!(!cell.path(".wh..wh.plnk").exists());
    assert!(!cell.path(".wh..wh.aufs").exists());
}

#[test]
fn an_opaque_root_is_reported() {
    let cell = Cell::new();
    let tar = Tar::default().file(".wh..wh..opq", b"").file("a", b"").end();
    assert!(cell.unpack(&tar).unwrap().opaque_root);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let cell = Cell::new();
    let tar = Tar::default()
        .file("a", b"old")
        .hard_link("b", "a")
        .file("a", b"new")
        .file("d/x", b"1")
        .file("d", b"was a directory")
        .symlink("e", "/outside")
        .dir("e")
        .file("e/f", b"2")
        .file("g/h/i", b"3")
        .file("g/h", b"file")
        .dir("g/h")
        .file("g/h/j", b"4")
        .end();
    cell.unpack(&tar).unwrap();
    assert_eq!(fs::read(cell.path("a")).unwrap(), b"new");
    assert_eq!(fs::read(cell.path("b")).unwrap(), b"old");
    assert_eq!(fs::read(cell.path("d")).unwrap(), b"was a directory");
    assert_eq!(fs::read(cell.path("e/f")).unwrap(), b"2");
    assert_eq!(fs::read(cell.path("g/h/j")).unwrap(), b"4");
    assert!(!cell.path("g/h/i").exists());
}

#[test]
fn relative_links_inside_are_followed_by_parents() {
    let cell = Cell::new();
    let tar =
        Tar::default().dir("usr/lib").symlink("lib", "usr/lib").file("lib/libc.so", b"elf").end();
    cell.unpack(&tar).unwrap();
    assert_eq!(fs::read(cell.path("usr/lib/libc.so")).unwrap(), b"elf");
}

#[test]
fn attributes_of_overlayfs_are_stripped_and_others_kept() {
    let cell = Cell::new();
    // cap_net_raw+ep in the form of revision 2.
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.note", b"a\nb"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.other", b"y"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("mtime", b"77.25"),
        ])
        .file("bin/ping", b"elf")
        .pax(&[("SCHILY.xattr.user.overlay.opaque", b"y")])
        .dir("d")
        .pax(&[("SCHILY.xattr.user.x", b"y")])
        .symlink("l", "bin/ping")
        .end();
    cell.unpack(&tar).unwrap();
    let ping = cell.path("bin/ping");
    assert_eq!(xattr(&ping, "user.note").as_deref(), Some(&b"a\nb"[..]));
    assert_eq!(xattr(&ping, "security.capability").as_deref(), Some(&capability[..]));
    for gone in
        ["user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.opaque", "trusted.other"]
    {
        assert_eq!(xattr(&ping, gone), None, "{gone}");
    }
    assert!(!is_opaque(&cell.path("d")));
    let meta = fs::metadata(&ping).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (77, 250_000_000));
}

#[test]
fn long_names_arrive_whole() {
    let cell = Cell::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let tar = Tar::default()
        .file(&long, b"gnu")
        .symlink("l", &long)
        .pax(&[("path", format!("{long}2").as_bytes())])
        .file("short", b"pax")
        .end();
    cell.unpack(&tar).unwrap();
    assert_eq!(fs::read(cell.path(&long)).unwrap(), b"gnu");
    assert_eq!(fs::read(cell.path(&format!("{long}2"))).unwrap(), b"pax");
    assert_eq!(fs::read_link(cell.path("l")).unwrap(), Path::new(&long));
}

#[test]
fn zeros_become_holes() {
    let cell = Cell::new();
    let mut data = vec![0; 3 << 20];
    data[1 << 20] = 1;
    *data.last_mut().unwrap() = 2;
    let tar = Tar::default().file("zeros", &vec![0; 1 << 20]).file("mixed", &data).end();
    cell.unpack(&tar).unwrap();
    assert_eq!(fs::read(cell.path("mixed")).unwrap(), data);
    assert_eq!(fs::read(cell.path("zeros")).unwrap(), vec![0; 1 << 20]);
    assert_eq!(fs::metadata(cell.path("zeros")).unwrap().blocks(), 0);
    assert!(fs::metadata(cell.path("mixed")).unwrap().blocks() <= 32);
}

/// All three sparse forms as GNU tar itself writes them.
#[test]
fn sparse_files_of_gnu_tar_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = dir.path().join("sparse");
    let file = fs::File::create(&sparse).unwrap();
    use std::os::unix::fs::FileExt;
    for at in 0..40u64 {
        file.write_all_at(format!("piece {at}").as_bytes(), at << 20).unwrap();
    }
    file.set_len(50 << 20).unwrap();
    let expected = Digest::of_reader(fs::File::open(&sparse).unwrap()).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let cell = Cell::new();
        let output = std::process::Command::new("tar")
            .args(["-S", "-c", "-C"])
            .arg(dir.path())
            .args(format)
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(output.stdout.len() < 2 << 20, "not sparse: {format:?}");
        cell.unpack(&output.stdout).unwrap();
        let got = cell.path("sparse");
        let digest = Digest::of_reader(fs::File::open(&got).unwrap()).unwrap();
        assert_eq!(digest, expected, "{format:?}");
        assert!(fs::metadata(&got).unwrap().blocks() < 4096, "{format:?}");
    }
}

#[test]
fn compression_is_told_by_magic() {
    let tar = Tar::default().file("a", b"content").end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    // Two members, as parallel compressors write them.
    let (head, tail) = tar.split_at(700);
    let mut members = Vec::new();
    for part in [head, tail] {
        let mut one = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        one.write_all(part).unwrap();
        members.extend(one.finish().unwrap());
    }
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for blob in [tar.clone(), gzip.finish().unwrap(), members, zstd] {
        let cell = Cell::new();
        assert_eq!(cell.unpack(&blob).unwrap().diff_id, Digest::of(&tar));
        assert_eq!(fs::read(cell.path("a")).unwrap(), b"content");
    }
    let xz = Cell::new().unpack(b"\xfd7zXZ\0\0\0");
    assert!(matches!(xz, Err(UnpackError::Compression("xz"))));
}

#[test]
fn an_empty_layer_is_a_layer() {
    let cell = Cell::new();
    let unpacked = cell.unpack(&Tar::default().end()).unwrap();
    assert_eq!(unpacked.entries, 0);
    assert_eq!(Cell::new().unpack(b"").unwrap().diff_id, Digest::of(b""));
}
