//! `cargo xtask demo`: a real Debian image in its own microVM, end to end.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths::Tree;
use crate::setup::Group;
use crate::sh::{self, note};
use crate::{dist, kvm, setup};

/// Names the image to the suite and the demonstration.
const IMAGE: &str = "BULKHEAD_TEST_IMAGE";
/// Names the file system of servers to the suite.
const SERVERS: &str = "BULKHEAD_TEST_SERVERS";
/// Seconds that the demonstration or the whole suite may take in the host.
const HOST_LIMIT: &str = "3600";

/// One case more at a time than the host has processors: much of a case is waiting.
const TEST_THREADS: &str = "RUST_TEST_THREADS=3";

/// Builds everything, then shows it here or in the test host.
pub fn run(tree: &Tree) -> Result<ExitCode> {
    setup::run(&setup::Options { groups: vec![Group::Build, Group::Demo], check: false })?;
    dist::run(tree, &dist::Options::default())?;
    // A process of its own: it works in a mount namespace of its own.
    sh::run(myself()?.arg("image"))?;
    let script = tree.at("tests/demo.sh");
    let layout = tree.build("images/debian-oci");
    here_or_in_host(tree, &["bash".into(), script, layout])
}

/// Runs a command where KVM is real: directly, or in the test host.
pub fn here_or_in_host(tree: &Tree, command: &[PathBuf]) -> Result<ExitCode> {
    let verdict = kvm::verdict();
    if verdict.usable() {
        note(verdict.to_string());
        return here(tree, command);
    }
    note(format!(
        "{verdict}: running in a throw-away host with emulated SVM, see tests/host/README.md"
    ));
    in_host(tree, &[], command)
}

/// Runs a command on this machine.
pub fn here(tree: &Tree, command: &[PathBuf]) -> Result<ExitCode> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut here = Command::new(&command[0]);
    here.args(&command[1..]).env("PATH", format!("{}:{path}", tree.bin().display()));
    finish(tree, here, &command[0])
}

/// Runs a command in a test host with these options.
pub fn in_host(tree: &Tree, options: &[&str], command: &[PathBuf]) -> Result<ExitCode> {
    let mut host = myself()?;
    host.args(["host", "--timeout", HOST_LIMIT, "-e", TEST_THREADS])
        .args(options)
        .arg("--")
        .args(command);
    host.stdin(Stdio::null());
    finish(tree, host, &command[0])
}

fn finish(tree: &Tree, mut command: Command, program: &Path) -> Result<ExitCode> {
    command.env(IMAGE, tree.build("images/debian-oci"));
    command.env(SERVERS, tree.build("images/servers.ext4"));
    // CNI's plugins take seconds in an emulated host: who is to have a network says so.
    command.env("BULKHEAD_NETWORK", "none");
    let status = sh::status(&mut command)?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => bail!("`{}` ended with {status}", program.display()),
    }
}

/// This program again.
pub fn myself() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("cannot find this program")?))
}
