//! `--systemd-cgroup`: runc's docs/systemd.md, with a systemd of the case's own.

use std::path::Path;
use std::process::Command;

use bulkhead_tests::bundle::{Bundle, OURS, RUNC};
use bulkhead_tests::program::{eventually, run};
use bulkhead_tests::systemd::Systemd;
use bulkhead_tests::turn::shared;
use serde_json::json;

use super::both;
use crate::engines::{IMAGE, Podman};

/// A bundle in the scope `e2e-ID.scope` of `e2e-pod.slice`; the scope, and its cgroup.
fn in_scope(systemd: &Systemd, runtime: &'static str, script: &str) -> (Bundle, String, String) {
    let mut bundle = Bundle::new(runtime, script);
    systemd.manages(&mut bundle);
    bundle.config["linux"]["cgroupsPath"] = json!(format!("e2e-pod.slice:e2e:{}", bundle.id));
    let scope = format!("e2e-{}.scope", bundle.id);
    let cgroup = format!("e2e.slice/e2e-pod.slice/{scope}");
    (bundle, scope, cgroup)
}

fn forgotten(systemd: &Systemd, scope: &str, cgroup: &str) -> bool {
    !systemd.cgroup(cgroup).exists() && systemd.property(scope, "LoadState") == "not-found"
}

both!(a_scope_holds_the_container, |runtime| {
    let systemd = Systemd::start();
    let script = "echo up; while :; do sleep 0.1; done";
    let (mut bundle, scope, cgroup) = in_scope(&systemd, runtime, script);
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 67_108_864},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"},
    });
    bundle.config["annotations"] = json!({
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.TimeoutStopSec": "uint32 77",
    });
    let pid = bundle.create();
    assert_eq!(bundle.status(), "created");
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "e2e-pod.slice"),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("CPUWeight", "20"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("AllowedCPUs", "0"),
        ("CollectMode", "inactive-or-failed"),
        ("TimeoutStopUSec", "1min 17s"),
    ] {
        assert_eq!(systemd.property(&scope, name), value, "{name}");
    }
    let memory: u64 = systemd.property(&scope, "MemoryMax").parse().expect("a limit");
    // Ours holds what the machine needs beside its guest.
    let enough = memory == 67_108_864 || (runtime == OURS && memory > 67_108_864);
    assert!(enough, "{memory}");
    let file = |name: &str| {
        let text = std::fs::read_to_string(systemd.cgroup(&cgroup).join(name));
        text.unwrap_or_else(|error| panic!("{name}: {error}")).trim_end().to_owned()
    };
    assert_eq!(file("memory.max"), memory.to_string());
    assert_eq!((file("cpu.weight"), file("cpu.max")), ("20".into(), "50000 100000".into()));
    let of_pid = systemd.script(&format!("cat /proc/{pid}/cgroup")).ok();
    assert_eq!(of_pid, format!("0::/{cgroup}"));

    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its output", || bundle.output() == "up\n");
    bundle.verb(&["update", "--cpu-share", "1024", &bundle.id]).ok();
    assert_eq!(systemd.property(&scope, "CPUWeight"), "39");
    // What it was not told of, it would write over now.
    systemd.script("systemctl daemon-reload").ok();
    systemd.script(&format!("systemctl set-property --runtime {scope} CPUWeight=40")).ok();
    assert_eq!((file("cpu.weight"), file("cpu.max")), ("40".into(), "50000 100000".into()));
    assert_eq!(file("memory.max"), memory.to_string());
    assert_eq!(bundle.verb(&["exec", &bundle.id, "echo", "in"]).ok(), "in");
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
    assert!(forgotten(&systemd, &scope, &cgroup));
    assert!(bundle.verb(&["delete", &bundle.id]).stderr.contains("does not exist"));
});

both!(scopes_that_ended_badly_are_no_obstacle, |runtime| {
    let systemd = Systemd::start();
    let (bundle, scope, cgroup) = in_scope(&systemd, runtime, "sleep 1000");
    // runc 1.1 takes a failed scope for its own, and goes on outside of it; later ones
    // forget it first, as ours does.
    if runtime == OURS {
        let fails = "systemd-run --scope -p RuntimeMaxSec=1 --unit";
        systemd.script(&format!("{fails} {scope} sleep 1000 || true")).ok();
        assert_eq!(systemd.property(&scope, "ActiveState"), "failed");
    }
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    assert_eq!(systemd.property(&scope, "ActiveState"), "active");
    // Its process on the host is killed, and nobody deletes it.
    systemd.script(&format!("kill -KILL {pid}")).ok();
    eventually("the scope's end", || forgotten(&systemd, &scope, &cgroup));
    eventually("its end", || bundle.status() == "stopped");
    bundle.verb(&["delete", &bundle.id]).ok();
    // It runs, and is deleted by force.
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
    assert!(forgotten(&systemd, &scope, &cgroup));
});

both!(paths_and_their_defaults, |runtime| {
    let systemd = Systemd::start();
    let mut bundle = Bundle::new(runtime, "exit 5");
    systemd.manages(&mut bundle);
    for wrong in ["/a/b", "a:b:c", "e2e.slice::e2e-x.slice"] {
        bundle.config["linux"]["cgroupsPath"] = json!(wrong);
        let failed = bundle.verb(&["create", &bundle.id]);
        assert_eq!(failed.status, 1, "{wrong}");
        assert!(runtime == RUNC || failed.stderr.contains("linux.cgroupsPath"), "{wrong}");
        assert_eq!(bundle.verb(&["list", "-q"]).ok(), "");
    }
    bundle.config["annotations"] = json!({"org.systemd.property.CollectMode": "unquoted"});
    bundle.config["linux"]["cgroupsPath"] = json!("");
    let failed = bundle.verb(&["create", &bundle.id]);
    assert!(failed.status == 1 && failed.stderr.contains("CollectMode"), "{}", failed.stderr);
    bundle.config["annotations"] = json!({});
    let prefix = if runtime == OURS { "bulkhead" } else { "runc" };
    let scope = format!("{prefix}-{}.scope", bundle.id);
    bundle.create();
    assert_eq!(systemd.property(&scope, "Slice"), "system.slice");
    bundle.verb(&["delete", &bundle.id]).ok();
    let cgroup = format!("system.slice/{scope}");
    assert!(forgotten(&systemd, &scope, &cgroup));
    // In the foreground, to its end.
    assert_eq!(bundle.run().status, 5);
    assert!(forgotten(&systemd, &scope, &cgroup));
    // Without a bus there is a word for it. (runc takes another way then.)
    if runtime == OURS {
        systemd.script("systemctl stop dbus.socket dbus.service").ok();
        let failed = bundle.verb(&["create", &bundle.id]);
        assert!(failed.status == 1 && failed.stderr.contains("system bus"), "{}", failed.stderr);
    }
});

#[test]
fn a_scope_of_somebody_else_is_left_alone() {
    let _turn = shared();
    let systemd = Systemd::start();
    let (bundle, scope, _) = in_scope(&systemd, OURS, "sleep 1000");
    // In another slice, so that its cgroup does not give it away.
    let run = format!("systemd-run --scope --unit {scope} sleep 1000 >/dev/null 2>&1 &");
    systemd.script(&run).ok();
    eventually("the scope", || systemd.property(&scope, "ActiveState") == "active");
    let failed = bundle.verb(&["create", &bundle.id]);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.contains(&scope), "{}", failed.stderr);
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
    assert_eq!(systemd.property(&scope, "ActiveState"), "active");
}

#[test]
fn podman_with_its_own_manager() {
    let _turn = shared();
    let systemd = Systemd::start();
    let podman = Podman::beside(systemd.words(Path::new("/")));
    let once = ["run", "--rm", "--network", "none", "--memory", "64m", IMAGE];
    let told = podman.run(&[&once[..], &["sh", "-c", "uname -r; exit 4"]].concat());
    assert!(told.expect(4).text().contains("bulkhead"));
    let name = ["pod", "create", "--name", "pod", "--network", "none"];
    podman.run(&name).ok();
    let words = ["run", "-d", "--pod", "pod", "--name", "one", IMAGE, "sleep", "1000"];
    let id = podman.run(&words).ok();
    let scope = format!("libpod-{id}.scope");
    assert_eq!(systemd.property(&scope, "ActiveState"), "active");
    let slice = systemd.property(&scope, "Slice");
    assert!(slice.starts_with("machine-libpod_pod_"), "{slice}");
    assert_eq!(podman.run(&["exec", "one", "echo", "in"]).ok(), "in");
    podman.run(&["stats", "--no-stream", "one"]).ok();
    podman.run(&["pod", "rm", "-f", "-t", "0", "pod"]).ok();
    eventually("the scope's end", || systemd.property(&scope, "LoadState") == "not-found");
    let mut left = Command::new("find");
    left.arg(systemd.cgroup("machine.slice")).args(["-name", "libpod-*"]);
    assert_eq!(run(left).text(), "");
}
