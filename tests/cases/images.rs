//! `load`, `import`, `images`, `rmi`.

use std::process::Command;

use bulkhead_tests::image::{self, busybox, write_small};
use bulkhead_tests::leaks::none;
use bulkhead_tests::program::{feed, script};
use bulkhead_tests::turn::{alone, shared};
use bulkhead_tests::{Background, bulkhead, guest, small};

#[test]
fn archives_of_docker_and_oci_are_loaded() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).display().to_string();
        write_small(&directory.path().join("layout"));
        for (kind, name) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar")] {
            let tag = if kind == "docker-archive" { "from-docker:e2e" } else { "from-oci:e2e" };
            let copy = format!(
                "skopeo copy -q --insecure-policy oci:{} {kind}:{}:{tag}",
                at("layout"),
                at(name)
            );
            script(&copy).ok();
            let said = bulkhead(&["load", "-q", "-i", &at(name), "--name", tag]).ok();
            assert!(said.lines().any(|line| line == format!("Loaded image: {tag}")), "{said}");
            let text = bulkhead(&[
                "run",
                "--rm",
                tag,
                "sh",
                "-c",
                "cat /etc/second-layer; echo $FROM_IMAGE",
            ]);
            assert_eq!(text.ok(), "yes\nimage");
        }
        // From standard input, with the names that the archive has.
        let mut command = Command::new("bulkhead");
        command.args(["load", "-q"]);
        let archive = Box::new(std::fs::File::open(at("docker.tar")).unwrap());
        let said = feed(command, archive).ok();
        assert!(said.contains("Loaded image: from-docker:e2e"), "{said}");
        bulkhead(&["rmi", "from-docker:e2e", "from-oci:e2e"]).ok();
    });
}

#[test]
fn a_root_file_system_is_imported() {
    let _turn = shared();
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("root.tar");
    std::fs::write(&archive, busybox()).unwrap();
    let id = bulkhead(&["import", "-q", archive.to_str().unwrap(), "imported:e2e"]).ok();
    assert!(id.starts_with("sha256:"), "{id}");
    let text = bulkhead(&["run", "--rm", "imported:e2e", "/bin/cat", "/etc/os-release"]).ok();
    assert!(text.contains("ID=small"), "{text}");
    bulkhead(&["run", "--rm", "imported:e2e"]).fails_saying(125, &["command"]);
    bulkhead(&["rmi", "imported:e2e"]).ok();
    bulkhead(&["rmi", "imported:e2e"]).fails_saying(1, &["imported:e2e"]);
}

#[test]
fn images_are_listed_and_removed_when_unused() {
    let _turn = shared();
    let directory = tempfile::tempdir().unwrap();
    write_small(directory.path());
    image::load(directory.path(), "listed:e2e");
    let table = bulkhead(&["images"]).ok();
    let line = table.lines().find(|line| line.starts_with("listed")).unwrap_or_default();
    assert_eq!(line.split_whitespace().nth(1), Some("e2e"), "{table}");
    let both = bulkhead(&["inspect", "listed:e2e", small()]).ok();
    let both: serde_json::Value = serde_json::from_str(&both).unwrap();
    assert_eq!(both[0]["Id"], both[1]["Id"], "the same content is one image");
    assert_eq!(both[0]["Layers"], both[1]["Layers"]);
    let id = both[0]["Id"].as_str().unwrap();
    let _idle = Background::idle(&[]);
    // Taking one of several names away is always possible.
    bulkhead(&["rmi", "listed:e2e"]).ok();
    bulkhead(&["rmi", id]).fails_saying(1, &["in use by a container"]);
    assert!(!bulkhead(&["images"]).ok().contains("listed"));
    bulkhead(&["inspect", "listed:e2e"])
        .fails_saying(1, &["no such container or image", "listed:e2e"]);
}
