//! The OCI verbs of three runtimes on the same bundle.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::start::Samples;

/// The runtimes.
const RUNTIMES: [&str; 3] = ["bulkhead-runtime", "runc", "crun"];
const ID: &str = "bench-verbs";
/// How long a killed container may take to be stopped.
const LIMIT: Duration = Duration::from_secs(60);

/// Runtime and verb -> samples.
pub type Verbs = BTreeMap<String, Samples>;

/// One round. The bundle's process must run until it is killed.
pub fn once(report: &mut Verbs, bundle: &Path) -> Result<()> {
    for runtime in RUNTIMES {
        let result = cycle(report, runtime, bundle);
        if result.is_err() {
            let _ = verb(runtime, &["delete", "--force", ID]);
        }
        result.with_context(|| format!("the verbs of {runtime}"))?;
    }
    Ok(())
}

fn cycle(report: &mut Verbs, runtime: &str, bundle: &Path) -> Result<()> {
    let bundle = bundle.to_str().context("a path that is not UTF-8")?;
    let mut timed = |name: &str, words: &[&str]| -> Result<()> {
        let start = Instant::now();
        verb(runtime, words)?;
        let taken = start.elapsed().as_secs_f64() * 1000.0;
        // Numbered: they are then in the order of a life, not of the alphabet.
        report.entry(format!("{name} {runtime}")).or_default().push(taken);
        Ok(())
    };
    timed("1 create:", &["create", "--bundle", bundle, ID])?;
    timed("2 start:", &["start", ID])?;
    timed("3 exec true:", &["exec", ID, "true"])?;
    verb(runtime, &["kill", ID, "KILL"])?;
    let begin = Instant::now();
    while !stopped(runtime)? {
        if begin.elapsed() > LIMIT {
            bail!("the container does not stop");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    timed("4 delete:", &["delete", ID])
}

fn stopped(runtime: &str) -> Result<bool> {
    let output = Command::new(runtime).args(["state", ID]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("\"stopped\""))
}

/// Its stdio is /dev/null: the container's process has it for as long as it lives.
fn verb(runtime: &str, words: &[&str]) -> Result<()> {
    let null = Stdio::null;
    let mut command = Command::new(runtime);
    let status = command.args(words).stdin(null()).stdout(null()).stderr(null()).status();
    let status = status.with_context(|| format!("cannot start {runtime}"))?;
    if !status.success() {
        bail!("{runtime} {} ended with {status}", words.join(" "));
    }
    Ok(())
}
