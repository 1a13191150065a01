//! `cargo xtask in-guest`: the agent's own suite, run as PID 1 of the guest
//! kernel. It needs namespaces, cgroups and mounts but no KVM, so plain QEMU
//! emulation runs it on any machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cpio::Archive;
use crate::paths::Tree;
use crate::{agent, kernel, sh};

/// Seconds after which a guest that says nothing more is given up.
const LIMIT: &str = "600";

/// Options of `cargo xtask in-guest`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Only cases whose name contains this
    pub only: Option<String>,
}

/// Builds the suite, boots it, and prints what it says.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    kernel::run(tree, &kernel::Options::default())?;
    let program = build(tree)?;
    let initramfs = tree.build("in-guest.cpio");
    let busybox = fs::read("/bin/busybox").context("busybox-static is not installed")?;
    let mut archive = Archive::new(Vec::new());
    archive.directory("dev", 0o755)?;
    archive.character("dev/console", 0o600, (5, 1))?;
    archive.character("dev/null", 0o666, (1, 3))?;
    archive.character("dev/kmsg", 0o600, (1, 11))?;
    archive.file("busybox", 0o755, &busybox)?;
    archive.file("init", 0o755, &fs::read(&program)?)?;
    fs::write(&initramfs, archive.finish()?)?;
    let said = boot(tree, &initramfs, options)?;
    let verdict = said.lines().rev().find(|line| line.contains("in_guest: "));
    match verdict {
        Some(line) if line.contains(", 0 failed") && !line.contains(" 0 passed") => Ok(()),
        Some(line) => bail!("the agent's suite failed in the guest: {line}"),
        None => bail!("the guest ended, or was ended after {LIMIT} s, without a verdict"),
    }
}

/// One line of `cargo --message-format=json`.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn build(tree: &Tree) -> Result<PathBuf> {
    let mut command = agent::static_cargo(tree);
    command.args(["--package", "bulkhead-agent", "--test", "in_guest"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.stderr(Stdio::inherit());
    let printed = command.output().context("cannot start cargo")?;
    if !printed.status.success() {
        bail!("cannot build the agent's suite");
    }
    String::from_utf8_lossy(&printed.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        // Cargo builds the agent itself as well, in either order.
        .filter(|message| message.target.as_ref().is_some_and(|target| target.name == "in_guest"))
        .find_map(|message| message.executable)
        .context("cargo told no program")
}

fn boot(tree: &Tree, initramfs: &Path, options: &Options) -> Result<String> {
    let only = options.only.as_ref().map(|word| format!(" bulkhead.only={word}"));
    let append = format!(
        "quiet earlyprintk=ttyS0,keep panic=-1 reboot=t lsm=apparmor audit=0{}",
        only.unwrap_or_default()
    );
    let mut qemu = Command::new("timeout");
    qemu.args(["--kill-after=5", LIMIT, "qemu-system-x86_64"])
        .args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=off", "-cpu", "max"])
        .args(["-accel", "tcg", "-m", "512", "-nodefaults", "-no-user-config", "-nographic"])
        .args(["-serial", "stdio", "-no-reboot"])
        // The agent's power port.
        .args(["-device", "isa-debug-exit,iobase=0x600,iosize=1"])
        .arg("-kernel")
        .arg(tree.build("kernel/vmlinux"))
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", &append]);
    // isa-debug-exit makes any status of the guest's end; the verdict is text.
    let output = qemu
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", sh::show(&qemu)))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in said.lines().filter(|line| line.contains("bulkhead-agent: ")) {
        println!("{}", line.split("bulkhead-agent: ").last().unwrap_or(line).trim_end());
    }
    Ok(said)
}
