//! A host with cgroup v1. `cargo xtask test` runs these cases where there is one, in a
//! test host of its own elsewhere.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::cgroup1::{file, found, hierarchies, of_process, within};
use bulkhead_tests::leaks;
use bulkhead_tests::program::{bulkhead, eventually};
use bulkhead_tests::systemd::Systemd;
use bulkhead_tests::{small, turn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::both;
use crate::engines::{IMAGE, Podman};

/// In which a process is found with either runtime.
const TREES: [&str; 8] =
    ["memory", "cpu", "cpuacct", "cpuset", "pids", "devices", "blkio", "name=systemd"];

const WAITS: &str = "echo up; while :; do sleep 0.1; done";

fn cgroup(bundle: &Bundle) -> PathBuf {
    Path::new("bulkhead-tests").join(&bundle.id)
}

both!(
    #[ignore = "needs a host with cgroup v1"]
    limits_are_files_of_each_tree,
    |runtime| {
        let ours = runtime == OURS;
        let mut bundle = Bundle::new(runtime, WAITS);
        let at = cgroup(&bundle);
        // The test host's first CPU runs no guest.
        bundle.config["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 50_000, "period": 100_000, "shares": 700, "cpus": "1"},
        });
        let pid = bundle.create();
        for tree in TREES {
            let path = of_process(pid, tree).unwrap_or_default();
            assert_eq!(path, format!("/{}", at.display()), "{tree}");
        }
        let memory = || file("memory", &at, "memory.limit_in_bytes").parse::<u64>().unwrap();
        let small = memory();
        // Ours holds what the machine needs beside its guest.
        assert!(small == 64 << 20 || (ours && small > 64 << 20), "{small}");
        assert_eq!(file("cpu", &at, "cpu.cfs_quota_us"), "50000");
        assert_eq!(file("cpu", &at, "cpu.cfs_period_us"), "100000");
        assert_eq!(file("cpu", &at, "cpu.shares"), "700");
        assert_eq!(file("cpuset", &at, "cpuset.cpus"), "1");
        assert_eq!(file("cpuset", &at, "cpuset.mems"), "0");
        if ours {
            assert_eq!(found(&at.join("machine")).len(), hierarchies().len());
            // KVM's kernel thread of the machine comes after it.
            let machine = file("memory", &at, "machine/cgroup.procs");
            let vmm = machine.lines().next().and_then(|line| line.parse().ok()).expect("the VMM");
            for tree in TREES {
                let path = of_process(vmm, tree).unwrap_or_default();
                assert_eq!(path, format!("/{}/machine", at.display()), "{tree}");
            }
            let spent = file("memory", &at, "machine/memory.usage_in_bytes");
            assert!(spent.parse::<u64>().unwrap() > 16 << 20, "{spent}");
        }
        bundle.verb(&["start", &bundle.id]).ok();
        eventually("its output", || bundle.output() == "up\n");
        assert_eq!(bundle.verb(&["exec", &bundle.id, "echo", "in"]).ok(), "in");
        let detached = bundle.file("exec");
        let words = ["exec", "-d", "--pid-file", &detached, &bundle.id, "sleep", "1000"];
        // Its stdio is the process' own for as long as that lives.
        let mut exec = bundle.command(&words);
        exec.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(exec.status().unwrap().success());
        let detached: i32 = std::fs::read_to_string(detached).unwrap().parse().unwrap();
        let listed = bundle.verb(&["ps", "--format", "json", &bundle.id]).ok();
        let listed: Vec<i32> = serde_json::from_str(&listed).unwrap();
        assert!(listed.contains(&pid) && listed.contains(&detached), "{listed:?}");

        let memory_and_cpu = ["--memory", "268435456", "--cpu-quota", "80000"];
        let rest = ["--cpu-share", "300", "--cpuset-cpus", "2", &bundle.id];
        bundle.verb(&[&["update"], &memory_and_cpu[..], &rest].concat()).ok();
        assert!(memory() >= 256 << 20, "{}", memory());
        assert_eq!(file("cpu", &at, "cpu.cfs_quota_us"), "80000");
        assert_eq!(file("cpu", &at, "cpu.shares"), "300");
        assert_eq!(file("cpuset", &at, "cpuset.cpus"), "2");
        if ours {
            assert_eq!(file("cpuset", &at, "machine/cpuset.cpus"), "2");
            let inside = ["exec", &bundle.id, "cat", "/sys/fs/cgroup/memory.max"];
            assert_eq!(bundle.verb(&inside).ok(), "268435456");
        }
        bundle.verb(&["update", "--cpu-quota", "-1", &bundle.id]).ok();
        assert_eq!(file("cpu", &at, "cpu.cfs_quota_us"), "-1");
        bundle.verb(&["delete", "--force", &bundle.id]).ok();
        assert_eq!(found(&at), Vec::<PathBuf>::new());
    }
);

both!(
    #[ignore = "needs a host with cgroup v1"]
    a_killed_process_leaves_nothing,
    |runtime| {
        let mut bundle = Bundle::new(runtime, WAITS);
        // Below that of whoever creates it.
        bundle.config["linux"]["cgroupsPath"] = json!(format!("bulkhead-tests/{}", bundle.id));
        let pid = bundle.create();
        bundle.verb(&["start", &bundle.id]).ok();
        assert!(!found(&cgroup(&bundle)).is_empty());
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("its end", || bundle.status() == "stopped");
        bundle.verb(&["delete", "--force", &bundle.id]).ok();
        assert_eq!(found(&cgroup(&bundle)), Vec::<PathBuf>::new());
        // A whole life, with an end of its own.
        bundle.config["process"]["args"] = json!(["sh", "-c", "exit 5"]);
        bundle.run().expect(5);
        assert_eq!(found(&cgroup(&bundle)), Vec::<PathBuf>::new());
    }
);

#[test]
#[ignore = "needs a host with cgroup v1"]
fn limits_of_cgroup_v2_are_the_guests_or_refused() {
    let _turn = turn::shared();
    let mut bundle = Bundle::new(OURS, "cat /sys/fs/cgroup/memory.high");
    let at = |bundle: &mut Bundle, unified: Value| {
        bundle.config["linux"]["resources"] = json!({ "unified": unified });
    };
    at(&mut bundle, json!({"io.weight": "default 50"}));
    let failed = bundle.verb(&["create", &bundle.id]);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.contains("linux.resources.unified"), "{}", failed.stderr);
    at(&mut bundle, json!({"memory.high": "33554432"}));
    assert_eq!(bundle.run().ok(), "33554432");
    assert_eq!(found(&cgroup(&bundle)), Vec::<PathBuf>::new());
}

#[test]
#[ignore = "needs a host with cgroup v1"]
fn bulkhead_run_is_limited_and_leaves_nothing() {
    let _turn = turn::alone();
    let told = bulkhead(&["doctor"]).expect(0).text();
    assert!(told.contains("cgroup v1") && told.contains(" memory"), "{told}");
    // What a first container makes for all others stays.
    let once = ["run", "--rm", small(), "true"];
    bulkhead(&once).ok();
    leaks::none(|| {
        let words = ["run", "-d", "--memory", "100m", "--cpus", "0.5", small(), "sleep", "1000"];
        let id = bulkhead(&words).ok();
        let at = Path::new("bulkhead").join(&id);
        let memory: u64 = file("memory", &at, "memory.limit_in_bytes").parse().unwrap();
        assert!((100 << 20..300 << 20).contains(&memory), "{memory}");
        assert_eq!(file("cpu", &at, "cpu.cfs_quota_us"), "50000");
        assert_eq!(file("pids", &at, "pids.max"), "256");
        assert_eq!(bulkhead(&["exec", &id, "echo", "in"]).ok(), "in");
        bulkhead(&["rm", "-f", &id]).ok();
        assert_eq!(found(&at), Vec::<PathBuf>::new());
        // Nobody is left to remove it but whoever looks next.
        let id = bulkhead(&["run", "-d", small(), "sleep", "1000"]).ok();
        let at = Path::new("bulkhead").join(&id);
        assert_eq!(found(&at).len(), hierarchies().len());
        // KVM's kernel thread of the machine comes after the VMM.
        let vmm = file("memory", &at, "cgroup.procs").lines().next().unwrap().to_owned();
        let status = std::fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
        let supervisor = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        kill(Pid::from_raw(supervisor.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
        eventually("its end", || bulkhead(&["ps", "-a"]).text().contains("Exited (137"));
        bulkhead(&["rm", "-f", &id]).ok();
        assert_eq!(found(&at), Vec::<PathBuf>::new());
    });
}

#[test]
#[ignore = "needs a host with cgroup v1"]
fn podman_and_its_pods() {
    let _turn = turn::shared();
    let podman = Podman::new();
    let once = ["run", "--rm", "--network", "none", "--memory", "64m", "--cpus", "0.5", IMAGE];
    let script = "uname -r; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; exit 4";
    let told = podman.run(&[&once[..], &["sh", "-c", script]].concat()).expect(4).text();
    assert!(told.contains("bulkhead\n67108864\n50000 100000\n"), "{told}");
    podman.run(&["pod", "create", "--name", "pod", "--network", "none"]).ok();
    let words = ["run", "-d", "--pod", "pod", "--name", "one", IMAGE, "sleep", "1000"];
    let id = podman.run(&words).ok();
    assert_eq!(podman.run(&["exec", "one", "echo", "in"]).ok(), "in");
    let inspect = ["inspect", "one", "--format", "{{.State.Pid}} {{.State.CgroupPath}}"];
    let told = podman.run(&inspect).ok();
    let (pid, path) = told.split_once(' ').expect("both");
    assert!(path.contains(&id), "{path}");
    for tree in TREES {
        assert_eq!(of_process(pid.parse().unwrap(), tree).as_deref(), Some(path), "{tree}");
    }
    podman.run(&["pod", "rm", "-f", "-t", "0", "pod"]).ok();
    assert_eq!(found(Path::new(path.trim_start_matches('/'))), Vec::<PathBuf>::new());
}

both!(
    #[ignore = "needs a host with cgroup v1"]
    a_scope_holds_the_container,
    |runtime| {
        let ours = runtime == OURS;
        let systemd = Systemd::start();
        let mut bundle = Bundle::new(runtime, WAITS);
        systemd.manages(&mut bundle);
        bundle.config["linux"]["cgroupsPath"] = json!(format!("e2e.slice:e2e:{}", bundle.id));
        bundle.config["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 50_000, "period": 100_000, "shares": 700},
        });
        let scope = format!("e2e-{}.scope", bundle.id);
        let at = systemd.below(&format!("e2e.slice/{scope}"));
        let pid = bundle.create();
        let memory: u64 = systemd.property(&scope, "MemoryLimit").parse().expect("a limit");
        assert!(memory == 64 << 20 || (ours && memory > 64 << 20), "{memory}");
        for (name, value) in
            [("ActiveState", "active"), ("CPUShares", "700"), ("CPUQuotaPerSecUSec", "500ms")]
        {
            assert_eq!(systemd.property(&scope, name), value, "{name}");
        }
        let of_pid = systemd.script(&format!("cat /proc/{pid}/cgroup")).ok();
        // runc's is seen in the slice's cgroup of devices.
        for tree in TREES.into_iter().filter(|tree| ours || *tree != "devices") {
            assert_eq!(within(&of_pid, tree), Some(&*format!("/e2e.slice/{scope}")), "{tree}");
        }
        bundle.verb(&["start", &bundle.id]).ok();
        eventually("its output", || bundle.output() == "up\n");
        bundle.verb(&["update", "--cpu-share", "300", &bundle.id]).ok();
        assert_eq!(systemd.property(&scope, "CPUShares"), "300");
        // What it was not told of, it would write over now.
        systemd.script("systemctl daemon-reload").ok();
        systemd.script(&format!("systemctl set-property --runtime {scope} CPUShares=400")).ok();
        assert_eq!(file("cpu", &at, "cpu.shares"), "400");
        assert_eq!(file("cpu", &at, "cpu.cfs_quota_us"), "50000");
        assert_eq!(file("memory", &at, "memory.limit_in_bytes"), memory.to_string());
        assert_eq!(bundle.verb(&["exec", &bundle.id, "echo", "in"]).ok(), "in");
        bundle.verb(&["delete", "--force", &bundle.id]).ok();
        assert_eq!(systemd.property(&scope, "LoadState"), "not-found");
        assert_eq!(found(&at), Vec::<PathBuf>::new());
    }
);
