//! What fails says what, where and what to do, within a bounded time, and
//! leaves nothing.

use std::fs;
use std::process::Command;
use std::time::Duration;

use bulkhead_tests::leaks::none;
use bulkhead_tests::program::script;
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Finished, bulkhead, guest, image, run, small};

fn with(variable: &str, value: &str) -> Finished {
    let mut command = Command::new("bulkhead");
    command.args(["run", "--rm", small(), "true"]).env(variable, value);
    run(command)
}

#[test]
fn missing_and_broken_parts_are_named() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let start = std::time::Instant::now();
        with("BULKHEAD_KERNEL", "/no/vmlinux")
            .fails_saying(125, &["guest kernel", "/no/vmlinux", "make build", "BULKHEAD_KERNEL"]);
        with("BULKHEAD_INITRD", "/no/initramfs").fails_saying(125, &["initramfs", "/no/initramfs"]);
        with("BULKHEAD_VMM", "/no/vmm").fails_saying(125, &["VMM", "/no/vmm", "BULKHEAD_VMM"]);
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        fs::write(path("garbage"), "this is no kernel").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("cut"), &fs::read("/bin/busybox").unwrap()[..100]).unwrap();
        for kernel in ["garbage", "empty", "cut"] {
            let words = ["cannot load the guest kernel", "uncompressed x86-64 ELF"];
            with("BULKHEAD_KERNEL", &path(kernel)).fails_saying(125, &words);
        }
        with("BULKHEAD_VMM", &path("garbage")).fails_saying(125, &["cannot execute the VMM"]);
        bulkhead(&["run", "--rm", "127.0.0.1:9/no/such:image"])
            .fails_saying(125, &["cannot reach the registry 127.0.0.1:9"]);
        bulkhead(&["run", "--rm", "--pull", "never", "no-such-image"])
            .fails_saying(125, &["no image", "no-such-image", "bulkhead pull"]);
        bulkhead(&["run", "--rm", "Not//An:Image:Name"]).expect(125);
        bulkhead(&["run", "--rm", "--memory", "1m", small(), "true"])
            .fails_saying(125, &["minimum memory limit"]);
        bulkhead(&["run", "--rm", "--memory", "900g", small(), "true"])
            .fails_saying(125, &["not enough memory", "--memory"]);
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    });
}

#[test]
fn a_host_without_kvm_or_cgroups_or_root_is_told() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let in_a_host_where = |change: &str| {
            script(&format!(
                "unshare -m sh -c '{change} && exec bulkhead run --rm {} true'",
                small()
            ))
        };
        // A /dev with everything else that is needed.
        let directory = tempfile::tempdir_in("/run").unwrap();
        let old = directory.path().display();
        let without_kvm = format!(
            "mount --bind /dev {old} && mount -t tmpfs none /dev && \
             for name in null urandom; do touch /dev/$name; mount --bind {old}/$name /dev/$name; done"
        );
        in_a_host_where(&without_kvm)
            .fails_saying(125, &["cannot open /dev/kvm", "bulkhead doctor"]);
        in_a_host_where("mount --bind /dev/null /dev/kvm").fails_saying(125, &["kvm"]);
        in_a_host_where("umount -l /sys/fs/cgroup")
            .fails_saying(125, &["/sys/fs/cgroup", "mount cgroup2"]);
        let ended = script(&format!(
            "setpriv --reuid 65534 --regid 65534 --clear-groups $(command -v bulkhead) run --rm {} true",
            small()
        ));
        ended.fails_saying(125, &["nobody", "subordinate ids", "sudo"]);
    });
}

#[test]
fn the_smallest_memory_runs_or_says_that_it_is_too_small() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let ended = guest(&["--memory", "6m"], "echo fits");
        assert!(ended.took < Duration::from_secs(60), "{:?}", ended.took);
        match ended.status {
            0 => assert_eq!(ended.ok(), "fits"),
            137 => assert!(ended.text().is_empty()),
            _ => drop(ended.fails_saying(125, &["memory"])),
        }
    });
}

#[test]
fn a_full_disk_is_told_and_nothing_is_kept() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path().join("layout");
        image::write_small(&layout);
        // A store of one megabyte; the image has two.
        let store = directory.path().join("store");
        let ended = script(&format!(
            "mkdir {store} && unshare -m sh -c 'mount -t tmpfs -o size=1m none {store} && \
             export BULKHEAD_LIB_DIR={store} && bulkhead load -q {layout} --name full:e2e; \
             status=$?; du -sk {store} | cut -f1; exit $status'",
            store = store.display(),
            layout = layout.display()
        ))
        .fails_saying(1, &["disk is full", "free some space"]);
        let kilobytes: u64 = ended.text().trim().parse().unwrap();
        assert!(kilobytes < 100, "{kilobytes} KiB were left");
    });
}

/// Fills the disk that its own files and its log are on, and waits for a bit of room.
const FILL: &str = "echo begun; dd if=/dev/zero of=/fill bs=1M 2>&1; echo dd $?; \
                    dd if=/dev/zero of=/fill bs=1M count=19 2>/dev/null; echo kept > /file; \
                    yes $(printf 'y%01000d' 0) | head -c 3000000; echo; \
                    while [ -e /file ]; do sleep 0.2; done; echo room; exit 6";

#[test]
fn a_disk_that_fills_up_under_a_running_container() {
    let _turn = alone();
    guest(&[], "true").ok();
    none(|| {
        let directory = tempfile::tempdir().unwrap();
        let (layout, store) = (directory.path().join("layout"), directory.path().join("store"));
        image::write_small(&layout);
        fs::create_dir(&store).unwrap();
        // The store is a disk of 24 MiB. The container may end before the exec that lets it.
        let script = "mount -t tmpfs -o size=24m none $0; export BULKHEAD_LIB_DIR=$0 FILL=\"$2\"
            free() { df -k --output=avail $0 | tail -1; }
            bulkhead load -q $1 --name full:e2e >/dev/null; before=$(free)
            name=$(bulkhead run -d full:e2e sh -c \"$2\")
            until [ $(free) -eq 0 ] && bulkhead logs $name | grep -q ^y; do sleep 0.3; done
            bulkhead ps | grep -c Up; bulkhead exec $name cat /file
            bulkhead exec $name sh -c 'echo x > /new' || echo exec $?
            bulkhead exec $name rm -f /new /fill /file || true
            until bulkhead ps -a | grep -q Exited; do sleep 0.3; done
            bulkhead logs $name | grep -v ^y; bulkhead inspect $name | grep ExitCode
            bulkhead rm $name >/dev/null; [ $(free) -eq $before ] && echo all is free";
        let mut shell = Command::new("unshare");
        shell.args(["-m", "bash", "-euc", script]).args([&store, &layout]).arg(FILL);
        let ended = run(shell).expect(0);
        let text = ended.text();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[..3], ["1", "kept", "exec 1"], "{text} {}", ended.stderr);
        assert_eq!(lines[3], "begun", "{text}");
        assert!(lines[4].ends_with("No space left on device"), "{text}");
        assert!(lines[7..].starts_with(&["dd 1"]), "{text}");
        // What the log lost is said where it is missing.
        assert!(lines[8].ends_with(" bytes are missing here]"), "{text}");
        assert!(lines.ends_with(&["room", "\"ExitCode\": 6,", "all is free"]), "{text}");
    });
}

#[test]
fn doctor_checks_the_host() {
    let _turn = alone();
    let ended = bulkhead(&["doctor"]).expect(0);
    let text = ended.text();
    for word in ["KVM", "cgroup", "id-mapped", "memory"] {
        assert!(text.to_lowercase().contains(&word.to_lowercase()), "{word}: {text}");
    }
    let ended = script("unshare -m sh -c 'mount -t tmpfs none /dev && exec bulkhead doctor'");
    assert_ne!(ended.status, 0);
    assert!(ended.text().contains("/dev/kvm"), "{}", ended.text());
}
