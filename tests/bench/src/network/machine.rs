//! The servers in `qemu -M microvm` with our kernel, on the same bridge: what a network costs
//! in a machine at all. It stands where an engine would have it: in a network namespace with a
//! veth, to which its tap is tied as ours is, and in a cgroup.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use runtime::limits::DEFAULT_GUEST_MIB;

use super::container::{BRIDGE, Bridge, NETWORK, PLACE, Servers, shell};
use super::load;
use crate::{qemu, start::output};

const TAP: &str = "tap0";
/// PID 1 of the guest.
const INIT: &str = include_str!("init.sh");

/// Who moves frames between the tap and the guest's rings.
#[derive(Debug, Clone, Copy)]
pub enum Backend {
    /// The host's kernel.
    Vhost,
    /// QEMU itself.
    Qemu,
}

impl Backend {
    /// Of the subject.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Vhost => "qemu, vhost",
            Backend::Qemu => "qemu",
        }
    }
}

/// A running machine. It ends with its value.
pub struct Machine {
    /// Its address.
    pub ip: String,
    name: String,
    mac: String,
    directory: tempfile::TempDir,
    qemu: Option<Child>,
}

impl Machine {
    /// Boots `kernel`, with an address that ends in `last`, and waits until the servers answer.
    pub fn start(
        backend: Backend,
        kernel: &Path,
        servers: &Servers,
        _bridge: &Bridge,
        last: u8,
    ) -> Result<Machine> {
        let directory = tempfile::tempdir_in(PLACE)?;
        let (ip, mac) = (format!("{NETWORK}.{last}"), format!("02:00:0a:58:07:{last:02x}"));
        let mut machine = Machine { ip, name: format!("bench{last}"), mac, directory, qemu: None };
        machine.place(last)?;
        machine.initrd(servers)?;
        machine.boot(backend, kernel, servers)?;
        load::wait(&machine.ip).with_context(|| {
            let console = fs::read_to_string(machine.at("console")).unwrap_or_default();
            format!("{}: {console}", backend.name())
        })?;
        Ok(machine)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(&self.name)
    }

    /// Makes its cgroup and its namespace, with what is in it.
    fn place(&self, last: u8) -> Result<()> {
        let (name, tie) = (&self.name, "ingress matchall action mirred egress redirect dev");
        fs::create_dir(self.cgroup()).context("a cgroup for QEMU (cgroup v2)")?;
        shell(&format!(
            "ip netns add {name}
             ip link add vbench{last} type veth peer name eth0 netns {name}
             ip link set vbench{last} master {BRIDGE} up
             ip -n {name} tuntap add dev {TAP} mode tap vnet_hdr
             tc -n {name} qdisc add dev {TAP} root noqueue
             ip -n {name} link set {TAP} up
             ip -n {name} link set eth0 up
             tc -n {name} qdisc add dev {TAP} ingress
             tc -n {name} qdisc add dev eth0 ingress
             tc -n {name} filter add dev {TAP} {tie} eth0
             tc -n {name} filter add dev eth0 {tie} {TAP}"
        ))?;
        Ok(())
    }

    /// An initial file system of [`INIT`], the servers' busybox, and this program.
    fn initrd(&self, servers: &Servers) -> Result<()> {
        let root = self.at("root");
        for directory in ["bin", "dev", "root"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::copy(servers.path().join("usr/bin/busybox"), root.join("bin/busybox"))?;
        fs::copy(std::env::current_exe()?, root.join("bench"))?;
        fs::write(root.join("init"), INIT)?;
        let pack = "chmod +x init && find . | cpio --quiet -o -H newc >../initrd";
        output(Command::new("sh").args(["-ec", pack]).current_dir(root)).map(drop)
    }

    fn boot(&mut self, backend: Backend, kernel: &Path, servers: &Servers) -> Result<()> {
        let vhost = match backend {
            Backend::Vhost => {
                output(Command::new("modprobe").arg("vhost_net")).context(
                    "the host's kernel must have vhost_net, for the comparison with QEMU",
                )?;
                // Without the second word QEMU would go on by itself where vhost fails.
                "vhost=on,vhostforce=on"
            }
            Backend::Qemu => "vhost=off",
        };
        // What PID 1 says, and not what the kernel merely remarks.
        let append = format!("loglevel=5 printk.devkmsg=on address={}/24", self.ip);
        let initrd = self.at("initrd");
        let mut command = qemu::command(qemu::TUNED, kernel, &initrd, DEFAULT_GUEST_MIB, &append);
        // Nobody writes to it; not each file system has the locks that QEMU would take.
        let drive = "id=servers,format=raw,if=none,readonly=on,file.locking=off";
        let (netdev, image) = ("tap,id=net,script=no,downscript=no", servers.image().display());
        command
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-drive", &format!("{drive},file={image}")])
            .args(["-device", "virtio-blk-device,drive=servers"])
            .args(["-netdev", &format!("{netdev},ifname={TAP},{vhost}")])
            .args(["-device", &format!("virtio-net-device,netdev=net,mac={}", self.mac)])
            .args(["-serial", "stdio"]);
        let console = File::create(self.at("console"))?;
        let mut command = self.within(&command);
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        self.qemu = Some(command.spawn().context("cannot start qemu-system-x86_64")?);
        Ok(())
    }

    /// The same command in its cgroup and namespace.
    fn within(&self, command: &Command) -> Command {
        let mut within = Command::new("sh");
        within
            .args(["-ec", r#"echo $$ >"$0/cgroup.procs"; exec ip netns exec "$@""#])
            .arg(self.cgroup())
            .arg(&self.name)
            .arg(command.get_program())
            .args(command.get_args());
        within
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        let _ = shell(&format!("ip netns del {}", self.name));
        let _ = fs::remove_dir(self.cgroup());
    }
}
