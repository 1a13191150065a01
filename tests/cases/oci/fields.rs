//! config.json, field by field: what a process sees must be what runc shows it.

use bulkhead_tests::bundle::{Bundle, OURS, RUNC};
use bulkhead_tests::turn::shared;
use serde_json::{Value, json};

use super::{Change, each_is_named, same};

#[test]
fn the_process() {
    let _turn = shared();
    let script = "id -u; id -g; grep -E '^(Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; \
                  umask; pwd; env | sort; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj; \
                  hostname; cat /proc/sys/kernel/domainname; echo $$";
    let text = same(script, |bundle| {
        let process = &mut bundle.config["process"];
        process["user"] =
            json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 29], "umask": 0o27});
        process["cwd"] = json!("/tmp");
        process["env"] = json!(["PATH=/bin", "A=1", "B=two words", "HOME=/x"]);
        process["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]);
        process["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"],
            "inheritable": ["CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_KILL"],
        });
        process["oomScoreAdj"] = json!(300);
        process["noNewPrivileges"] = json!(true);
        bundle.config["domainname"] = Value::Null;
    });
    assert!(text.starts_with("1000\n1001\n") && text.contains("0027\n/tmp\n"), "{text}");
    assert!(
        text.contains("CapAmb:\t0000000000000020") && text.contains("NoNewPrivs:\t1"),
        "{text}"
    );
}

#[test]
fn mounts_and_paths() {
    let _turn = shared();
    let script = "cd /; cat /data/in; echo new > /data/out && echo written; \
                  echo x > /ro/file || echo refused; touch /made && echo made; \
                  \
                  echo 1 > /proc/sys/vm/drop_caches || echo refused; \
                  for at in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys /sys/fs/cgroup /t /data /ro; do \
                  grep \" $at \" /proc/mounts | tail -1 | awk '{print $2, $3, $4}' | \
                  sed 's/,*size=[^,]*//; s/,inode64//; s/virtiofs/disk/; s/ext4/disk/; s/gid=5,//; s/disk \\(r.\\).*/disk \\1/'; done; \
                  ls -l /dev | awk '{print $1, $5, $6, $NF}' | grep -v -e total -e kcore | sort; \
                  df -k /t | tail -1 | awk '{print $2}'; ls -ld /t | cut -c1-10";
    let text = same(script, |bundle| {
        std::fs::create_dir_all(bundle.file("data")).unwrap();
        std::fs::write(bundle.file("data/in"), "from the host\n").unwrap();
        let source = bundle.file("data");
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/data", "type": "bind", "source": source,
            "options": ["rbind", "rw"]}));
        mounts.push(json!({"destination": "/ro", "type": "bind", "source": source,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"]}));
        mounts.push(json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "mode=0750", "size=4096k"]}));
    });
    assert!(text.contains("from the host\nwritten\n") && text.contains("made\n"), "{text}");
    assert!(text.contains("4096\ndrwxr-x---"), "{text}");
}

#[test]
fn a_read_only_root() {
    let _turn = shared();
    let script =
        "touch /x || echo refused; touch /tmp/x || echo refused; touch /dev/shm/x && echo ok";
    let text = same(script, |bundle| bundle.config["root"]["readonly"] = json!(true));
    assert_eq!(text, "refused\nrefused\nok\n");
}

#[test]
fn seccomp_sysctl_and_devices() {
    let _turn = shared();
    let script = "mkdir /tmp/x 2>&1; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward; \
                  ls -ln /dev/extra | awk '{print $1, $3, $4, $5, $6}'; cat /dev/extra | head -c 3 | wc -c; \
                  mknod /tmp/n b 8 0 2>&1; grep Seccomp: /proc/self/status";
    same(script, |bundle| {
        let linux = &mut bundle.config["linux"];
        linux["sysctl"] = json!({"kernel.shmmax": "123456789", "net.ipv4.ip_forward": "1"});
        linux["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
        linux["devices"] = json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5,
            "fileMode": 0o640, "uid": 7, "gid": 8}]);
        linux["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rw"},
        ]);
    });
}

#[test]
fn limits_hold_in_the_guest_and_change_live() {
    let _turn = shared();
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; \
                  while ! [ -e /go ]; do sleep 0.1; done; \
                  cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    for runtime in [RUNC, OURS] {
        let mut bundle = Bundle::new(runtime, script);
        bundle.config["linux"]["resources"] = json!({
            "memory": {"limit": 67_108_864},
            "pids": {"limit": 50},
            "cpu": {"quota": 50_000, "period": 100_000},
        });
        bundle.create();
        bundle.verb(&["start", &bundle.id]).ok();
        let lines = |count| {
            bulkhead_tests::program::eventually("its limits", || {
                bundle.output().lines().count() == count
            });
        };
        lines(3);
        assert_eq!(bundle.output(), "67108864\n50\n50000 100000\n", "{runtime}");
        bundle.verb(&["update", "--memory", "33554432", "--pids-limit", "40", &bundle.id]).ok();
        let resources = json!({"pids": {"limit": 41}});
        std::fs::write(bundle.file("resources"), resources.to_string()).unwrap();
        bundle.verb(&["update", "-r", &bundle.file("resources"), &bundle.id]).ok();
        bundle.verb(&["exec", &bundle.id, "touch", "/go"]).ok();
        lines(5);
        assert!(bundle.output().ends_with("33554432\n41\n"), "{runtime}: {}", bundle.output());
    }
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let _turn = shared();
    let cases: [(&str, Change); 7] = [
        ("intelRdt", |config| config["linux"]["intelRdt"] = json!({"closID": "x"})),
        ("seccomp", |config| {
            config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY"});
        }),
        ("linux.namespaces", |config| {
            config["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/ipc");
        }),
        ("mounts[/x]", |config| {
            let mount = json!({"destination": "/x", "type": "bind", "source": "/no/such"});
            config["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("root.path", |config| config["root"]["path"] = json!("nothing-here")),
        ("linux.mountLabel", |config| config["linux"]["mountLabel"] = json!("label")),
        ("ociVersion", |config| config["ociVersion"] = json!("9.9.9")),
    ];
    each_is_named(&cases);
}
