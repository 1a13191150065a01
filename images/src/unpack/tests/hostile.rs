//! Layers that must not be unpacked, and that touch nothing outside.

use std::io::Write;

use super::*;

/// The refusal and the entry in the message.
fn refused(cell: &Cell, tar: &[u8]) -> (Refusal, String) {
    match cell.unpack(tar) {
        Err(UnpackError::Refused { entry, reason }) => (reason, entry),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn escapes_are_refused_by_name() {
    let cell = Cell::new();
    let outside = cell.dir.path().join("outside");
    let outside = outside.to_str().unwrap();
    let t = Tar::default;
    let devices = |block, major, minor| {
        let kind = if block { EntryType::Block } else { EntryType::Char };
        t().device(kind, "dev/evil", major, minor)
    };
    type Check = fn(&Refusal) -> bool;
    let table: Vec<(&str, Tar, Check)> = vec![
        ("../evil", t().file("../evil", b"x"), |r| *r == Refusal::DotDot),
        ("a/../../evil", t().file("a/../../evil", b"x"), |r| *r == Refusal::DotDot),
        ("/evil", t().file("/evil", b"x"), |r| *r == Refusal::Absolute),
        ("evil/x", t().symlink("evil", outside).file("evil/x", b"x"), |r| {
            *r == Refusal::LinkEscape
        }),
        ("evil/x", t().symlink("evil", "../outside").file("evil/x", b"x"), |r| {
            *r == Refusal::LinkEscape
        }),
        ("evil/d", t().symlink("evil", "..").dir("evil/d"), |r| *r == Refusal::LinkEscape),
        ("a/b/x", t().symlink("a/b", "../../outside").file("a/b/x", b""), |r| {
            *r == Refusal::LinkEscape
        }),
        ("b/x", t().symlink("a", "..").symlink("b", "a/outside").file("b/x", b""), |r| {
            *r == Refusal::LinkEscape
        }),
        ("evil/.wh.secret", t().symlink("evil", "../outside").file("evil/.wh.secret", b""), |r| {
            *r == Refusal::LinkEscape
        }),
        (
            "evil/.wh..wh..opq",
            t().symlink("evil", "../outside").file("evil/.wh..wh..opq", b""),
            |r| *r == Refusal::LinkEscape,
        ),
        ("l/x", t().symlink("l", "l").file("l/x", b""), |r| *r == Refusal::LinkNowhere),
        ("l/x", t().symlink("l", "nothing").file("l/x", b""), |r| *r == Refusal::LinkNowhere),
        ("evil", t().hard_link("evil", "../outside/secret"), |r| *r == Refusal::DotDot),
        ("evil", t().hard_link("evil", "/etc/passwd"), |r| *r == Refusal::Absolute),
        ("evil", t().symlink("o", "../outside").hard_link("evil", "o/secret"), |r| {
            *r == Refusal::LinkEscape
        }),
        ("evil", t().hard_link("evil", "none"), |r| *r == Refusal::HardLinkMissing),
        ("evil", t().dir("d").hard_link("evil", "d"), |r| matches!(r, Refusal::HardLinkTarget(_))),
        ("evil", t().file(".wh.w", b"").hard_link("evil", "w"), |r| {
            matches!(r, Refusal::HardLinkTarget(_))
        }),
        ("me", t().file("me", b"").hard_link("me", "me"), |r| {
            matches!(r, Refusal::HardLinkTarget(_))
        }),
        ("f/x", t().file("f", b"").file("f/x", b""), |r| *r == Refusal::ParentNotDirectory),
        ("./", t().file("./", b"").symlink("./", "/"), |r| *r == Refusal::RootNotDirectory),
        (".wh.", t().file(".wh.", b""), |r| *r == Refusal::EmptyWhiteout),
        ("d/.wh...", t().file("d/.wh...", b""), |r| *r == Refusal::EmptyWhiteout),
        ("dev/evil", devices(true, 8, 0), |r| matches!(r, Refusal::Device { .. })),
        ("dev/evil", devices(false, 1, 1), |r| matches!(r, Refusal::Device { .. })),
        ("dev/evil", devices(false, 0, 0), |r| matches!(r, Refusal::Device { .. })),
        ("odd", t().with(EntryType::new(b'V'), b"odd", b"", b"", |_| {}), |r| {
            *r == Refusal::UnknownType('V')
        }),
        ("huge", t().with(EntryType::Regular, b"huge", b"", b"", |h| h.set_size(1 << 62)), |r| {
            matches!(r, Refusal::TooLarge(_))
        }),
        ("uid", t().with(EntryType::Regular, b"uid", b"", b"", |h| h.set_uid(0xffff_ffff)), |r| {
            *r == Refusal::Owner
        }),
        ("link", t().symlink("link", ""), |r| matches!(r, Refusal::BadName(_))),
    ];
    for (entry, tar, expected) in table {
        let cell_now = Cell::new();
        let (reason, named) = refused(&cell_now, &tar.end());
        assert!(expected(&reason), "{entry}: {reason:?}");
        assert_eq!(named, printable(entry.as_bytes()), "{reason:?}");
        cell_now.assert_contained();
    }
    cell.assert_contained();
}

#[test]
fn long_and_deep_names_are_refused() {
    for name in ["x".repeat(256), "long-component/".repeat(280), "d/".repeat(257)] {
        let cell = Cell::new();
        let (reason, _) = refused(&cell, &Tar::default().file(&name, b"").end());
        assert!(matches!(reason, Refusal::BadName(_) | Refusal::TooDeep(_)), "{reason:?}");
        cell.assert_contained();
    }
}

#[test]
fn counts_and_sizes_are_bounded() {
    let limits = Limits { max_entries: 10, max_bytes: 100_000, ..Limits::default() };
    let mut many = Tar::default();
    for n in 0..11 {
        many = many.file(&format!("f{n}"), b"");
    }
    let error = Cell::new().unpack_with(&many.end(), &limits).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("f10") && text.contains("more than 10 entries"), "{text}");

    let big = Tar::default().file("a", b"").file("big", &[1; 200_000]).end();
    let error = Cell::new().unpack_with(&big, &limits).unwrap_err();
    assert!(error.to_string().contains("\"big\""), "{error}");
    let sum = Tar::default().file("a", &[1; 60_000]).file("b", &[1; 60_000]).end();
    let error = Cell::new().unpack_with(&sum, &limits).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("\"b\"") && text.contains("100000 bytes"), "{text}");
}

#[test]
fn a_bomb_goes_off_early_and_costs_nothing() {
    let mut header = Header::new_gnu();
    header.set_size(64 << 30);
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let limits = Limits { ratio_from: 16 << 20, ..Limits::default() };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut zstd = zstd::Encoder::new(Vec::new(), 3).unwrap();
    for out in [&mut gzip as &mut dyn Write, &mut zstd] {
        out.write_all(header.as_bytes()).unwrap();
        for _ in 0..64 {
            out.write_all(&vec![0; 1 << 20]).unwrap();
        }
    }
    for blob in [gzip.finish().unwrap(), zstd.finish().unwrap()] {
        let cell = Cell::new();
        match cell.unpack_with(&blob, &limits) {
            Err(UnpackError::Refused { entry, reason }) => {
                assert_eq!((entry.as_str(), reason), ("\"bomb\"", Refusal::Bomb(400)));
            }
            other => panic!("{other:?}"),
        }
        use std::os::unix::fs::MetadataExt;
        let blocks = std::fs::metadata(cell.path("bomb")).unwrap().blocks();
        assert_eq!(blocks, 0);
    }
}

#[test]
fn extension_headers_cannot_eat_memory() {
    for kind in [b'L', b'K', b'x'] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(1 << 40);
        header.set_cksum();
        let tar = Tar::default().raw(&header, b"").end();
        let error = Cell::new().unpack(&tar).unwrap_err();
        assert!(matches!(error, UnpackError::Malformed { .. }), "{error}");
    }
}

#[test]
fn damage_is_reported_with_the_last_entry() {
    let good = Tar::default().file("first", &[7; 2000]).file("second", &[8; 2000]).end();
    for cut in [100, 600, 3000, 4000] {
        let error = Cell::new().unpack(&good[..cut]).unwrap_err();
        assert!(matches!(error, UnpackError::Malformed { .. }), "{cut}: {error}");
    }
    let mut flipped = good.clone();
    flipped[512 + 2048 + 3] ^= 0x20;
    let text = Cell::new().unpack(&flipped).unwrap_err().to_string();
    assert!(text.contains("\"first\"") && text.contains("checksum"), "{text}");

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&good).unwrap();
    let gzip = gzip.finish().unwrap();
    assert!(Cell::new().unpack(&gzip[..gzip.len() - 9]).is_err());
}

#[test]
fn a_cancel_stops_it() {
    let cancel = Cancel::default();
    cancel.cancel();
    let cell = Cell::new();
    let tar = Tar::default().file("a", b"").end();
    let result = unpack(&tar[..], &cell.path(""), &Limits::default(), &cancel, &|_| {});
    assert!(matches!(result, Err(UnpackError::Cancelled)));
}
