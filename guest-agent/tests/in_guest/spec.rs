//! A configuration as docker writes it, and small changes to it.

use protocol::agent::{Create, Exec, ProcessId, Rootfs, SeedFile, Stdio, Upper};
use serde_json::{Value, json};

/// The capabilities that docker gives.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub fn process(command: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": command,
        "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES,
            "permitted": CAPABILITIES},
        "oomScoreAdj": 0,
    })
}

pub fn shell(script: &str) -> Value {
    process(&["sh", "-c", script])
}

pub fn spec(process: Value) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options":
             ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "uts"},
                {"type": "pid"}, {"type": "ipc"}, {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

pub const NONE: Stdio = Stdio { stdin: false, stdout: false, stderr: false, terminal: false };
pub const OUT: Stdio = Stdio { stdout: true, stderr: true, ..NONE };
pub const ALL: Stdio = Stdio { stdin: true, ..OUT };
pub const TTY: Stdio = Stdio { terminal: true, ..NONE };

pub fn create(id: &str, spec: Value, stdio: Stdio) -> Create {
    Create {
        container: id.into(),
        rootfs: Rootfs::Overlay {
            layers: vec!["immutable/base".into(), "immutable/top".into()],
            upper: Upper::Memory { size: None },
        },
        volumes: Vec::new(),
        sources: [
            ("/host/volume".to_owned(), "live/volume".to_owned()),
            ("/host/file".to_owned(), "live/file".to_owned()),
        ]
        .into(),
        spec,
        stdio,
        descriptors: Vec::new(),
        state: serde_json::Value::Null,
        files: vec![SeedFile { path: "/etc/hosts".into(), contents: "127.0.0.1 box\n".into() }],
        apparmor: Vec::new(),
    }
}

pub fn exec(id: &str, exec: &str, process: Value, stdio: Stdio) -> Exec {
    let (descriptors, cgroup, apparmor) = (Vec::new(), None, Vec::new());
    let process_name = name(id, Some(exec));
    Exec { process: process_name, spec: process, stdio, descriptors, cgroup, apparmor }
}

pub fn name(id: &str, exec: Option<&str>) -> ProcessId {
    ProcessId { container: id.into(), exec: exec.map(str::to_owned) }
}
