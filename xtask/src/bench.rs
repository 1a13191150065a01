//! `cargo xtask bench`: figures, not tests. tests/bench/ measures where KVM is
//! real; this starts it there and keeps its JSON and a picture of it.

use std::fs;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::host::artifacts::{self, KernelChoice};
use crate::paths::Tree;
use crate::{demo, dist, kvm, setup, sh};

/// Options of `cargo xtask bench`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Run on the instruction clock (one emulated CPU) of the test host
    #[arg(long)]
    pub icount: bool,
    /// Samples of each
    #[arg(long, default_value_t = 7)]
    pub runs: usize,
}

/// Measures, and writes `build/bench/start.{json,svg}` (`start-icount` on the
/// instruction clock).
pub fn run(tree: &Tree, options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    dist::run(tree, &dist::Options::default())?;
    sh::run(demo::myself()?.arg("image"))?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    sh::run(build.args(["build", "--package", "bulkhead-bench"]).current_dir(tree.root()))?;
    let program = tree.target().join("debug/bulkhead-bench");

    let mut command = if kvm::verdict().usable() && !options.icount {
        let mut here = Command::new(&program);
        let path = std::env::var("PATH").unwrap_or_default();
        here.env("PATH", format!("{}:{path}", tree.bin().display()));
        here
    } else {
        let mut host = demo::myself()?;
        host.args(["host", "--timeout", "5400"]);
        if options.icount {
            host.arg("--icount");
        }
        host.arg("--").arg(&program);
        host
    };
    command.arg("start").arg("--image").arg(tree.build("images/debian-oci"));
    command.arg("--share").arg(tree.dist().join("share/bulkhead"));
    command.arg("--kernel").arg(artifacts::kernel(tree, KernelChoice::default())?.vmlinux);
    command.args(["--runs", &options.runs.to_string()]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start the benchmark")?;
    if !output.status.success() {
        bail!("the benchmark ended with {}", output.status);
    }
    let name = if options.icount { "start-icount" } else { "start" };
    let (json, svg) =
        (tree.build(format!("bench/{name}.json")), tree.build(format!("bench/{name}.svg")));
    fs::create_dir_all(tree.build("bench"))?;
    fs::write(&json, &output.stdout)?;
    fs::write(&svg, sh::output(Command::new(&program).arg("draw").arg(&json))?)?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    sh::note(format!("written to {} and {}", json.display(), svg.display()));
    Ok(ExitCode::SUCCESS)
}
