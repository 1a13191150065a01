//! Loading, finding and removing.

use super::*;
use crate::archive::ArchiveError;

fn in_use(images: &[&Image]) -> HashSet<Digest> {
    images.iter().map(|image| image.id.clone()).collect()
}

#[test]
fn a_docker_archive_becomes_an_image() {
    let bench = Bench::new();
    let layers = [layer(&[("etc/a", b"1")]), layer(&[("etc/b", b"22")])];
    let archive = bench.docker("x.tar", &["app:1", "ghcr.io/o/app:2"], &layers);
    let image = &bench.load(&archive)[0];
    assert_eq!(image.layers.len(), 2);
    assert_eq!(fs::read(image.layers[0].join("etc/a")).unwrap(), b"1");
    assert_eq!(fs::read(image.layers[1].join("etc/b")).unwrap(), b"22");
    assert_eq!(image.size, 3);
    assert_eq!(image.created.as_deref(), Some("2024-01-02T03:04:05Z"));
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_deref(), Some(&["/bin/true".to_owned()][..]));
    for name in ["app:1", "ghcr.io/o/app:2", image.id.short(), image.id.hex()] {
        assert_eq!(bench.store.resolve(name).unwrap().id, image.id);
    }
    let pinned = format!("app@{}", image.manifest_digest);
    assert_eq!(bench.store.resolve(&pinned).unwrap().id, image.id);
    assert!(matches!(bench.store.resolve("app:9"), Err(StoreError::NotFound { .. })));
    assert_eq!((bench.count("tmp"), bench.count("leases")), (0, 0));
}

#[test]
fn an_oci_layout_loads_as_directory_and_as_tar() {
    let bench = Bench::new();
    let dir = bench.path("layout");
    let layers = [layer(&[("a", b"1")]), layer(&[(".wh..wh..opq", b""), ("b", b"2")])];
    oci_layout(&dir, Some("app:7"), &layers);
    let image = &bench.load(&dir)[0];
    assert_eq!(image.references[0].familiar(), "app:7");
    // The opaque root of the upper layer hides the lower one.
    assert_eq!(image.layers.len(), 1);
    assert!(image.layers[0].join("b").exists());

    let mut tar = ::tar::Builder::new(Vec::new());
    tar.append_dir_all(".", &dir).unwrap();
    let tar = tar.into_inner().unwrap();
    fs::write(bench.path("plain.tar"), &tar).unwrap();
    fs::write(bench.path("packed.tar.zst"), zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    for name in ["plain.tar", "packed.tar.zst"] {
        let other = Bench::new();
        let loaded = other.load(&bench.path(name));
        assert_eq!(loaded[0].id, image.id);
    }
}

#[test]
fn a_bare_tag_names_nothing_and_a_name_can_be_given() {
    let bench = Bench::new();
    let dir = bench.path("layout");
    oci_layout(&dir, Some("latest"), &[layer(&[("a", b"1")])]);
    assert!(bench.load(&dir)[0].references.is_empty());
    let options = LoadOptions { name: Some("mine:1".parse().unwrap()), ..LoadOptions::default() };
    let loaded = bench.store.load(&dir, &options, &()).unwrap().remove(0);
    assert_eq!(loaded.image.references[0].familiar(), "mine:1");
    let image = bench.store.tag("mine:1", &"other:2".parse().unwrap()).unwrap();
    assert_eq!(image.references.len(), 2);
    // Only the names of this load are told, however many there are by now.
    let options = LoadOptions { name: Some("third".parse().unwrap()), ..options };
    let loaded = bench.store.load(&dir, &options, &()).unwrap().remove(0);
    assert_eq!(loaded.image.references.len(), 3);
    let names: Vec<_> = loaded.names.iter().map(Reference::familiar).collect();
    assert_eq!(names, ["third:latest"]);
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let bench = Bench::new();
    let tar = layer(&[("bin/sh", b"elf")]);
    fs::write(bench.path("root.tar.zst"), zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    let name = "mine".parse().unwrap();
    let options = LoadOptions::default();
    let path = bench.path("root.tar.zst");
    let image = bench.store.import_rootfs(&path, &name, None, &options, &()).unwrap();
    assert_eq!(fs::read(image.layers[0].join("bin/sh")).unwrap(), b"elf");
    assert_eq!(image.references, [name]);
    assert_eq!(image.layers[0], bench.store.layer_path(&Digest::of(&tar)));
}

#[test]
fn shared_layers_stay_until_the_last_image_goes() {
    let bench = Bench::new();
    let (base, top) = (layer(&[("base", b"1")]), layer(&[("top", b"2")]));
    let one = bench.docker("one.tar", &["one:1"], std::slice::from_ref(&base));
    let two = bench.docker("two.tar", &["two:1"], &[base.clone(), top.clone()]);
    let one = bench.load(&one).remove(0);
    let two = bench.load(&two).remove(0);
    assert_eq!(one.layers[0], two.layers[0]);
    assert_eq!(bench.count("layers"), 4);

    let used = in_use(&[&two]);
    let refused = bench.store.remove("two:1", false, &used);
    assert!(matches!(refused, Err(StoreError::InUse { .. })));
    let report = bench.store.remove("one:1", false, &used).unwrap();
    assert_eq!(report, ["Untagged: one:1".to_owned(), format!("Deleted: {}", one.id)]);
    assert!(two.layers.iter().all(|dir| dir.is_dir()));

    // By force the name goes, and what containers use stays.
    assert_eq!(bench.store.remove("two:1", true, &used).unwrap(), ["Untagged: two:1"]);
    let refused = bench.store.remove(two.id.short(), false, &used);
    assert!(matches!(refused, Err(StoreError::InUse { .. })));
    assert!(two.layers.iter().all(|dir| dir.is_dir()));
    let report = bench.store.remove(two.id.short(), false, &HashSet::new()).unwrap();
    assert_eq!(report, [format!("Deleted: {}", two.id)]);
    bench.assert_empty();
}

#[test]
fn names_are_removed_one_by_one() {
    let bench = Bench::new();
    let archive = bench.docker("x.tar", &["a:1", "b:1"], &[layer(&[("f", b"")])]);
    let image = bench.load(&archive).remove(0);
    let nobody = HashSet::new();
    let by_id = bench.store.remove(image.id.short(), false, &nobody);
    assert!(matches!(by_id, Err(StoreError::SeveralNames { .. })));
    assert_eq!(bench.store.remove("a:1", false, &nobody).unwrap(), ["Untagged: a:1"]);
    assert!(bench.store.resolve("b:1").is_ok());
    assert_eq!(bench.store.remove(image.id.short(), false, &nobody).unwrap().len(), 2);
    bench.assert_empty();
}

#[test]
fn bad_archives_say_what_is_wrong_and_leave_nothing() {
    let bench = Bench::new();
    let hostile = {
        let mut bytes = layer(&[("aaaaaaa", b"x")]);
        bytes[..7].copy_from_slice(b"../evil");
        let mut header = ::tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&bytes[..512]);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        bytes
    };
    let fine = layer(&[("fine", b"x")]);
    let broken = bench.path("broken");
    oci_layout(&broken, None, std::slice::from_ref(&fine));
    let blobs: Vec<_> = fs::read_dir(broken.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let gzip = |path: &&PathBuf| fs::read(path).unwrap().starts_with(&[0x1f, 0x8b]);
    let blob = blobs.iter().find(gzip).unwrap();
    let mut content = fs::read(blob).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(blob, content).unwrap();
    let corrupt_name = blob.file_name().unwrap().to_str().unwrap().to_owned();

    let mut cut = docker_archive(&["x:1"], std::slice::from_ref(&fine));
    cut.truncate(1800);
    fs::write(bench.path("cut.tar"), cut).unwrap();
    fs::write(bench.path("empty"), b"").unwrap();
    fs::write(bench.path("rootfs.tar"), &fine).unwrap();
    let mut missing = ::tar::Builder::new(Vec::new());
    let list = br#"[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]"#;
    append(&mut missing, "manifest.json", list);
    fs::write(bench.path("missing.tar"), missing.into_inner().unwrap()).unwrap();

    oci_layout(&bench.path("cut-index"), None, std::slice::from_ref(&fine));
    fs::write(bench.path("cut-index/index.json"), "{").unwrap();

    for (path, expected) in [
        (bench.path("cut-index"), "cannot use index.json in ".to_owned()),
        (bench.docker("h.tar", &["h:1"], &[fine.clone(), hostile]), "../evil".to_owned()),
        (broken, corrupt_name),
        (bench.path("cut.tar"), "cut.tar".to_owned()),
        (bench.path("empty"), "docker save".to_owned()),
        (bench.path("rootfs.tar"), "bulkhead import".to_owned()),
        (bench.path("missing.tar"), "c.json is missing".to_owned()),
        (bench.path("nowhere"), "nowhere".to_owned()),
    ] {
        let error = bench.store.load(&path, &LoadOptions::default(), &()).unwrap_err();
        let text = chain(&error);
        assert!(text.contains(&expected), "{text}");
        bench.assert_empty();
    }
}

fn chain(error: &ArchiveError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[test]
fn several_loads_at_once_share_the_work() {
    let bench = Bench::new();
    let layers: Vec<_> = (0..4).map(|n| layer(&[(&format!("f{n}"), &[n as u8; 50_000])])).collect();
    let archive = bench.docker("x.tar", &["x:1"], &layers);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // As another process would: with a handle of its own.
            let store = Store::open(bench.store.root()).unwrap();
            let archive = &archive;
            scope.spawn(move || store.load(archive, &LoadOptions::default(), &()).unwrap());
        }
    });
    assert_eq!(bench.store.list().unwrap().len(), 1);
    assert_eq!((bench.count("layers"), bench.count("tmp")), (8, 0));
}

#[test]
fn a_lost_layer_is_noticed_and_made_again() {
    let bench = Bench::new();
    let archive = bench.docker("x.tar", &["x:1"], &[layer(&[("f", b"1")])]);
    let image = bench.load(&archive).remove(0);
    fs::remove_file(image.layers[0].with_extension("json")).unwrap();
    assert!(matches!(bench.store.resolve("x:1"), Err(StoreError::Damaged { .. })));
    let again = bench.load(&archive).remove(0);
    assert!(again.layers[0].join("f").exists());
    assert_eq!(bench.count("tmp"), 0);
}
