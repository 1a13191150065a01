//! `cargo xtask dist`: everything built, in the layout in which it is installed:
//! `build/root/bin/` and, found from there, `build/root/share/bulkhead/`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::Tree;
use crate::{agent, kernel, sh};

/// The programs that people and engines start, by package.
const PROGRAMS: [(&str, &str); 3] = [
    ("bulkhead-cli", "bulkhead"),
    ("bulkhead-oci", "bulkhead-runtime"),
    ("bulkhead-vmm", "bulkhead-vmm"),
];

/// Options of `cargo xtask dist`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Build profile of the host's programs
    #[arg(long, default_value = "release")]
    pub profile: String,
}

/// Builds what has changed and collects it.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let _alone = tree.lock("distribution")?;
    kernel::run(tree, &kernel::Options::default())?;
    let initramfs = agent::initramfs(tree)?;

    let profile = if options.profile.is_empty() { "release" } else { &options.profile };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--profile", profile]).current_dir(tree.root());
    for (package, _) in PROGRAMS {
        command.args(["--package", package]);
    }
    sh::run(&mut command).context("cannot build the programs")?;

    let (bin, share) = (tree.dist().join("bin"), tree.dist().join("share/bulkhead"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&share)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    for (_, program) in PROGRAMS {
        place(&tree.target().join(folder).join(program), &bin.join(program))?;
    }
    place(&tree.build("kernel/vmlinux"), &share.join("vmlinux"))?;
    place(&initramfs, &share.join("initramfs.cpio"))
}

/// Copies under a temporary name and renames: a running program keeps its file.
fn place(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::rename(&new, to)?;
    Ok(())
}
