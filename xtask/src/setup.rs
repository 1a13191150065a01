//! `cargo xtask setup`: installs what is missing from Debian's packages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh::{self, cmd, note};

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// Building the kernel, the binaries and the initial file system
    Build,
    /// The demonstration: a real image, and the test host where KVM is missing
    Demo,
    /// The tests: the test host, and the tools that results are compared with
    Test,
}

/// A Debian package, what it is for, and why.
struct Package(&'static str, &'static [Group], &'static str);

use Group::{Build, Demo, Test};

/// Everything that is installed, and nothing else.
const PACKAGES: [Package; 45] = [
    Package("gcc", &[Build], "compiles the guest kernel, links our binaries"),
    Package("make", &[Build], "builds the guest kernel"),
    Package("libc6-dev", &[Build], "static glibc for the agent"),
    Package("linux-source-6.12", &[Build], "source of the guest kernel"),
    Package("curl", &[Build], "the same from kernel.org, where Debian has it no more"),
    Package("ca-certificates", &[Build], "https, for curl and for registries"),
    Package("flex", &[Build], "kernel configuration"),
    Package("bison", &[Build], "kernel configuration"),
    Package("bc", &[Build], "kernel build"),
    Package("libelf-dev", &[Build], "kernel build: objtool"),
    Package("libssl-dev", &[Build], "kernel build: host tools"),
    Package("rsync", &[Build], "kernel build: headers"),
    Package("zstd", &[Build, Demo, Test], "unpacks kernels, makes zstd layers"),
    Package("lz4", &[Test], "unpacks the test host's Debian 12 kernel"),
    Package("xz-utils", &[Build, Demo, Test], "unpacks kernel source and modules"),
    Package("binutils", &[Build], "strip, readelf"),
    Package("cpio", &[Test], "checks our writer of initial file systems, packs the benchmark's"),
    Package("debootstrap", &[Demo, Test], "makes the real Debian image"),
    Package("attr", &[Demo, Test], "reads overlayfs's marks when the image's layers are packed"),
    Package("qemu-system-x86", &[Demo, Test], "the test host, and the VMM of the benchmark"),
    Package("busybox-static", &[Demo, Test], "first program of the test host"),
    Package("kmod", &[Demo, Test], "modules of the test host"),
    Package("e2fsprogs", &[Demo, Test], "scratch disk of the test host"),
    Package("iproute2", &[Demo, Test], "network set-up"),
    Package(
        "containernetworking-plugins",
        &[Demo, Test],
        "networks of bulkhead run: CNI's plugins",
    ),
    Package("nftables", &[Demo, Test], "what those networks let pass"),
    Package("iptables", &[Demo, Test], "published ports: CNI's portmap and firewall call it"),
    Package("passt", &[Test], "the network of bulkhead run without those plugins"),
    Package("uidmap", &[Test], "maps a user's subordinate ids: bulkhead without root"),
    Package("runc", &[Test], "the runtime that we are compared with"),
    Package("crun", &[Test], "the other one"),
    Package("podman", &[Test], "an engine that runs our runtime"),
    Package("conmon", &[Test], "podman's own monitor"),
    Package("catatonit", &[Test], "first process of podman's pods"),
    Package("netavark", &[Test], "podman's other way to make networks, and its later only one"),
    Package("aardvark-dns", &[Test], "names in those networks"),
    Package("buildah", &[Test], "another"),
    Package("docker.io", &[Test], "another"),
    Package("containerd", &[Test], "another, and docker's"),
    Package("apparmor", &[Test], "compiles profiles, ours and the engines' default ones"),
    Package("golang-github-containers-common", &[Test], "podman's and buildah's configuration"),
    Package("systemd", &[Test], "makes cgroups for those engines, and is asked what it made"),
    Package("dbus", &[Test], "the bus to it"),
    Package("skopeo", &[Test], "copies images to and from a registry"),
    Package("docker-registry", &[Test], "a registry on loopback"),
];

/// Packages from elsewhere that have the same programs. Debian's would displace them.
const INSTEAD: &[(&str, &str)] = &[("docker.io", "docker-ce"), ("containerd", "containerd.io")];

/// Options of `cargo xtask setup`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Only what this group needs (default: all groups)
    #[arg(value_enum)]
    pub groups: Vec<Group>,
    /// Say what is missing and stop; the exit status tells
    #[arg(long)]
    pub check: bool,
}

/// Installs what is missing, after it has said what and why.
pub fn run(options: &Options) -> Result<()> {
    let wanted: Vec<&Package> = PACKAGES
        .iter()
        .filter(|p| {
            options.groups.is_empty() || p.1.iter().any(|group| options.groups.contains(group))
        })
        .collect();
    let missing: Vec<&Package> = wanted.into_iter().filter(|p| !provided(p.0)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    note(format!("these {} Debian packages are missing here:", missing.len()));
    for Package(name, _, why) in &missing {
        eprintln!("    {name:<20} {why}");
    }
    if options.check {
        bail!("`cargo xtask setup` installs them");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "installing packages needs root: run `cargo xtask setup` as root, or install them by hand"
        );
    }
    if !sh::have("apt-get") {
        bail!("this is no Debian: install what is named above by hand (Debian 12 names)");
    }
    let names: Vec<&str> = missing.iter().map(|p| p.0).collect();
    install(&names)
}

fn provided(package: &str) -> bool {
    let instead = INSTEAD.iter().filter(|(debian, _)| *debian == package).map(|(_, other)| *other);
    installed(package) || instead.into_iter().any(installed)
}

fn installed(package: &str) -> bool {
    sh::output(&mut cmd("dpkg-query", ["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn install(names: &[&str]) -> Result<()> {
    let _no_daemons = NoDaemons::hold()?;
    let log = std::env::temp_dir().join(format!("bulkhead-setup-{}.log", std::process::id()));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    // Names that apt does not know mean that its lists are missing or old.
    let simulated = apt(&["install", "-s", "--no-install-recommends"]).args(names).output();
    if !simulated.is_ok_and(|out| out.status.success()) {
        sh::logged("apt-get update", &mut apt(&["update"]), &log)?;
    }
    let mut command = apt(&["install", "-y", "--no-install-recommends"]);
    sh::logged(&format!("installing {} packages", names.len()), command.args(names), &log)?;
    let _ = fs::remove_file(log);
    Ok(())
}

/// Keeps maintainer scripts from starting services while it lives, the way
/// Debian provides for: a policy-rc.d that says "forbidden" (101).
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    const PATH: &str = "/usr/sbin/policy-rc.d";
    const TEXT: &str = "#!/bin/sh\n# bulkhead: no daemon starts during setup\nexit 101\n";

    fn hold() -> Result<Self> {
        // One of ours is left where an earlier run was killed: take it over.
        let present = fs::read_to_string(Self::PATH);
        if present.is_ok_and(|text| text != Self::TEXT) {
            return Ok(Self { ours: false });
        }
        fs::write(Self::PATH, Self::TEXT).context("cannot write policy-rc.d")?;
        fs::set_permissions(Self::PATH, fs::Permissions::from_mode(0o755))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(Self::PATH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_stands_once_with_a_reason_and_a_group() {
        for (index, Package(name, groups, why)) in PACKAGES.iter().enumerate() {
            assert!(!groups.is_empty() && !why.is_empty(), "{name}");
            assert!(PACKAGES[..index].iter().all(|p| p.0 != *name), "{name} twice");
        }
    }
}
