//! `spec`: a config.json to start from, which runs with any runtime.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

/// Options of `spec`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Where config.json is written
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For a user without privilege
    #[arg(long)]
    rootless: bool,
}

/// Writes it.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    if arguments.rootless {
        bail!("--rootless is not supported: the runtime needs root");
    }
    let path = arguments.bundle.join("config.json");
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    let text = serde_json::to_string_pretty(&configuration())? + "\n";
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(0)
}

fn configuration() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let mut mount = json!({ "destination": destination, "type": kind, "source": source });
        if !options.is_empty() {
            mount["options"] = json!(options);
        }
        mount
    };
    let hard = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&hard[..], more].concat();
    json!({
        "ociVersion": runtime::oci::SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bulkhead",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &with(&["mode=1777", "size=65536k"])),
            mount("/dev/mqueue", "mqueue", "mqueue", &hard),
            mount("/sys", "sysfs", "sysfs", &with(&["ro"])),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &with(&["relatime", "ro"])),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}
