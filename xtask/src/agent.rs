//! `cargo xtask agent`: the guest's PID 1 as one static program, and
//! `cargo xtask initramfs`: the initial file system around it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::paths::Tree;
use crate::sh::{self, cmd};

/// Naming the target keeps crt-static away from build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent statically and returns its path.
pub fn build(tree: &Tree) -> Result<PathBuf> {
    let mut command = static_cargo(tree);
    command.args(["--package", "bulkhead-agent"]);
    // Each megabyte of it is copied twice before the first line.
    command.env("CARGO_PROFILE_RELEASE_LTO", "fat");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    sh::run(&mut command).context("cannot build the agent")?;
    let agent = tree.target().join(TARGET).join("release/bulkhead-agent");
    assert_static(&agent)?;
    Ok(agent)
}

/// `cargo build` of what runs in the guest: static, and small before fast, since
/// its pages are resident in every guest.
pub fn static_cargo(tree: &Tree) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--release", "--locked", "--target", TARGET])
        .current_dir(tree.root())
        .env(
            "RUSTFLAGS",
            "-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no",
        )
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// The guest has no libraries and no loader: neither may be asked for.
fn assert_static(program: &Path) -> Result<()> {
    let headers =
        sh::output(cmd("readelf", ["--wide", "--program-headers", "--dynamic"]).arg(program))?;
    let wanted: Vec<&str> = headers
        .lines()
        .map(str::trim)
        .filter(|l| l.contains("(NEEDED)") || l.starts_with("INTERP"))
        .collect();
    if !wanted.is_empty() {
        bail!("{} is not static:\n  {}", program.display(), wanted.join("\n  "));
    }
    Ok(())
}

/// Writes `build/initramfs.cpio` and returns its path.
pub fn initramfs(tree: &Tree) -> Result<PathBuf> {
    let agent = build(tree)?;
    let data = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let path = tree.build("initramfs.cpio");
    let new = tree.build("initramfs.cpio.new");
    fs::create_dir_all(tree.build(""))?;
    fs::write(&new, archive(&data)?)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// The agent and the devices that it needs before it has mounted /dev: the
/// kernel opens /dev/console for PID 1, Rust's runtime aborts where neither
/// that nor /dev/null can be opened, and /dev/kmsg carries its first words.
fn archive(agent: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::with_capacity(agent.len() + 4096));
    archive.directory("dev", 0o755)?;
    archive.character("dev/console", 0o600, (5, 1))?;
    archive.character("dev/null", 0o666, (1, 3))?;
    archive.character("dev/kmsg", 0o600, (1, 11))?;
    // Nobody but its owner reads it: a process of a container's user namespace that executes
    // it is then beyond that namespace's ptrace (fs/exec.c, `would_dump`).
    archive.file("init", 0o711, agent)?;
    Ok(archive.finish()?)
}
