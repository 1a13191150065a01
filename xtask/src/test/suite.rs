//! The end-to-end suite where KVM is real.
//!
//! In the throw-away host that is an emulated one, whose emulator is not free of
//! errors (tests/host/README.md): it can crash the host's kernel, and it can make a
//! guest triple-fault. Cases that ended by either, and only those, are repeated in a
//! new host, which is said there and at the end. On hardware nothing is repeated.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::demo;
use crate::kvm;
use crate::paths::Tree;
use crate::sh::{self, note};

/// How many new hosts in a row may bring no case further.
const PATIENCE: usize = 6;
/// Most hosts for one run of the suite.
const HOSTS: usize = 40;
/// What a case says that the emulator ended.
const SIGNATURE: &str = " triple-faulted";

/// Runs all cases of `program`, or those whose name contains `filter`.
pub fn run(tree: &Tree, program: &Path, filter: Option<&str>) -> Result<ExitCode> {
    let verdict = kvm::verdict();
    if verdict.usable() {
        let mut command = vec![program.to_owned()];
        command.extend(filter.map(Into::into));
        return demo::here_or_in_host(tree, &command);
    }
    note(format!(
        "{verdict}: running in a throw-away host with emulated SVM, see tests/host/README.md"
    ));
    let all = names(program, filter)?;
    let mut report = Report::default();
    let mut repeated = BTreeSet::new();
    let mut in_vain = 0;
    for attempt in 0..HOSTS {
        let before = report.passed.len();
        let missing: Vec<&String> =
            all.iter().filter(|name| !report.passed.contains(*name)).collect();
        let mut command = demo::in_host(tree)?;
        // Two guests that compute at the same time are what the emulator breaks at.
        command.arg(program).env("RUST_TEST_THREADS", "1");
        if attempt > 0 {
            repeated.extend(missing.iter().map(|name| (*name).clone()));
            command.arg("--exact").args(&missing);
        } else {
            command.args(filter);
        }
        let status = follow(&mut command, &mut report)?;
        if status == 0 {
            break;
        }
        let crashed = status == i32::from(demo::HOST_FAILED);
        if crashed {
            note("the test host's kernel crashed, not what runs in it");
        }
        in_vain = if report.passed.len() > before { 0 } else { in_vain + 1 };
        if !report.failed.is_empty()
            || !(crashed || report.only_emulator())
            || in_vain == PATIENCE
            || attempt + 1 == HOSTS
        {
            return Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)));
        }
        report.emulator.clear();
        note("repeating what did not come to its end because of the emulator, in a new host");
    }
    let missing = all.difference(&report.passed).count();
    if missing > 0 {
        bail!("{missing} of {} cases were not run", all.len());
    }
    match repeated.len() {
        0 => note(format!("{} cases passed", all.len())),
        count => note(format!("{} cases passed, {count} of them when repeated", all.len())),
    }
    Ok(ExitCode::SUCCESS)
}

/// The cases that libtest lists.
fn names(program: &Path, filter: Option<&str>) -> Result<BTreeSet<String>> {
    let list = sh::output(Command::new(program).arg("--list").args(filter))?;
    Ok(list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// What has been seen of the cases.
#[derive(Debug, Default)]
struct Report {
    passed: BTreeSet<String>,
    /// For a reason of their own.
    failed: BTreeSet<String>,
    /// By the emulator.
    emulator: BTreeSet<String>,
    /// Failed, and what they said was not read yet.
    unexplained: BTreeSet<String>,
    /// Of which the output is being read.
    section: Option<String>,
}

impl Report {
    fn only_emulator(&self) -> bool {
        !self.emulator.is_empty() && self.failed.is_empty()
    }

    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... ok"))
        {
            self.passed.insert(name.to_owned());
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"))
        {
            self.unexplained.insert(name.to_owned());
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----"))
        {
            self.section = Some(name.to_owned());
        } else if line.contains(SIGNATURE)
            && let Some(name) = &self.section
            && self.unexplained.remove(name)
        {
            self.emulator.insert(name.clone());
        }
    }

    /// What said nothing of the emulator failed by itself.
    fn end(&mut self) {
        self.failed.append(&mut self.unexplained);
        self.section = None;
    }
}

/// Runs `command`, passes its output on, and reads it.
fn follow(command: &mut Command, report: &mut Report) -> Result<i32> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", sh::show(command)))?;
    if let Some(stdout) = child.stdout.take() {
        let mut out = std::io::stdout();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            report.line(&String::from_utf8_lossy(&line));
            // Whoever reads our output may have gone; the suite goes on.
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
        }
    }
    report.end();
    let status = child.wait()?;
    status.code().with_context(|| format!("{} ended with {status}", sh::show(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.line(line));
        report.end();
        report
    }

    #[test]
    fn the_emulators_failures_are_told_from_the_cases_own() {
        let text = "test a::one ... ok\ntest a::two ... FAILED\ntest a::three ... FAILED\n\
            failures:\n---- a::two stdout ----\nvCPU 0 triple-faulted without a word\n\
            ---- a::three stdout ----\nassertion failed\n";
        let report = read(text);
        assert!(report.passed.contains("a::one") && report.emulator.contains("a::two"));
        assert!(report.failed.contains("a::three") && !report.only_emulator());
        assert!(read(&text.replace("test a::three ... FAILED\n", "")).only_emulator());
        assert!(!read("test a::one ... ok\n").only_emulator());
    }
}
