//! `cargo xtask bench`: figures, not tests. The programs that measure are in
//! tests/bench/; this starts them where KVM is real and keeps what they print.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::paths::Tree;
use crate::{demo, dist, sh};

/// Options of `cargo xtask bench`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Run on the instruction clock (one emulated CPU) of the test host
    #[arg(long)]
    pub icount: bool,
    /// Which benchmark: a script in tests/bench/, without its suffix
    #[arg(default_value = "boot")]
    pub name: String,
}

/// Runs one benchmark; its standard output, JSON, goes to `build/bench/NAME.json`.
pub fn run(tree: &Tree, options: &Options) -> Result<ExitCode> {
    let script = tree.at(format!("tests/bench/{}.sh", options.name));
    if !script.is_file() {
        bail!("no benchmark {} (looked for {})", options.name, script.display());
    }
    dist::run(tree, &dist::Options::default())?;
    sh::run(demo::myself()?.arg("image"))?;
    let mut command = demo::myself()?;
    command.args(["host", "--verbose"]);
    if options.icount {
        command.arg("--icount");
    }
    command.args(["--", "bash"]).arg(&script);
    command.stderr(std::process::Stdio::inherit());
    let output = command.output().context("cannot start the test host")?;
    if !output.status.success() {
        bail!("the benchmark {} ended with {}", options.name, output.status);
    }
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("the benchmark did not print JSON")?;
    let path = tree.build(format!("bench/{}.json", options.name));
    fs::create_dir_all(tree.build("bench"))?;
    fs::write(&path, serde_json::to_vec_pretty(&json)?)?;
    println!("{}", serde_json::to_string_pretty(&json)?);
    sh::note(format!("written to {}", path.display()));
    Ok(ExitCode::SUCCESS)
}
