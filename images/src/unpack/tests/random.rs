//! Random layers: never a panic, never a change outside.

use proptest::prelude::*;

use super::*;

/// Few names, so that entries get in each other's way.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        6 => prop::sample::select(vec!["a", "b", "c", "d"]),
        1 => prop::sample::select(vec!["..", ".", "", "outside", "secret", "layer"]),
        2 => prop::sample::select(vec![".wh.a", ".wh.b", ".wh..wh..opq", ".wh."]),
    ];
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").into_bytes())
}

fn kind() -> impl Strategy<Value = u8> {
    prop::sample::select(b"0012223455671346L".to_vec())
}

fn entry() -> impl Strategy<Value = (u8, Vec<u8>, Vec<u8>, Vec<u8>, u32)> {
    let link = prop_oneof![
        3 => name(),
        1 => Just(b"/".to_vec()),
        1 => Just(b"../outside".to_vec()),
        1 => Just(b"../../outside/secret".to_vec()),
    ];
    let data = prop::collection::vec(any::<u8>(), 0..40);
    (kind(), name(), link, data, 0..10u32)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_entries_stay_inside(entries in prop::collection::vec(entry(), 1..25)) {
        let cell = Cell::new();
        let mut tar = Tar::default();
        for (kind, name, link, data, minor) in entries {
            tar = tar.with(EntryType::new(kind), &name, &link, &data, |header| {
                if kind == b'3' {
                    header.set_device_major(1).unwrap();
                    header.set_device_minor(minor).unwrap();
                }
            });
        }
        let _ = cell.unpack(&tar.end());
        cell.assert_contained();
    }

    #[test]
    fn single_refusals_do_not_hide_the_rest(entries in prop::collection::vec(entry(), 1..25)) {
        // Entry by entry, so that a refusal early in the list does not keep
        // the later ones from being tried in what the earlier left.
        let cell = Cell::new();
        let mut tree = tree::Tree::open(&cell.path("")).unwrap();
        for (kind, name, link, data, _) in entries {
            let bytes = Tar::default()
                .with(EntryType::new(kind), &name, &link, &data, |_| {})
                .end();
            let mut reader = tar::TarReader::new(&bytes[..]);
            let limits = Limits::default();
            if let Ok(Some(entry)) = reader.next_entry()
                && let Ok(name) = EntryName::parse(&entry.path, &limits)
            {
                let link = EntryName::parse(&entry.link, &limits).ok();
                let _ = tree.apply(&name, link.as_ref(), &entry, &mut reader);
            }
        }
        let _ = tree.finish();
        cell.assert_contained();
    }

    #[test]
    fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        let cell = Cell::new();
        let _ = cell.unpack(&data);
        cell.assert_contained();
    }

    #[test]
    fn flipped_bytes_never_panic(
        at in 0usize..6000,
        value: u8,
        fix_checksums: bool,
    ) {
        let mut bytes = Tar::default()
            .pax(&[("path", b"a/b"), ("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"),
                   ("GNU.sparse.realsize", b"9000")])
            .file("a", b"1\n0\n4\n")
            .with(EntryType::GNUSparse, b"s", b"", &[1; 512], |header| {
                let gnu = header.as_gnu_mut().unwrap();
                gnu.set_real_size(4096);
                gnu.sparse[0].set_offset(1024);
                gnu.sparse[0].set_length(512);
            })
            .file("b", &[5; 600])
            .end();
        let at = at % bytes.len();
        bytes[at] = value;
        if fix_checksums {
            let block = at / 512 * 512;
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[block..block + 512]);
            header.set_cksum();
            bytes[block..block + 512].copy_from_slice(header.as_bytes());
        }
        let cell = Cell::new();
        let _ = cell.unpack(&bytes);
        cell.assert_contained();
    }
}
