//! A specification in, a plan or a named field out.

use protocol::agent::Stdio;
use serde_json::{Value, json};

use super::*;

fn create(change: impl FnOnce(&mut Value)) -> Create {
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 1000, "gid": 1000, "additionalGids": [5]},
            "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        },
        "root": {"path": "ignored", "readonly": true},
        "hostname": "box",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"},
                {"type": "network", "path": "/var/run/netns/x"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore"],
        },
    });
    change(&mut spec);
    Create {
        container: "c".into(),
        rootfs: Rootfs::Share { path: "private/root".into() },
        volumes: Vec::new(),
        sources: BTreeMap::new(),
        spec,
        stdio: Stdio::default(),
        descriptors: Vec::new(),
        state: serde_json::Value::Null,
        files: vec![SeedFile { path: "/etc/hosts".into(), contents: String::new() }],
        apparmor: Vec::new(),
    }
}

#[test]
fn a_plan_holds_what_the_specification_says() {
    let (plan, _) = Plan::new(&create(|_| {})).unwrap();
    assert!(plan.root_readonly);
    assert_eq!(plan.hostname.as_deref(), Some("box"));
    assert_eq!(plan.process.capabilities.bounding, ["CAP_KILL"]);
    assert_eq!(plan.process.rlimits, [(libc::RLIMIT_NOFILE, 1, 2)]);
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
    assert_eq!(plan.namespaces.clone, flags as u64);
    assert_eq!(plan.namespaces.unshare, libc::CLONE_NEWCGROUP as u64);
    assert!(plan.namespaces.join.is_empty(), "the machine's network is the container's");
    assert_eq!(plan.files.len(), 1);
}

#[test]
fn a_plan_travels_to_its_role() {
    let (plan, _) = Plan::new(&create(|_| {})).unwrap();
    let json = serde_json::to_string(&plan).unwrap();
    let again: Plan = serde_json::from_str(&json).unwrap();
    assert_eq!(json, serde_json::to_string(&again).unwrap());
}

type Change = fn(&mut Value);

#[test]
fn a_field_that_is_not_honoured_is_named() {
    let cases: [(&str, Change); 16] = [
        ("process.apparmorProfile", |s| s["process"]["apparmorProfile"] = json!("docker-default")),
        ("process.selinuxLabel", |s| s["process"]["selinuxLabel"] = json!("x")),
        ("process.args", |s| s["process"]["args"] = json!([])),
        ("process.cwd", |s| s["process"]["cwd"] = json!("tmp")),
        ("process.terminal", |s| s["process"]["terminal"] = json!(true)),
        ("process.ioPriority", |s| {
            s["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8})
        }),
        ("linux.intelRdt", |s| s["linux"]["intelRdt"] = json!({})),
        ("linux.mountLabel", |s| s["linux"]["mountLabel"] = json!("x")),
        ("linux.sysctl", |s| s["linux"]["sysctl"] = json!({"kernel.shmmax": "1"})),
        ("linux.sysctl", |s| s["linux"]["sysctl"] = json!({"net.../../vm": "1"})),
        ("linux.rootfsPropagation", |s| s["linux"]["rootfsPropagation"] = json!("upwards")),
        ("linux.uidMappings", |s| {
            s["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 1}])
        }),
        ("linux.namespaces", |s| s["linux"]["namespaces"] = json!([{"type": "pid"}])),
        ("hooks.startContainer", |s| s["hooks"] = json!({"startContainer": [{"path": "x"}]})),
        ("hooks.createContainer", |s| s["hooks"] = json!({"createContainer": [{"path": "/x"}]})),
        ("hostname", |s| s["linux"]["namespaces"] = json!([{"type": "mount"}])),
    ];
    for (name, change) in cases {
        let error = Plan::new(&create(change)).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
}

#[test]
fn sysctls_of_the_container_are_taken_in_both_spellings() {
    let change: Change = |s| {
        s["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "net/ipv4/conf/a.b/x": "2"});
    };
    let (plan, _) = Plan::new(&create(change)).unwrap();
    let paths: Vec<_> = plan.sysctl.keys().map(String::as_str).collect();
    assert_eq!(paths, ["net/ipv4/conf/a.b/x", "net/ipv4/ip_forward"]);
}

#[test]
fn a_share_stays_in_its_tree() {
    for path in ["", "/etc", "private/../../etc", "./x"] {
        assert!(share(path).is_err(), "{path}");
    }
    assert_eq!(share("private/x").unwrap(), std::path::Path::new(SHARES).join("private/x"));
}
