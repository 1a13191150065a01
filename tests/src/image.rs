//! The images that cases run.

use std::path::{Path, PathBuf};
use std::sync::Once;

use serde_json::json;

use crate::bulkhead;
use crate::oci::Recipe;
use crate::tarball::{Entry, layer};

const SMALL: &str = "small:e2e";
const DEBIAN: &str = "debian:e2e";

/// The OCI layout of the Debian image that `cargo xtask image` built.
///
/// # Panics
/// When the suite is not started by `cargo xtask test`, which tells it.
pub fn debian_layout() -> PathBuf {
    let path = std::env::var_os("BULKHEAD_TEST_IMAGE");
    path.expect("BULKHEAD_TEST_IMAGE names an OCI layout: start the suite by `cargo xtask test`")
        .into()
}

/// A Debian with Python, loaded once per run of the suite.
pub fn debian() -> &'static str {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| load(&debian_layout(), DEBIAN));
    DEBIAN
}

/// An image of busybox in two layers, loaded once per run of the suite.
pub fn small() -> &'static str {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let directory = tempfile::tempdir().expect("a directory");
        write_small(directory.path());
        load(directory.path(), SMALL);
    });
    SMALL
}

/// Loads a layout as `name`.
#[track_caller]
pub fn load(layout: &Path, name: &str) {
    let path = layout.to_str().expect("a plain path");
    bulkhead(&["load", "-q", path, "--name", name]).ok();
}

/// Writes the layout of the small image.
pub fn write_small(layout: &Path) {
    let recipe = Recipe {
        layers: vec![busybox(), layer(&[Entry::file("etc/second-layer", "yes\n")])],
        config: json!({
            "Env": ["PATH=/bin", "FROM_IMAGE=image"],
            "Cmd": ["sh"],
        }),
        ..Recipe::default()
    };
    recipe.write(layout);
}

/// The bottom layer of the small image.
pub fn busybox() -> Vec<u8> {
    busybox_and(Vec::new())
}

/// The same with more in it.
pub fn busybox_and(more: Vec<Entry>) -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut entries = vec![
        Entry::dir("bin"),
        Entry::program("bin/busybox", program),
        Entry::dir("etc"),
        Entry::file("etc/os-release", "ID=small\nNAME=\"Small image\"\n"),
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:an app:/home/app:/bin/sh\n",
        ),
        Entry::file("etc/group", "root:x:0:\napp:x:1001:\naudio:x:29:app\n"),
        Entry::file("etc/not-executable", "#!/bin/sh\n"),
        Entry::dir("home"),
        Entry::dir("home/app").owner(1000, 1001),
        Entry::dir("root").mode(0o700),
        Entry::dir("tmp").mode(0o1777),
    ];
    let applets = std::process::Command::new("/bin/busybox").arg("--list").output();
    let applets = String::from_utf8(applets.expect("busybox runs").stdout).expect("names");
    let applets = applets.lines().filter(|name| *name != "busybox");
    entries.extend(applets.map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")));
    entries.extend(more);
    layer(&entries)
}
