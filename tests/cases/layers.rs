//! What layers mean, seen from inside the guest.

use bulkhead_tests::image::debian;
use bulkhead_tests::oci::Recipe;
use bulkhead_tests::tarball::{Entry, layer};
use bulkhead_tests::turn::shared;
use bulkhead_tests::{bulkhead, image};

const NAME: &str = "layers:e2e";

/// Three layers on top of Debian.
fn build() {
    let long = format!("s/{}/{}", "d".repeat(120), "f".repeat(200));
    let bottom = layer(&[
        Entry::dir("s"),
        Entry::file("s/deleted", "x"),
        Entry::file("s/replaced", "old"),
        Entry::dir("s/became-file"),
        Entry::file("s/became-file/inner", "x"),
        Entry::dir("s/opaque"),
        Entry::file("s/opaque/old", "x"),
        Entry::dir("s/opaque/sub"),
        Entry::file("s/opaque/sub/old", "x"),
        Entry::dir("s/merged"),
        Entry::file("s/merged/low", "low"),
        Entry::dir("s/gone"),
        Entry::file("s/gone/inner", "x"),
        Entry::file("s/one", "linked"),
        Entry::hard_link("s/two", "s/one"),
        Entry::program("s/setuid", "#!").mode(0o6755).owner(33, 34),
        Entry::file("s/owned", "x").mode(0o640).owner(1234, 65_534),
        Entry::file("s/attribute", "x")
            .attribute("user.comment", "kept")
            .attribute("trusted.x", "dropped"),
        Entry::fifo("s/pipe"),
        Entry::device("s/null", 1, 3),
        Entry::symlink("s/link", "merged/low"),
        Entry::symlink("s/dangling", "/no/such/file"),
        Entry::dir(&format!("s/{}", "d".repeat(120))),
        Entry::file(&long, "long name"),
        Entry::file("s/caf\u{e9} \n newline", "odd name"),
    ]);
    let middle = layer(&[
        Entry::file("s/.wh.deleted", ""),
        Entry::file("s/.wh.gone", ""),
        Entry::file("s/replaced", "new"),
        Entry::file("s/.wh.became-file", ""),
        Entry::file("s/became-file", "now a file"),
        Entry::dir("s/opaque"),
        Entry::file("s/opaque/.wh..wh..opq", ""),
        Entry::file("s/opaque/new", "x"),
        Entry::dir("s/merged").mode(0o700).owner(7, 8),
        Entry::file("s/merged/high", "high"),
    ]);
    let top = layer(&[
        // What was deleted comes back, with nothing of what was there.
        Entry::dir("s/gone"),
        Entry::file("s/gone/fresh", "x"),
        Entry::file("s/opaque/newer", "x"),
    ]);
    let sparse = sparse_layer();
    let directory = tempfile::tempdir().unwrap();
    debian();
    Recipe {
        base: Some(image::debian_layout()),
        layers: vec![bottom, middle, top, sparse],
        ..Recipe::default()
    }
    .write(directory.path());
    image::load(directory.path(), NAME);
}

/// A file of 64 MiB with 4 KiB in its middle, as GNU tar writes it.
fn sparse_layer() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {} && mkdir s && truncate -s 64M s/sparse && \
         printf middle | dd of=s/sparse bs=1 seek=32M conv=notrunc status=none && \
         tar --sparse --format=gnu -cf layer.tar s/sparse",
        directory.path().display()
    );
    bulkhead_tests::script(&script).ok();
    std::fs::read(directory.path().join("layer.tar")).unwrap()
}

/// Prints one `name value` line for each fact.
const LOOK: &str = r#"
import os, stat
os.chdir("/s")
def fact(name, value): print(name, value)
for name in ("deleted", "gone/inner", "opaque/old", "opaque/sub", "became-file/inner"):
    fact(name, os.path.lexists(name))
for name in ("replaced", "became-file", "link", "merged/low", "merged/high"):
    fact(name, open(name).read())
fact("opaque", ",".join(sorted(os.listdir("opaque"))))
fact("gone", ",".join(os.listdir("gone")))
fact("dangling", os.readlink("dangling"))
one, two = os.stat("one"), os.stat("two")
fact("links", (one.st_ino == two.st_ino, one.st_nlink))
for name in ("setuid", "owned", "merged", "pipe"):
    s = os.lstat(name)
    fact(name, (oct(s.st_mode), s.st_uid, s.st_gid))
fact("xattr", os.listxattr("attribute"))
fact("comment", os.getxattr("attribute", "user.comment"))
s = os.lstat("null")
fact("null", (stat.S_ISCHR(s.st_mode), os.major(s.st_rdev), os.minor(s.st_rdev)) if os.path.lexists("null") else None)
s = os.stat("sparse")
fact("sparse", (s.st_size, s.st_blocks < 1024))
f = open("sparse", "rb"); f.seek(32 << 20); fact("middle", f.read(8))
fact("long", open("d" * 120 + "/" + "f" * 200).read())
fact("odd", open("caf\u00e9 \n newline").read())
# The writable layer: copied up, and deleted from.
open("replaced", "a").write("er"); fact("copied", open("replaced").read())
# A merged directory is moved by copying: overlayfs gives EXDEV, as on any host.
os.system("mv merged moved"); fact("moved", ",".join(sorted(os.listdir("moved"))))
fact("merged", os.path.lexists("merged"))
fact("mtime", int(os.stat("owned").st_mtime))
"#;

#[test]
fn every_kind_of_entry_is_right_inside_the_guest() {
    let _turn = shared();
    build();
    let text = bulkhead(&["run", "--rm", NAME, "python3", "-c", LOOK]).ok();
    bulkhead(&["rmi", NAME]).ok();
    let facts: Vec<&str> = text.lines().collect();
    for fact in [
        "deleted False",
        "gone/inner False",
        "opaque/old False",
        "opaque/sub False",
        "became-file/inner False",
        "replaced new",
        "became-file now a file",
        "link low",
        "merged/low low",
        "merged/high high",
        "opaque new,newer",
        "gone fresh",
        "dangling /no/such/file",
        "links (True, 2)",
        "setuid ('0o106755', 33, 34)",
        "owned ('0o100640', 1234, 65534)",
        "merged ('0o40700', 7, 8)",
        "pipe ('0o10644', 0, 0)",
        "xattr ['user.comment']",
        "comment b'kept'",
        "null (True, 1, 3)",
        "sparse (67108864, True)",
        "middle b'middle\\x00\\x00'",
        "long long name",
        "odd odd name",
        "copied newer",
        "moved high,low",
        "merged False",
        "mtime 1700000000",
    ] {
        assert!(facts.contains(&fact), "{fact:?} in: {text}");
    }
}
