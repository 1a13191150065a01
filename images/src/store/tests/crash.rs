//! Processes that die, and disks that are full. The dying is done by this
//! test program itself, started again for a single ignored test.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

const DIR: &str = "BULKHEAD_TEST_DIR";

fn child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("store::tests::crash::{test}"))
        .env(DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn many_files() -> Vec<Vec<u8>> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for n in 0..3_000 {
        append(&mut tar, &format!("dir{}/file{n}", n % 50), b"content");
    }
    vec![layer(&[("base", b"1")]), tar.into_inner().unwrap()]
}

/// Not a test of its own: loads until it is killed.
#[test]
#[ignore = "the child of a_killed_load_leaves_a_good_store"]
fn child_load() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let store = Store::open(dir.join("store")).unwrap();
    let archive = dir.join("x.tar");
    store.load(&archive, &LoadOptions::default(), &()).unwrap();
}

#[test]
fn a_killed_load_leaves_a_good_store() {
    let bench = Bench::new();
    let archive = bench.docker("x.tar", &["x:1"], &many_files());
    let tmp = bench.store.root().join("tmp");
    // Into the copy, into the unpack, and later into it.
    for wanted in ["blob", "layer", "layer/dir0/file500"] {
        let mut child = child("child_load", bench.dir.path());
        let deadline = Instant::now() + Duration::from_secs(60);
        let there = || {
            let list = fs::read_dir(&tmp).unwrap();
            list.flatten().any(|entry| entry.path().join(wanted).exists())
        };
        while !there() && Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();

        let store = Store::open(bench.store.root()).unwrap();
        assert_eq!((bench.count("tmp"), bench.count("leases")), (0, 0), "{wanted}");
        for image in store.list().unwrap() {
            // The child was quicker than the kill: then it is complete.
            assert_eq!(fs::read_dir(&image.layers[1]).unwrap().count(), 50);
        }
        store.remove("x:1", true, &HashSet::new()).ok();
        store.collect().unwrap();
        bench.assert_empty();
    }
    let image = bench.load(&archive).remove(0);
    assert_eq!(fs::read_dir(&image.layers[1]).unwrap().count(), 50);
}

#[test]
fn scratch_of_the_living_is_left_alone() {
    let bench = Bench::new();
    let living = bench.store.scratch().unwrap();
    fs::write(living.path().join("work"), b"").unwrap();
    let dead = bench.store.root().join("tmp/1-2-3/layer/deep");
    fs::create_dir_all(&dead).unwrap();
    Store::open(bench.store.root()).unwrap();
    assert!(living.path().join("work").exists());
    assert!(!dead.exists());
    drop(living);
    assert_eq!(bench.count("tmp"), 0);
}

#[test]
fn a_lease_keeps_what_it_names() {
    let bench = Bench::new();
    let mut lease = bench.store.lease().unwrap();
    let kept = Digest::of(b"kept");
    lease.extend([&kept]).unwrap();
    bench.store.put_blob(b"kept").unwrap();
    bench.store.put_blob(b"lost").unwrap();
    bench.store.collect().unwrap();
    assert_eq!(bench.store.blob_size(&kept), Some(4));
    assert_eq!(bench.count("blobs/sha256"), 1);
    drop(lease);
    bench.store.collect().unwrap();
    bench.assert_empty();
}

/// Not a test of its own: runs in a mount namespace that dies with it.
#[test]
#[ignore = "the child of a_full_disk_is_said_to_be_full"]
fn child_full_disk() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).unwrap();
    let small = dir.join("small");
    fs::create_dir(&small).unwrap();
    let size = Some("size=2m");
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let store = Store::open(small.join("store")).unwrap();
    let options = LoadOptions::default();
    let error = store.load(&dir.join("x.tar"), &options, &()).unwrap_err();
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text += &source.to_string();
    }
    let left: Vec<_> = ["tmp", "blobs/sha256", "layers"]
        .iter()
        .flat_map(|part| fs::read_dir(store.root().join(part)).unwrap())
        .collect();
    fs::write(dir.join("result"), format!("{text} left={}", left.len())).unwrap();
}

#[test]
fn a_full_disk_is_said_to_be_full() {
    let noise: Vec<u8> = (0..600_000u32).flat_map(|n| n.to_le_bytes()).collect();
    // 2.4 MB do not fit as a blob; 1.2 MB do not fit a second time, unpacked.
    for (size, entry) in [(2_400_000, ""), (1_200_000, "\"noise\"")] {
        let bench = Bench::new();
        let layer = layer(&[("noise", &noise[..size])]);
        bench.docker("x.tar", &["x:1"], &[layer]);
        let status = child("child_full_disk", bench.dir.path()).wait().unwrap();
        assert!(status.success());
        let text = fs::read_to_string(bench.path("result")).unwrap();
        assert!(text.contains("the disk is full"), "{text}");
        assert!(text.contains(entry) && text.ends_with("left=0"), "{text}");
    }
}
