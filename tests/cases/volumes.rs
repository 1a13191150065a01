//! `-v`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use bulkhead_tests::turn::shared;
use bulkhead_tests::{Background, bulkhead, guest, program, small};
use tempfile::TempDir;

/// A directory of a file system that can be id-mapped.
fn directory() -> TempDir {
    let scratch = Path::new("/run/host/disk/tmp");
    let parent = if scratch.is_dir() { scratch } else { Path::new("/var/tmp") };
    tempfile::Builder::new().prefix("volume").tempdir_in(parent).unwrap()
}

fn mount(host: &Path, guest: &str) -> String {
    format!("{}:{guest}", host.display())
}

#[test]
fn both_sides_see_what_the_other_writes_and_who_owns_it() {
    let _turn = shared();
    let host = directory();
    let at = |name: &str| host.path().join(name);
    fs::write(at("from-host"), "host\n").unwrap();
    chown(at("from-host"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(at("from-host"), fs::Permissions::from_mode(0o640)).unwrap();
    let idle = Background::idle(&["-v", &mount(host.path(), "/v")]);
    let script = "stat -c '%u %g %a' /v/from-host; cat /v/from-host; echo guest > /v/by-root; \
                  mkdir /v/dir; ln /v/by-root /v/dir/link; chmod 4711 /v/by-root; \
                  echo x > /v/given; chown 1000:29 /v/given; mkdir -m 777 /v/open; sync";
    assert_eq!(idle.exec(script).ok(), "1000 1001 640\nhost");
    let by_root = fs::metadata(at("by-root")).unwrap();
    assert_eq!((by_root.uid(), by_root.gid(), by_root.nlink()), (0, 0, 2));
    assert_eq!(by_root.mode() & 0o7777, 0o4711);
    assert_eq!(by_root.ino(), fs::metadata(at("dir/link")).unwrap().ino());
    assert_eq!(fs::read_to_string(at("by-root")).unwrap(), "guest\n");
    let given = fs::metadata(at("given")).unwrap();
    assert_eq!((given.uid(), given.gid()), (1000, 29));
    // Ordinary users are themselves, and no more.
    let app = |script: &str| bulkhead(&["exec", "-u", "app", &idle.id, "sh", "-c", script]);
    app("echo app > /v/open/by-app").ok();
    let by_app = fs::metadata(at("open/by-app")).unwrap();
    assert_eq!((by_app.uid(), by_app.gid()), (1000, 1001));
    assert!(app("echo x >> /v/dir/link").expect(1).stderr.contains("ermission denied"));
    assert!(app("rm -f /v/from-host").expect(1).stderr.contains("ermission denied"));
    // Changes on the host are seen at once, new files and new contents.
    fs::write(at("later"), "1\n").unwrap();
    assert_eq!(idle.exec("cat /v/later").ok(), "1");
    fs::write(at("later"), "changed\n").unwrap();
    assert_eq!(idle.exec("cat /v/later").ok(), "changed");
    fs::remove_file(at("later")).unwrap();
    idle.exec("cat /v/later").expect(1);
    // A device node would be a way to the host's devices.
    idle.exec("mknod /v/disk b 8 0").expect(1);
    assert!(!at("disk").exists());
}

#[test]
fn a_read_only_volume_refuses_every_change() {
    let _turn = shared();
    let host = directory();
    fs::write(host.path().join("file"), "old\n").unwrap();
    let script = "cat /v/file; for c in 'echo new > /v/file' 'rm /v/file' 'touch /v/new' \
                  'chmod 777 /v/file' 'mkdir /v/d' 'mv /v/file /v/g' 'ln /v/file /v/h'; do \
                  sh -c \"$c\" 2>&1 | grep -c 'Read-only file system'; done; \
                  mount -o remount,rw /v 2>&1 | grep -c 'denied\\|permitted'";
    let text = guest(&["-v", &format!("{}:ro", mount(host.path(), "/v"))], script).expect(0).text();
    assert_eq!(text, "old\n1\n1\n1\n1\n1\n1\n1\n1\n");
    assert_eq!(fs::read_to_string(host.path().join("file")).unwrap(), "old\n");
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 1);
}

#[test]
fn single_files_nested_mounts_and_missing_sources() {
    let _turn = shared();
    let host = directory();
    let (file, outer, inner) =
        (host.path().join("file"), host.path().join("outer"), host.path().join("new/inner"));
    fs::write(&file, "one file\n").unwrap();
    fs::create_dir(&outer).unwrap();
    fs::write(outer.join("mark"), "outer\n").unwrap();
    let options = [
        "-v",
        &mount(&inner, "/data/deep/inner"),
        "-v",
        &mount(&outer, "/data"),
        "-v",
        &mount(&file, "/etc/os-release"),
    ];
    let script = "cat /etc/os-release; echo more >> /etc/os-release; cat /data/mark; \
                  echo i > /data/deep/inner/made; ls /data";
    let text = guest(&options, script).ok();
    assert_eq!(text, "one file\nouter\ndeep\nmark");
    assert_eq!(fs::read_to_string(&file).unwrap(), "one file\nmore\n");
    assert_eq!(fs::read_to_string(inner.join("made")).unwrap(), "i\n");
}

#[test]
fn symbolic_links_never_lead_to_the_hosts_files() {
    let _turn = shared();
    let host = directory();
    let secret = host.path().join("secret");
    fs::write(&secret, "of the host\n").unwrap();
    let shared_dir = host.path().join("shared");
    fs::create_dir(&shared_dir).unwrap();
    symlink(&secret, shared_dir.join("absolute")).unwrap();
    symlink("../secret", shared_dir.join("relative")).unwrap();
    symlink("../../../../../../etc/second-layer", shared_dir.join("up")).unwrap();
    symlink("/etc/second-layer", shared_dir.join("image")).unwrap();
    let script = "cat /v/absolute /v/relative 2>&1 | grep -c 'No such file'; cat /v/up /v/image; \
                  ls -a /v/..; rm -f /v/relative; echo gone > /v/absolute";
    let text = guest(&["-v", &mount(&shared_dir, "/v")], script).expect(1).text();
    assert!(text.starts_with("2\nyes\nyes\n"), "{text}");
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host\n");
    assert!(shared_dir.join("relative").symlink_metadata().is_err());
}

#[test]
fn what_cannot_be_shared_is_told() {
    let _turn = shared();
    let options = |volume: &str| bulkhead(&["run", "--rm", "-v", volume, small(), "true"]);
    options("/dev/null:/x").fails_saying(125, &["/dev/null", "only directories and regular files"]);
    options("name:/x").expect(125);
    options("/tmp:relative").expect(125);
    let twice = directory();
    let volume = mount(twice.path(), "/x");
    bulkhead(&["run", "--rm", "-v", &volume, "-v", &volume, small(), "true"])
        .fails_saying(125, &["/x"]);
    // The test host's own root is an overlay.
    let root = program::script("stat -f -c %T /").ok();
    if root == "overlayfs" {
        options("/usr:/x").fails_saying(125, &["/usr", "on an overlay"]);
    }
}
