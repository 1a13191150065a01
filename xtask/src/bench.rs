//! `cargo xtask bench`: figures, not tests. tests/bench/ measures where KVM is
//! real; this starts it there and keeps its JSON and a picture of it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::host::artifacts::{self, KernelChoice};
use crate::paths::Tree;
use crate::{demo, dist, image, kvm, setup, sh};

/// Options of `cargo xtask bench`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Run on the instruction clock (one emulated CPU) of the test host
    #[arg(long)]
    pub icount: bool,
    /// Samples of each
    #[arg(long, default_value_t = 7)]
    pub runs: usize,
    /// Only this part
    #[arg(long, value_enum)]
    pub only: Option<Part>,
}

/// A part of the benchmark, a run of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Starts and memory, beside runc, crun and qemu: `build/bench/start.{json,svg}`
    Start,
    /// Traffic and what it costs, beside runc and qemu: `build/bench/network.json`
    Network,
}

/// Measures, and writes the files that [`Part`] names (`...-icount` on the
/// instruction clock).
pub fn run(tree: &Tree, options: &Options) -> Result<ExitCode> {
    setup::run(&setup::Options::default())?;
    dist::run(tree, &dist::Options::default())?;
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Its client's own work counts: not without optimization.
    let words = ["build", "--release", "--package", "bulkhead-bench"];
    sh::run(build.args(words).current_dir(tree.root()))?;
    fs::create_dir_all(tree.build("bench"))?;
    for part in [Part::Start, Part::Network] {
        if options.only.is_none_or(|only| only == part) {
            one(tree, options, part)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn one(tree: &Tree, options: &Options, part: Part) -> Result<()> {
    let program = tree.target().join("release/bulkhead-bench");
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
    match part {
        Part::Start => {
            sh::run(demo::myself()?.arg("image"))?;
            let kernel = artifacts::kernel(tree, KernelChoice::default())?.vmlinux;
            command.arg("start").arg("--image").arg(tree.build("images/debian-oci"));
            command.arg("--share").arg(tree.dist().join("share/bulkhead"));
            command.arg("--kernel").arg(kernel);
        }
        Part::Network => {
            command.arg("network").arg("--servers").arg(image::servers::run(tree)?);
            command.arg("--kernel").arg(tree.dist().join("share/bulkhead/vmlinux"));
        }
    }
    command.args(["--runs", &options.runs.to_string()]);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start the benchmark")?;
    if !output.status.success() {
        bail!("the benchmark ended with {}", output.status);
    }
    print!("{}", String::from_utf8_lossy(&output.stdout));
    let file = |name: &str, kind: &str| -> PathBuf {
        let clock = if options.icount { "-icount" } else { "" };
        tree.build(format!("bench/{name}{clock}.{kind}"))
    };
    match part {
        Part::Start => {
            let (json, svg) = (file("start", "json"), file("start", "svg"));
            fs::write(&json, &output.stdout)?;
            fs::write(&svg, sh::output(Command::new(&program).arg("draw").arg(&json))?)?;
            sh::note(format!("written to {} and {}", json.display(), svg.display()));
        }
        Part::Network => {
            let json = file("network", "json");
            fs::write(&json, &output.stdout)?;
            sh::note(format!("written to {}", json.display()));
        }
    }
    Ok(())
}
