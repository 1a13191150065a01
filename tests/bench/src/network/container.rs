//! Containers of the servers on a bridge. Whatever is made here goes with its value.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::load;
use crate::start::output;

/// On a disk: overlayfs wants no overlay for its upper layer.
pub(super) const PLACE: &str = "/var/lib/bulkhead";
pub(super) const BRIDGE: &str = "bench0";
pub(super) const NETWORK: &str = "10.88.7";

pub(super) fn shell(script: &str) -> Result<String> {
    output(Command::new("sh").args(["-ec", script]))
}

/// The mounted file system of servers.
pub struct Servers {
    image: PathBuf,
    mounted: tempfile::TempDir,
}

impl Servers {
    /// Mounts it, read-only.
    pub fn mount(image: &Path) -> Result<Servers> {
        std::fs::create_dir_all(PLACE)?;
        let servers = Servers { image: image.into(), mounted: tempfile::tempdir_in(PLACE)? };
        output(Command::new("mount").args(["-o", "loop,ro"]).arg(image).arg(servers.path()))?;
        // Where KVM's counters are; a host may forbid it.
        let _ = shell("mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug");
        Ok(servers)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// The file that it is in.
    pub fn image(&self) -> &Path {
        &self.image
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

/// A bridge of the host with an address.
pub struct Bridge(());

impl Bridge {
    /// Makes it.
    pub fn new() -> Result<Bridge> {
        shell(&format!("ip link add {BRIDGE} type bridge"))?;
        let bridge = Bridge(());
        shell(&format!("ip addr add {NETWORK}.1/24 dev {BRIDGE}; ip link set {BRIDGE} up"))?;
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = shell(&format!("ip link del {BRIDGE}"));
    }
}

/// A running container in a network namespace of its own.
pub struct Container {
    /// Who runs it.
    pub runtime: &'static str,
    /// Its address.
    pub ip: String,
    directory: tempfile::TempDir,
}

impl Container {
    /// Starts one, whose address ends in `last`, and waits until its servers answer.
    pub fn start(
        runtime: &'static str,
        servers: &Servers,
        _bridge: &Bridge,
        last: u8,
    ) -> Result<Container> {
        let directory = tempfile::tempdir_in(PLACE)?;
        let container = Container { runtime, ip: format!("{NETWORK}.{last}"), directory };
        container.network(last)?;
        container.bundle(servers)?;
        container.create()?;
        load::wait(&container.ip).with_context(|| {
            let log = std::fs::read_to_string(container.at("log")).unwrap_or_default();
            format!("{runtime}: {log}")
        })?;
        Ok(container)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Name of its namespace, and its id.
    fn name(&self) -> String {
        format!("bench-{}", self.runtime)
    }

    fn network(&self, last: u8) -> Result<()> {
        let (name, ip) = (self.name(), &self.ip);
        shell(&format!(
            "ip netns add {name}
             ip link add vbench{last} type veth peer name eth0 netns {name}
             ip link set vbench{last} master {BRIDGE} up
             ip -n {name} addr add {ip}/24 dev eth0
             ip -n {name} link set eth0 up
             ip -n {name} link set lo up"
        ))?;
        Ok(())
    }

    fn bundle(&self, servers: &Servers) -> Result<()> {
        for directory in ["rootfs", "upper", "work"] {
            std::fs::create_dir(self.at(directory))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            servers.path().display(),
            self.at("upper").display(),
            self.at("work").display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(self.at("rootfs"));
        output(&mut mount)?;
        std::fs::copy(std::env::current_exe()?, self.at("rootfs/bench"))?;
        output(Command::new("runc").arg("spec").current_dir(self.directory.path()))?;
        let file = self.at("config.json");
        let mut spec: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["sh", "-c", "/bench serve & exec nginx"]);
        spec["root"]["readonly"] = json!(false);
        for set in ["bounding", "effective", "permitted"] {
            let all = ["CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_KILL"];
            spec["process"]["capabilities"][set] = json!(all);
        }
        // As deep for each: a level costs each change of threads something, and without this
        // ours are one deeper than runc's.
        spec["linux"]["cgroupsPath"] = json!(format!("/{}", self.name()));
        let namespaces =
            spec["linux"]["namespaces"].as_array_mut().context("runc's specification has none")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        let path = format!("/run/netns/{}", self.name());
        namespaces.push(json!({ "type": "network", "path": path }));
        Ok(std::fs::write(file, serde_json::to_vec(&spec)?)?)
    }

    fn create(&self) -> Result<()> {
        let log = std::fs::File::create(self.at("log"))?;
        let mut command = Command::new(self.runtime);
        command.args(["run", "--detach", "--bundle"]).arg(self.directory.path()).arg(self.name());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let status = command.status().with_context(|| format!("cannot start {}", self.runtime))?;
        if !status.success() {
            let log = std::fs::read_to_string(self.at("log")).unwrap_or_default();
            bail!("{} run ended with {status}: {log}", self.runtime);
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let name = self.name();
        let mut delete = Command::new(self.runtime);
        let _ = delete.args(["delete", "--force", &name]).stderr(Stdio::null()).status();
        let _ = Command::new("umount").arg(self.at("rootfs")).status();
        let _ = shell(&format!("ip netns del {name}"));
    }
}
