use std::path::Path;

use super::*;
use crate::sandbox::ShareIds;
use crate::sandbox::ids::Mapping;

const HOST: Host = Host { systemd: false, version: Version::V2 };

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
    let namespaces = &mut spec["linux"]["namespaces"];
    let network = json!({"type": "network"});
    match namespaces.as_array_mut() {
        Some(list) if list.iter().any(|one| one["type"] == "network") => {}
        Some(list) => list.push(network),
        None => *namespaces = json!([network]),
    }
    spec
}

/// Nothing else lives on the host.
fn alone() -> Neighbours<'static> {
    Neighbours { network: None, of_process: &|_| None }
}

fn plan(more: &Value) -> Result<Plan, BundleError> {
    let (_dir, bundle) = bundle(spec(more));
    Plan::new("c1", &bundle.unwrap(), HOST, &alone())
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
fn the_hosts_network_is_refused_with_the_alternative() {
    let of = |namespaces: &Value| {
        let mut spec = spec(&json!({}));
        spec["linux"]["namespaces"] = namespaces.clone();
        let (_dir, bundle) = bundle(spec);
        let network = hosts_network().map(|identity| Named { identity, occupant: None });
        Plan::new("c1", &bundle.unwrap(), HOST, &Neighbours { network, ..alone() })
    };
    for hosts in [json!([]), json!([{"type": "network", "path": "/proc/self/ns/net"}])] {
        let error = of(&hosts).unwrap_err().to_string();
        assert!(error.starts_with("linux.namespaces"), "{error}");
        assert!(error.contains("take") && error.contains("--network bridge"), "{error}");
    }
    assert!(of(&json!([{"type": "network"}])).unwrap().network.is_none());
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
fn under_cgroup_v1_limits_have_its_names() {
    let of = |resources: &Value| {
        let spec = spec(&json!({"linux": {"cgroupsPath": "/a/b", "resources": resources}}));
        let (_dir, bundle) = bundle(spec);
        Plan::new("c1", &bundle.unwrap(), Host { version: Version::V1, ..HOST }, &alone())
    };
    let cpu = json!({"quota": 150_000, "period": 100_000, "shares": 1000, "cpus": "0-1"});
    let plan = of(&json!({"cpu": cpu, "unified": {"memory.high": "1"}})).unwrap();
    let memory = plan.shape.host_memory_max.to_string();
    let limits: Vec<_> =
        plan.cgroup_limits.iter().map(|(file, value)| (&**file, &**value)).collect();
    let expected = [
        ("memory.limit_in_bytes", memory.as_str()),
        ("pids.max", "256"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.shares", "1000"),
        ("cpuset.cpus", "0-1"),
    ];
    assert_eq!(limits, expected);
    assert_eq!(plan.spec["linux"]["resources"]["unified"]["memory.high"], "1");
    for file in ["io.weight", "cpuset.cpus.partition"] {
        let error = of(&json!({"unified": {file: "1"}})).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.unified") && error.contains(file), "{error}");
    }
    let changed = |resources: Value| {
        super::resources::updated(&plan, &plan.shape, &resources, 2, Version::V1).unwrap().settings
    };
    let setting = |file: &str, value: &str| (file.to_owned(), value.to_owned());
    let endless = changed(json!({"cpu": {"quota": -1, "shares": 300}}));
    assert_eq!(endless, [setting("cpu.shares", "300"), setting("cpu.cfs_quota_us", "-1")]);
    assert_eq!(changed(json!({"memory": {"limit": 64 << 20}})), []);
}

#[test]
fn a_scope_is_made_of_path_and_annotations() {
    let scope = |more: &Value| {
        let (_dir, bundle) = bundle(spec(more));
        Plan::new("c1", &bundle.unwrap(), Host { systemd: true, ..HOST }, &alone())
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
        let Update { settings, size } = updated(plan, present, &resources, 6, Version::V2)?;
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

#[test]
fn ids_of_the_host_are_the_machines() {
    let map =
        |container, host, size| json!([{"containerID": container, "hostID": host, "size": size}]);
    let spec = json!({
        "linux": {
            "namespaces": [{"type": "user"}],
            "uidMappings": map(0, 100_000, 65_000), "gidMappings": map(0, 200_000, 1000),
        },
        "mounts": [
            {"destination": "/a", "source": "data", "options": ["bind"]},
            {"destination": "/b", "source": "data", "options": ["bind", "ridmap,ro"]},
            {"destination": "/c", "source": "data", "options": ["bind"],
                "uidMappings": map(0, 300_000, 10), "gidMappings": map(0, 5, 1)},
        ],
    });
    let plan = plan(&spec).unwrap();
    let high = |ranges: &[(u32, u32)]| High::of(ranges.iter().copied()).unwrap();
    assert_eq!(plan.ids.uids, high(&[(100_000, 65_000), (300_000, 10)]));
    assert_eq!(plan.ids.gids, high(&[(200_000, 1000)]));
    let own = plan.mappings.clone().unwrap();
    let of: Vec<_> = plan.shares.iter().map(|share| share.ids.clone()).collect();
    assert_eq!(of[..2], [ShareIds::User(own.clone()), ShareIds::User(own.clone())]);
    assert_eq!(of[2], ShareIds::Mount(own.clone()));
    assert!(matches!(&of[3], ShareIds::Mount(other) if *other != own));
    // The guest makes the user namespace, and has nothing to map.
    assert_eq!(plan.spec["linux"]["uidMappings"], map(0, 100_000, 65_000));
    assert_eq!(plan.spec["mounts"][1]["options"], json!(["bind", "ro"]));
    let read_only: Vec<_> = plan.shares.iter().map(|share| share.read_only).collect();
    assert_eq!(read_only, [false, false, true, false]);
    assert_eq!(plan.spec["mounts"][2].get("uidMappings"), None);
}

#[test]
fn a_process_brings_its_own_ids() {
    let user = json!({"uid": 1_000_680_000, "gid": 0, "additionalGids": [70_000, 7]});
    let process = json!({"cwd": "/", "args": ["sh"], "user": user});
    let plan = plan(&json!({ "process": process })).unwrap();
    assert_eq!(plan.ids.uids, High::of([(1_000_680_000, 1)]).unwrap());
    assert_eq!(plan.ids.gids, High::of([(70_000, 1)]).unwrap());
    assert_eq!(plan.shares[0].ids, ShareIds::Machine);
}

#[test]
fn a_joined_user_namespace_has_its_owners_ids() {
    let mapping = Mapping { container: 0, host: 100_000, size: 10 };
    let mappings = Both { uids: vec![mapping], gids: vec![mapping] };
    let neighbour = |pid| {
        let (machine, mappings) = ("first".into(), Some(mappings.clone()));
        Some(Neighbour { machine, monitor: pid, guest_pid: 42, mappings })
    };
    let own = format!("/proc/{}/ns", std::process::id());
    let dummy = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    let (_dir, bundle) = bundle(spec(&json!({"linux": {
        "namespaces": [
            {"type": "user", "path": format!("{own}/user")},
            {"type": "network", "path": format!("{own}/net")},
        ],
        "uidMappings": dummy, "gidMappings": dummy,
    }})));
    let network = Some(Named { identity: (1, 2), occupant: neighbour(7) });
    let beside = Neighbours { network, of_process: &neighbour };
    let plan = Plan::new("c1", &bundle.unwrap(), HOST, &beside).unwrap();
    assert_eq!(plan.shares[0].ids, ShareIds::User(mappings.clone()));
    assert_eq!(plan.spec["linux"]["namespaces"][0]["path"], "/proc/42/ns/user");
    assert_eq!(plan.spec["linux"].get("uidMappings"), None);
    assert_eq!(plan.ids.uids, High::of([(100_000, 10)]).unwrap());
}

#[test]
fn who_names_the_network_of_a_machine_joins_it() {
    let of = |pid: i32| {
        let machine = format!("m{}", pid / 10);
        Some(Neighbour { machine, monitor: pid, guest_pid: 42, mappings: None })
    };
    let plan = |occupant, more: &[Value]| {
        let mut namespaces = vec![json!({"type": "network", "path": "/run/netns/pod"})];
        namespaces.extend_from_slice(more);
        let (_dir, bundle) = bundle(spec(&json!({"linux": {"namespaces": namespaces}})));
        let network = Some(Named { identity: (1, 2), occupant });
        let beside = Neighbours { network, of_process: &of };
        Plan::new("c1", &bundle.unwrap(), HOST, &beside)
    };
    let ipc = |pid: i32| json!({"type": "ipc", "path": format!("/proc/{pid}/ns/ipc")});
    for more in [&[][..], &[json!({"type": "ipc"})], &[ipc(11)]] {
        let joined = plan(of(10), more).unwrap();
        assert_eq!(joined.machine.as_deref(), Some("m1"));
        assert_eq!(joined.network.as_deref(), Some(Path::new("/run/netns/pod")));
        assert_eq!(joined.namespace, Some((1, 2)));
        assert_eq!(joined.spec["linux"]["namespaces"][0]["path"], "/proc/42/ns/net");
    }
    let own = plan(None, &[]).unwrap();
    assert_eq!((own.machine, own.namespace), (None, Some((1, 2))));
    for (occupant, word) in [(of(10), "\"m2\""), (None, "must be joined as well")] {
        let error = plan(occupant, &[ipc(21)]).unwrap_err().to_string();
        assert!(error.starts_with("linux.namespaces: ") && error.contains(word), "{error}");
        assert!(error.contains("/proc/21/ns/ipc"), "{error}");
    }
}

#[test]
fn mappings_that_make_no_sense_are_named() {
    let map = |list: &[(u32, u32, u32)]| {
        let one = |&(container, host, size): &(u32, u32, u32)| json!({"containerID": container, "hostID": host, "size": size});
        list.iter().map(one).collect::<Value>()
    };
    let linux = |uids: Value| {
        let namespaces = [json!({"type": "user"})];
        json!({"linux": {
            "namespaces": namespaces, "uidMappings": uids, "gidMappings": map(&[(0, 0, 1)]),
        }})
    };
    let volume = |more: Value| {
        let mut mount =
            json!({"destination": "/a", "source": "data", "options": ["bind", "idmap"]});
        mount["uidMappings"] = more;
        json!({ "mounts": [mount] })
    };
    let cases = [
        (linux(map(&[(0, 100_000, 70_000)])), "uidMappings: a machine can have 65536"),
        (linux(map(&[(0, 100_000, 0)])), "linux.uidMappings: "),
        (linux(map(&[(0, 100, 10), (20, 105, 10)])), "linux.uidMappings: "),
        (linux(map(&[(0, 100, 10), (9, 200, 10)])), "linux.uidMappings: "),
        (linux(map(&[(1, u32::MAX, 2)])), "linux.uidMappings: "),
        (linux(Value::Null), "linux.uidMappings, linux.gidMappings: "),
        (volume(Value::Null), "mounts[/a]: idmap needs"),
        (volume(map(&[(0, 1, 1)])), "mounts[/a].uidMappings, mounts[/a].gidMappings: "),
    ];
    for (more, words) in cases {
        let error = plan(&more).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}
