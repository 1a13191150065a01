//! What the throw-away host is made of, fetched once from the Debian archive
//! and kept in `build/host/`: a stock cloud kernel with its modules, and QEMU.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::apt::{self, Source};
use crate::paths::Tree;
use crate::sh::{self, cmd, note};

/// Which of Debian's cloud kernels the host runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum KernelChoice {
    /// Of Debian 12's backports. Its memory controller is one of cgroup v2 alone.
    #[default]
    #[value(name = "6.12")]
    Later,
    /// Debian 12's own, with all controllers of cgroup v1.
    #[value(name = "6.1")]
    Stable,
}

impl KernelChoice {
    /// The package that always depends on the newest one, and how that one is called.
    fn package(self) -> (&'static str, &'static str) {
        match self {
            KernelChoice::Later => ("linux-image-6.12-cloud-amd64", "linux-image-6.12"),
            KernelChoice::Stable => ("linux-image-cloud-amd64", "linux-image-6.1."),
        }
    }

    /// Where it is kept.
    fn directory(self) -> &'static str {
        match self {
            KernelChoice::Later => "host/kernel",
            KernelChoice::Stable => "host/kernel-6.1",
        }
    }
}

/// What the initial file system cannot do without, where it is a module: the others come
/// by modprobe.
const EARLY_MODULES: [&str; 5] =
    ["virtio_pci", "virtio_console", "virtio_blk", "virtiofs", "overlay"];

/// A kernel that was unpacked, with its modules uncompressed.
pub struct HostKernel {
    /// What `uname -r` says there.
    pub release: String,
    /// The ELF image, entered through PVH: nothing is decompressed at boot.
    pub vmlinux: PathBuf,
    /// The directory that goes to /lib/modules/RELEASE.
    pub modules: PathBuf,
}

/// A QEMU system emulator.
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its firmware directories, where they are not the built-in ones.
    pub firmware: Vec<PathBuf>,
}

/// The stock kernel: the cached one, or the newest of the archive.
pub fn kernel(tree: &Tree, choice: KernelChoice) -> Result<HostKernel> {
    let base = tree.build(choice.directory());
    if let Ok(release) = fs::read_to_string(base.join("release")) {
        let found = host_kernel(&base, release.trim());
        if found.vmlinux.is_file() {
            return Ok(found);
        }
    }
    let package = kernel_package(choice)?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    sh::step(&format!("fetching Debian's kernel {release} for the test host"), || {
        let _ = fs::remove_dir_all(&base);
        let files = Source::Machine.download(&[&package], &base.join("deb"))?;
        let root = base.join("root");
        apt::unpack(&files, &root)?;
        let vmlinuz = fs::read(root.join(format!("boot/vmlinuz-{release}")))?;
        fs::write(base.join("vmlinux"), vmlinux_of(&vmlinuz)?)?;
        sh::output(
            cmd("sh", ["-c", "find . -name '*.ko.xz' -print0 | xargs -0 -r xz -d -T2"])
                .current_dir(&root),
        )?;
        sh::output(cmd("/sbin/depmod", ["-b"]).arg(&root).arg(&release))?;
        fs::remove_dir_all(base.join("deb"))?;
        fs::write(base.join("release"), &release)?;
        Ok(())
    })?;
    Ok(host_kernel(&base, &release))
}

fn host_kernel(base: &Path, release: &str) -> HostKernel {
    HostKernel {
        release: release.to_owned(),
        vmlinux: base.join("vmlinux"),
        modules: base.join("root/lib/modules").join(release),
    }
}

impl HostKernel {
    /// Paths of the modules that the initial file system loads, in this order.
    pub fn early_modules(&self) -> Result<Vec<PathBuf>> {
        let file = self.modules.join("modules.dep");
        let table =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(load_order(&table, &EARLY_MODULES).iter().map(|path| self.modules.join(path)).collect())
    }
}

/// Paths of modules and of what they need, by modules.dep(5), which names the needed ones
/// of each, the last to be loaded first. One that is not there is built in.
fn load_order<'a>(table: &'a str, names: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for name in names {
        let file = format!("/{name}.ko");
        let line = table.lines().filter_map(|line| line.split_once(':'));
        let Some((path, needed)) = line.into_iter().find(|(path, _)| path.ends_with(&file)) else {
            continue;
        };
        for path in needed.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// The name of the package that the meta-package stands for.
fn kernel_package(choice: KernelChoice) -> Result<String> {
    let (meta, prefix) = choice.package();
    let listing = sh::output(&mut cmd("apt-cache", ["depends", "--no-recommends", meta]))
        .with_context(|| format!("apt does not know {meta}; run `apt-get update`"))?;
    for line in listing.lines() {
        if let Some(name) = line.trim().strip_prefix("Depends: ")
            && name.starts_with(prefix)
        {
            return Ok(name.to_owned());
        }
    }
    bail!("{meta} depends on no {prefix}* of Debian 12; run `apt-get update`")
}

/// The ELF inside a bzImage: its payload starts at the compressor's magic.
fn vmlinux_of(image: &[u8]) -> Result<Vec<u8>> {
    const MAGICS: [(&[u8], &str); 4] = [
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (b"\xfd7zXZ\0", "xz"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
        (&[0x1f, 0x8b, 0x08], "gzip"),
    ];
    for (magic, program) in MAGICS {
        for (start, _) in image.windows(magic.len()).enumerate().filter(|(_, w)| *w == magic) {
            let out = filter(program, &image[start..])?;
            if out.starts_with(b"\x7fELF") {
                return Ok(out);
            }
        }
    }
    bail!("no zstd, xz, lz4 or gzip payload in the kernel image holds an ELF file")
}

/// Pipes `data` through `program -dc`; trailing garbage is the normal case.
fn filter(program: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("-dcq")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}; `cargo xtask setup` installs it"))?;
    let mut input = child.stdin.take().context("no pipe")?;
    let data = data.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = input.write_all(&data);
    });
    let out = child.wait_with_output()?;
    let _ = writer.join();
    Ok(out.stdout)
}

/// QEMU 9.1 or later, from Debian's backports where the machine's own is older:
/// before 9.1 the emulated SVM loses the interrupt shadow of STI at VMRUN.
pub fn qemu(tree: &Tree) -> Result<Qemu> {
    let system = PathBuf::from("/usr/bin/qemu-system-x86_64");
    if version(&system).is_some_and(|v| v >= (9, 1)) {
        return Ok(Qemu { program: system, firmware: Vec::new() });
    }
    let base = tree.build("host/qemu");
    let program = base.join("root/usr/bin/qemu-system-x86_64");
    if !base.join("complete").is_file() && !base.join("unavailable").is_file() {
        let fetched =
            sh::step("fetching QEMU 10 from Debian's backports for the test host", || {
                fetch_qemu(&base)
            });
        if let Err(error) = fetched {
            note(format!("using this machine's own QEMU instead: {error:#}"));
            fs::create_dir_all(&base)?;
            fs::write(base.join("unavailable"), format!("{error:#}\n"))?;
        }
    }
    if base.join("complete").is_file() {
        let firmware = ["qemu", "seabios"].map(|d| base.join("root/usr/share").join(d)).to_vec();
        return Ok(Qemu { program, firmware });
    }
    if version(&system).is_none() {
        bail!("no QEMU here: run `cargo xtask setup`");
    }
    Ok(Qemu { program: system, firmware: Vec::new() })
}

fn fetch_qemu(base: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(base);
    let source = Source::backports(&base.join("apt"))?;
    let names = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
    let pinned = names.map(|name| format!("{name}/bookworm-backports"));
    let files = source.download(&pinned.each_ref().map(String::as_str), &base.join("deb"))?;
    apt::unpack(&files, &base.join("root"))?;
    let program = base.join("root/usr/bin/qemu-system-x86_64");
    let libraries = sh::output(&mut cmd("ldd", [&program]))?;
    let missing: Vec<&str> = libraries
        .lines()
        .filter(|l| l.contains("not found"))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    if !missing.is_empty() {
        bail!("QEMU of the backports lacks {} here", missing.join(", "));
    }
    fs::remove_dir_all(base.join("deb"))?;
    fs::remove_dir_all(base.join("apt"))?;
    fs::write(base.join("complete"), "")?;
    Ok(())
}

/// Major and minor version of a QEMU, if it can be run at all.
fn version(program: &Path) -> Option<(u32, u32)> {
    let text = sh::output(&mut cmd(program, ["--version"])).ok()?;
    let number = text.split_whitespace().nth(3)?;
    let mut parts = number.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// virtiofsd of Debian 12 (part of QEMU) or the later one in Rust.
pub fn virtiofsd() -> Result<PathBuf> {
    let places = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
    places.iter().map(PathBuf::from).find(|p| p.is_file()).context(
        "no virtiofsd here (package qemu-system-common or virtiofsd): run `cargo xtask setup`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_after_what_they_need() {
        let table = "\
kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/virtio.ko kernel/ring.ko
kernel/fs/fuse/fuse.ko:
kernel/virtio_pci.ko: kernel/virtio.ko kernel/ring.ko
";
        let order = load_order(table, &["virtio_pci", "overlay", "virtiofs"]);
        let expected = ["ring", "virtio", "virtio_pci", "fs/fuse/fuse", "fs/fuse/virtiofs"];
        assert_eq!(order, expected.map(|name| format!("kernel/{name}.ko")));
    }
}
