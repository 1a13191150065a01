use std::path::Path;

use super::*;

fn bundle(spec: Value) -> (tempfile::TempDir, Result<Bundle, BundleError>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    std::fs::write(dir.path().join("data"), "x").unwrap();
    std::fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
    let bundle = Bundle::load(dir.path());
    (dir, bundle)
}

fn spec(more: &Value) -> Value {
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

fn plan(more: &Value) -> Result<Plan, BundleError> {
    let (_dir, bundle) = bundle(spec(more));
    Plan::new("c1", &bundle.unwrap(), false, &|_| None)
}

#[test]
fn bind_mounts_become_shares() {
    let plan = plan(&json!({"mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "source": "data", "options": ["bind", "ro"]},
    ]}))
    .unwrap();
    assert_eq!(plan.shares.len(), 2);
    assert!(plan.shares[1].read_only && plan.shares[1].source.ends_with("data"));
    assert_eq!(plan.spec["mounts"][1]["source"], "live/m1");
    let binds: Vec<_> = plan.binds().map(|(share, to)| (share.name.as_str(), to)).collect();
    assert_eq!(binds, [("m1", "/data")]);
    assert_eq!(plan.sources["live/m1"], "live/m1");
    assert_eq!(plan.spec["mounts"][0]["source"], "proc");
}

#[test]
fn what_the_host_cannot_do_is_named() {
    let cases = [
        (
            json!({"mounts": [{"destination": "/a", "source": "/no/such", "options": ["bind"]}]}),
            "mounts[/a]",
        ),
        (
            json!({"linux": {"namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}]}}),
            "linux.namespaces",
        ),
        (json!({"linux": {"cgroupsPath": "/a/../b"}}), "linux.cgroupsPath"),
        (
            json!({"linux": {"resources": {"memory": {"limit": 4096}}}}),
            "linux.resources.memory.limit",
        ),
    ];
    for (more, name) in cases {
        let error = plan(&more).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn limits_shape_machine_and_cgroup() {
    let plan = plan(&json!({"linux": {"cgroupsPath": "/a/b", "resources": {
        "memory": {"limit": 67_108_864},
        "cpu": {"quota": 150_000, "period": 100_000, "shares": 1024, "cpus": "0-1"},
        "unified": {"io.weight": "default 10", "memory.high": "1"},
    }}}))
    .unwrap();
    assert_eq!((plan.shape.memory_mib, plan.shape.vcpus), (129, 2));
    assert_eq!(plan.cgroup, Path::new("/sys/fs/cgroup/a/b"));
    let value = |file: &str| {
        let found = plan.cgroup_limits.iter().find(|(name, _)| name == file);
        found.map(|(_, value)| value.as_str())
    };
    assert_eq!(value("cpu.weight"), Some("39"));
    assert_eq!((value("cpuset.cpus"), value("io.weight")), (Some("0-1"), Some("default 10")));
    assert_eq!((value("cpu.max"), value("memory.high")), (Some("150000 100000"), None));
}

#[test]
fn a_scope_is_made_of_path_and_annotations() {
    let scope = |more: &Value| {
        let (_dir, bundle) = bundle(spec(more));
        Plan::new("c1", &bundle.unwrap(), true, &|_| None)
    };
    let plan = scope(&json!({
        "linux": {"cgroupsPath": "machine.slice:libpod:c1"},
        "annotations": {"org.systemd.property.TimeoutStopSec": "5"},
    }));
    let plan = plan.unwrap();
    assert_eq!(plan.cgroup, Path::new("/sys/fs/cgroup/machine.slice/libpod-c1.scope"));
    let Manager::Systemd(unit) = &plan.manager else { panic!("{:?}", plan.manager) };
    assert_eq!((unit.properties.len(), unit.properties[0].name.as_str()), (1, "TimeoutStopUSec"));
    let back: Plan = serde_json::from_value(serde_json::to_value(&plan).unwrap()).unwrap();
    assert_eq!(back, plan);
    for (more, name) in [
        (json!({"linux": {"cgroupsPath": "/a/b"}}), "linux.cgroupsPath"),
        (
            json!({"annotations": {"org.systemd.property.Slice": "x"}}),
            "annotations[org.systemd.property.Slice]",
        ),
    ] {
        let error = scope(&more).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn the_guest_gets_only_its_own_hooks() {
    let hooks = json!({"prestart": [{"path": "/a"}], "startContainer": [{"path": "/b"}]});
    let plan = plan(&json!({ "hooks": hooks })).unwrap();
    assert_eq!(plan.spec["hooks"], json!({"startContainer": [{"path": "/b"}]}));
}

#[test]
fn an_update_grows_the_machine_and_never_shrinks_it() {
    use super::resources::{Update, updated};
    let limits = json!({"memory": {"limit": 67_108_864}});
    let mut plan = plan(&json!({"linux": {"resources": limits}})).unwrap();
    plan.max_vcpus = 4;
    let present = plan.shape;
    assert_eq!((present.memory_mib, present.vcpus), (129, 1));
    let update = |plan: &Plan, present: &Shape, resources: Value| {
        let Update { settings, size } = updated(plan, present, &resources, 6)?;
        assert!(settings.iter().all(|(file, _)| file != "memory.max"), "{settings:?}");
        Ok::<_, BundleError>(size.map(|size| (size.memory_mib, size.vcpus)))
    };
    let memory = |mib: i64| json!({"memory": {"limit": mib << 20}});
    let cpus = |count: i64| json!({"cpu": {"quota": count * 100_000}});
    assert_eq!(update(&plan, &present, memory(32)).unwrap(), None);
    // 200 MiB want 267: two blocks of 128 MiB more.
    assert_eq!(update(&plan, &present, memory(200)).unwrap(), Some((385, 1)));
    assert_eq!(update(&plan, &present, cpus(3)).unwrap(), Some((129, 3)));
    assert_eq!(update(&plan, &present, cpus(-1)).unwrap(), None);
    let error = update(&plan, &present, cpus(5)).unwrap_err().to_string();
    assert!(error.contains("cpu.quota") && error.contains("room for 4"), "{error}");
    // More than the host has is as much as it has.
    plan.max_vcpus = 6;
    assert_eq!(update(&plan, &present, cpus(20)).unwrap(), Some((129, 6)));
    let grown = present.resized(protocol::machine::Size { memory_mib: 385, vcpus: 6 });
    assert!(grown.host_memory_max > present.host_memory_max + (256 << 20));
    assert_eq!(update(&plan, &grown, memory(200)).unwrap(), None);
    assert_eq!(update(&plan, &grown, cpus(1)).unwrap(), None);
    plan.machine = Some("other".into());
    assert_eq!(update(&plan, &present, memory(4096)).unwrap(), None);
}
