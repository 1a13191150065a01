//! Containers in user namespaces: podman gives them ids of the host that are nobody's.

use std::os::unix::fs::{MetadataExt, chown};

use super::*;

const FIRST: u32 = 100_000;

#[test]
fn podman_maps_ids() {
    let _turn = shared();
    let podman = Podman::new();
    let volume = podman.place.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "x").unwrap();
    for path in [volume.clone(), volume.join("f")] {
        chown(path, Some(FIRST + 5), Some(FIRST + 6)).unwrap();
    }
    let owner = |name: &str| {
        let metadata = volume.join(name).metadata().unwrap();
        (metadata.uid(), metadata.gid())
    };
    let bind = format!("{}:/v", volume.display());
    let mapped = ["--network", "none", "--uidmap", "0:100000:65536", "-v", &bind];
    let script = "cat /proc/self/uid_map | tr -s ' '; stat -c %u:%g /bin/busybox /v/f; \
                  rm /bin/vi; touch /made /v/made; chown 8:9 /made; uname -r; \
                  while :; do sleep 1; done";
    let words = [&["run", "-d", "--name", "box"], &mapped[..], &[IMAGE, "sh", "-c", script]];
    podman.run(&words.concat()).ok();
    eventually("its output", || podman.run(&["logs", "box"]).text().contains("-bulkhead"));
    let told = podman.run(&["logs", "box"]).text();
    assert!(told.starts_with(" 0 100000 65536\n0:0\n5:6\n"), "{told}");
    assert_eq!(owner("made"), (FIRST, FIRST));
    let exec = |words: &[&str]| podman.run(&[&["exec"], words].concat());
    let script = "id -u; touch /v/theirs; stat -c %u:%g /made";
    let told = exec(&["--user", "5:6", "box", "sh", "-c", script]).ok();
    assert_eq!(told, "5\n8:9");
    assert_eq!(owner("theirs"), (FIRST + 5, FIRST + 6));
    let changes = podman.run(&["diff", "box"]).ok();
    assert!(changes.contains("A /made") && changes.contains("D /bin/vi"), "{changes}");
    podman.run(&["commit", "-q", "box", "changed"]).ok();
    podman.run(&["rm", "-f", "-t", "0", "box"]).ok();
    // Owners are as on the disk in there: podman 4.3 maps none of them back, whoever the
    // runtime is.
    let words = [&["run", "--rm"], &mapped[..], &["changed", "sh", "-c"]].concat();
    let script =
        "test -e /made && echo kept; test -e /bin/vi || echo gone; stat -c %u /bin/busybox";
    assert_eq!(podman.run(&[&words[..], &[script]].concat()).ok(), "kept\ngone\n0");
    let idmapped = format!("{bind}:idmap");
    let words = ["run", "--rm", "--network", "none", "--uidmap", "0:200000:200000"];
    let refused = podman.run(&[&words[..], &[IMAGE, "true"]].concat());
    assert!(refused.stderr.contains("uidMappings"), "{}", refused.stderr);
    chown(&volume, Some(0), Some(0)).unwrap();
    let words = ["run", "--rm", "--network", "none", "--uidmap", "0:300000:1000", "-v", &idmapped];
    podman.run(&[&words[..], &[IMAGE, "touch", "/v/mapped"]].concat()).ok();
    assert_eq!(owner("mapped"), (0, 0), "as they are in the container");
}

#[test]
fn podman_chooses_ids_and_pods_share_them() {
    let _turn = shared();
    let podman = Podman::new();
    let at = |name: &str| podman.place.path().join(name).display().to_string();
    std::fs::write(at("subids"), "containers:400000:200000\n").unwrap();
    // Seen by that podman alone: a host's /etc/subuid is not ours to change.
    let alone = |words: &[&str]| {
        let podman = podman.command("podman", words);
        let mut command = Command::new("unshare");
        let script =
            "for f in /etc/subuid /etc/subgid; do mount --bind \"$0\" $f; done; exec \"$@\"";
        command.args(["--mount", "sh", "-ec", script]).arg(at("subids"));
        command.arg(podman.get_program()).args(podman.get_args());
        command.envs(podman.get_envs().filter_map(|(key, value)| Some((key, value?))));
        run(command)
    };
    let script = "awk '{print $1, $2}' /proc/self/uid_map; id -u; touch /made && stat -c %u /made";
    let words = ["run", "--rm", "--network", "none", "--userns=auto", IMAGE, "sh", "-c", script];
    assert_eq!(alone(&words).ok(), "0 400000\n0\n0");

    let pod = ["pod", "create", "--name", "pod", "--network", "none", "--uidmap", "0:100000:65536"];
    podman.run(&pod).ok();
    let once =
        |script: &str| podman.run(&["run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", script]);
    let script = "awk '{print $1, $2}' /proc/self/uid_map; id -u; touch /made; stat -c %u:%g /made \
                  /dev/shm; echo kept > /dev/shm/f";
    assert_eq!(once(script).ok(), "0 100000\n0\n0:0\n0:0");
    assert_eq!(once("cat /dev/shm/f").ok(), "kept");
    podman.run(&["pod", "rm", "-f", "-t", "0", "pod"]).ok();
}
