//! `cargo xtask test`: everything that must hold before a change goes in.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::paths::Tree;
use crate::sh::{self, note};
use crate::{boundaries, demo, dist, image, in_guest, kvm, setup};

/// What the names of the cases of cgroup v1 have, and no others.
const CGROUP1: &str = "cgroup1";

/// Options of `cargo xtask test`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Leave out the end-to-end suite, which needs KVM or the test host
    #[arg(long)]
    pub quick: bool,
    /// Only end-to-end cases whose name contains this
    pub filter: Option<String>,
}

/// Formats, lints, unit tests, boundaries, then the end-to-end suite.
pub fn run(tree: &Tree, options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    if options.filter.is_none() {
        let cargo = |arguments: &[&str]| sh::run(self::cargo(tree).args(arguments));
        cargo(&["fmt", "--all", "--check"]).context("run `cargo fmt --all`")?;
        cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
        boundaries::run(tree)?;
        cargo(&["test", "--workspace", "--locked", "--exclude", "bulkhead-tests"])?;
    }
    if options.quick {
        return Ok(ExitCode::SUCCESS);
    }
    dist::run(tree, &dist::Options::default())?;
    if options.filter.is_none() {
        in_guest::run(tree, &in_guest::Options::default())?;
    }
    sh::run(demo::myself()?.arg("image"))?;
    image::servers::run(tree)?;
    let program = build_suite(tree)?;
    let filter = options.filter.as_deref();
    let of_cgroup1 = |filter: &str| filter.contains(CGROUP1);
    // First, so that the last counts are those of the whole suite.
    if filter.is_none_or(of_cgroup1) {
        let words = ["--ignored".into(), filter.unwrap_or(CGROUP1).into()];
        let code = cgroup1(tree, [vec![program.clone()], words.into()].concat())?;
        if code != ExitCode::SUCCESS || filter.is_some() {
            return Ok(code);
        }
    }
    let mut suite = vec![program];
    suite.extend(filter.map(PathBuf::from));
    demo::here_or_in_host(tree, &suite)
}

/// The cases of cgroup v1, which the suite counts as ignored: on this host if it is such a
/// one, or in a test host that is.
fn cgroup1(tree: &Tree, suite: Vec<PathBuf>) -> Result<ExitCode> {
    if !kvm::verdict().usable() {
        note("the cases of cgroup v1: in a throw-away host that has it, with Debian 12's kernel");
        return demo::in_host(tree, &["--kernel", "6.1", "--cgroup", "v1"], &suite);
    }
    if Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists() {
        return demo::here(tree, &suite);
    }
    note("the cases of cgroup v1 were left out: this host has cgroup v2 alone");
    Ok(ExitCode::SUCCESS)
}

fn cargo(tree: &Tree) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tree.root());
    command
}

/// One line of `cargo --message-format=json`.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds the end-to-end suite and returns its program: it is built here, where
/// the processor is fast, and run where KVM is real.
fn build_suite(tree: &Tree) -> Result<PathBuf> {
    let mut command = cargo(tree);
    command.args([
        "test",
        "--package",
        "bulkhead-tests",
        "--locked",
        "--no-run",
        "--message-format=json",
    ]);
    let mut programs = Vec::new();
    for line in sh::output(&mut command)?.lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else { continue };
        let Some(target) = message.target.filter(|_| message.reason == "compiler-artifact") else {
            continue;
        };
        if target.kind.iter().any(|kind| kind == "test") {
            programs.extend(message.executable.map(|program| (target.name, program)));
        }
    }
    match programs.len() {
        1 => Ok(programs.remove(0).1),
        0 => bail!("the package bulkhead-tests has no [[test]] target"),
        _ => bail!(
            "bulkhead-tests has more than one [[test]] target; put the cases into one program"
        ),
    }
}
