//! `update` beyond what a container was started with.

use std::path::Path;

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::turn;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::both;

/// A container of 64 MiB and half a CPU that waits.
fn small(runtime: &'static str) -> Bundle {
    let mut bundle = Bundle::new(runtime, "while :; do sleep 1; done");
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": 50_000, "period": 100_000},
    });
    bundle
}

/// A process of the container that has so much memory for itself.
#[track_caller]
fn takes(bundle: &Bundle, mib: u32) -> bool {
    let size = format!("bs={mib}M");
    let words = ["dd", "if=/dev/zero", "of=/dev/null", &size, "count=1"];
    bundle.verb(&[&["exec", &bundle.id][..], &words].concat()).status == 0
}

fn update(bundle: &Bundle, mib: u64, quota: &str) {
    let memory = (mib << 20).to_string();
    bundle.verb(&["update", "--memory", &memory, "--cpu-quota", quota, &bundle.id]).ok();
}

fn read(bundle: &Bundle, file: &str) -> String {
    bundle.verb(&["exec", &bundle.id, "cat", &format!("/sys/fs/cgroup/{file}")]).ok()
}

fn processors(bundle: &Bundle) -> String {
    bundle.verb(&["exec", &bundle.id, "nproc"]).ok()
}

both!(an_update_gives_more_than_it_was_started_with, |runtime| {
    let bundle = small(runtime);
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    let ours = runtime == OURS;
    if ours {
        assert_eq!(processors(&bundle), "1");
    }
    assert!(!takes(&bundle, 150), "150 MiB of 64");

    update(&bundle, 256, "200000");
    assert_eq!(read(&bundle, "memory.max"), "268435456");
    assert_eq!(read(&bundle, "cpu.max"), "200000 100000");
    assert!(takes(&bundle, 150), "150 MiB of 256");
    if ours {
        assert_eq!(processors(&bundle), "2");
        bundle.verb(&["exec", &bundle.id, "taskset", "2", "true"]).ok();
    }

    // Once more, by a file; and what is written by way of that memory is what arrives.
    let resources = json!({"memory": {"limit": 512 << 20}});
    std::fs::write(bundle.file("resources"), resources.to_string()).unwrap();
    bundle.verb(&["update", "-r", &bundle.file("resources"), &bundle.id]).ok();
    assert!(takes(&bundle, 300), "300 MiB of 512");
    let script = "dd if=/dev/urandom of=/data bs=1M count=3 2>/dev/null && sha256sum </data";
    let inside = bundle.verb(&["exec", &bundle.id, "sh", "-c", script]).ok();
    let outside = Sha256::digest(std::fs::read(bundle.path().join("rootfs/data")).unwrap());
    assert_eq!(inside.split(' ').next(), Some(&*format!("{outside:x}")));

    // Less is a limit as any other.
    update(&bundle, 64, "50000");
    assert!(!takes(&bundle, 150), "150 MiB of 64 again");
    assert_eq!(read(&bundle, "cpu.max"), "50000 100000");
    update(&bundle, 256, "-1");
    assert!(takes(&bundle, 150), "150 MiB of 256 again");
    assert_eq!(bundle.status(), "running");
});

both!(a_container_that_was_not_started_yet_grows, |runtime| {
    let mut bundle = small(runtime);
    let script = "dd if=/dev/zero of=/dev/null bs=150M count=1 2>/dev/null; echo $?";
    bundle.config["process"]["args"] = json!(["sh", "-c", script]);
    bundle.create();
    update(&bundle, 256, "100000");
    bundle.verb(&["start", &bundle.id]).ok();
    bulkhead_tests::program::eventually("its process", || bundle.output() == "0\n");
});

#[test]
fn more_than_the_host_has_is_refused_by_its_amount() {
    let _turn = turn::shared();
    let bundle = small(OURS);
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    let cgroup = Path::new("/sys/fs/cgroup/bulkhead-tests").join(&bundle.id);
    let limit = || std::fs::read_to_string(cgroup.join("memory.max")).unwrap();
    let before = limit();
    let memory = (512u64 << 30).to_string();
    let failed = bundle.verb(&["update", "--memory", &memory, &bundle.id]);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.contains("MiB available"), "{}", failed.stderr);
    assert_eq!(failed.stderr.lines().count(), 1, "{}", failed.stderr);
    assert_eq!(limit(), before);
    assert_eq!(read(&bundle, "memory.max"), "67108864");
    update(&bundle, 128, "50000");
    assert_ne!(limit(), before);
}

#[test]
fn a_guest_cannot_take_a_cpu_that_it_was_not_given() {
    let _turn = turn::shared();
    let mut bundle = small(OURS);
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        }
    }
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    let online = "/sys/devices/system/cpu/cpu1/online";
    let script = format!("cat {online} && ! echo 1 2>/dev/null >{online}; nproc");
    let said = bundle.verb(&["exec", &bundle.id, "sh", "-c", &script]).ok();
    assert_eq!(said, "0\n1");
    // What it tried does not keep the host from giving it.
    update(&bundle, 64, "200000");
    assert_eq!(processors(&bundle), "2");
}
