//! Images that mean harm, or are broken.

use std::fs;
use std::path::Path;

use bulkhead_tests::leaks::none;
use bulkhead_tests::oci::{Recipe, blob, compress, manifest};
use bulkhead_tests::tarball::{Entry, layer};
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Finished, bulkhead, guest, image};

fn load(layout: &Path) -> Finished {
    bulkhead(&["load", "-q", layout.to_str().unwrap(), "--name", "hostile:e2e"])
}

#[test]
fn hostile_layers_are_refused_by_the_entrys_name() {
    let _turn = alone();
    guest(&[], "true").ok();
    let outside = Path::new("/var/lib/bulkhead/escaped");
    let cases: [(&[Entry], &str, &str); 9] = [
        (&[Entry::file("../../../escaped", "x")], "escaped", "`..`"),
        (&[Entry::file("a/../../../../escaped", "x")], "escaped", "`..`"),
        (&[Entry::file("/var/lib/bulkhead/escaped", "x")], "escaped", "absolute"),
        (
            &[Entry::symlink("out", "/var/lib/bulkhead"), Entry::file("out/escaped", "x")],
            "out/escaped",
            "symbolic link",
        ),
        (
            &[Entry::symlink("out", "../../../.."), Entry::file("out/escaped", "x")],
            "out/escaped",
            "symbolic link",
        ),
        (&[Entry::hard_link("stolen", "../../../../../etc/shadow")], "stolen", "`..`"),
        (
            &[Entry::symlink("s", "/etc/shadow"), Entry::hard_link("stolen", "s/x")],
            "stolen",
            "symbolic link",
        ),
        (&[Entry::disk("dev/sda", 8, 0)], "dev/sda", "block device node 8:0"),
        (&[Entry::device("dev/mem", 1, 1)], "dev/mem", "character device node 1:1"),
    ];
    none(|| {
        for (entries, name, reason) in cases {
            let directory = tempfile::tempdir().unwrap();
            let recipe = Recipe { layers: vec![layer(entries)], ..Recipe::default() };
            recipe.write(directory.path());
            load(directory.path()).fails_saying(1, &[name, reason]);
            assert!(!outside.exists(), "{entries:?}");
        }
    });
}

#[test]
fn a_decompression_bomb_is_refused_by_the_entrys_name() {
    let _turn = alone();
    guest(&[], "true").ok();
    // Zeros without end: members of a gzip file follow each other. Two GiB of the eight that
    // the entry announces, in 2 MB.
    let mut entry = layer(&[Entry::file("bomb", "").announcing(8 << 30)]);
    entry.truncate(512);
    let well = flate2::Compression::best();
    let mut packed = compress(&entry, well);
    let zeros = compress(&vec![0; 32 << 20], well);
    (0..64).for_each(|_| packed.extend_from_slice(&zeros));
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let diff_id = format!("sha256:{}", "0".repeat(64));
        let recipe = Recipe { packed: vec![(packed, diff_id)], ..Recipe::default() };
        recipe.write(directory.path());
        let refused = load(directory.path()).fails_saying(1, &["bomb", "decompression bomb"]);
        assert!(refused.took < std::time::Duration::from_secs(90), "{:?}", refused.took);
    });
}

#[test]
fn broken_images_are_refused_and_nothing_is_kept() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path();
        let content = layer(&[Entry::file("file", "content")]);
        let recipe = Recipe { layers: vec![content], ..Recipe::default() };
        let fresh = || {
            fs::remove_dir_all(layout).unwrap();
            recipe.write(layout);
            manifest(layout)["layers"][0]["digest"].as_str().unwrap().to_owned()
        };
        let digest = fresh();
        let path = blob(layout, &digest);
        let mut bytes = fs::read(&path).unwrap();
        bytes[600] ^= 1;
        fs::write(&path, &bytes).unwrap();
        load(layout).fails_saying(1, &["corrupted", &digest]);
        let digest = fresh();
        fs::remove_file(blob(layout, &digest)).unwrap();
        load(layout).fails_saying(1, &["incomplete", digest.trim_start_matches("sha256:")]);
        fresh();
        fs::write(layout.join("index.json"), "{").unwrap();
        load(layout).fails_saying(1, &[layout.to_str().unwrap(), "not valid"]);
        load(Path::new("/no/such/layout")).fails_saying(1, &["/no/such/layout"]);
        load(Path::new("/usr/share")).fails_saying(1, &["/usr/share", "holds no image", "import"]);
    });
}

#[test]
fn a_damaged_store_is_noticed() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let recipe = Recipe { layers: vec![image::busybox()], ..Recipe::default() };
        recipe.write(directory.path());
        image::load(directory.path(), "damaged:e2e");
        let inspected = bulkhead(&["inspect", "damaged:e2e"]).ok();
        let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
        let layer = inspected[0]["Layers"][0].as_str().unwrap();
        let aside = format!("{layer}.aside");
        fs::rename(layer, &aside).unwrap();
        let ended = bulkhead(&["run", "--rm", "damaged:e2e", "true"]);
        fs::rename(&aside, layer).unwrap();
        ended.fails_saying(125, &["damaged", "load it again"]);
        bulkhead(&["rmi", "damaged:e2e"]).ok();
    });
}
