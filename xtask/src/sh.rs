//! Running other programs, and saying so: every step of a task goes through
//! here, so that each failure names the program, its arguments and its output.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A command line as a person would type it, for messages.
pub fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs `command` with its output on the terminal; a non-zero status is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` ended with {status}", show(command));
    }
    Ok(())
}

/// Runs `command` with its output on the terminal and returns its status.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start `{}`", show(command)))
}

/// Runs `command` and returns its standard output; on failure the error holds
/// the last lines it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", show(command)))?;
    if !out.status.success() {
        bail!("`{}` ended with {}\n{}", show(command), out.status, tail(&out));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The last twenty lines that a finished program wrote.
fn tail(out: &Output) -> String {
    let text = [&out.stdout[..], &out.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Whether `program` is on PATH or in the system directories.
pub fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// One line about what a task does next.
pub fn note(line: impl AsRef<str>) {
    eprintln!("xtask: {}", line.as_ref());
}

/// Runs `work` under one line of progress: a spinner with the elapsed time on
/// a terminal, a line every ten seconds elsewhere.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let (stop, stopped) = mpsc::channel::<()>();
    let label = what.to_owned();
    let ticker = std::thread::spawn(move || tick(&label, start, &stopped));
    let result = work();
    drop(stop);
    let _ = ticker.join();
    let end = if result.is_ok() { "done" } else { "failed" };
    let clear = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    eprintln!("{clear}xtask: {what}: {end} ({:.1} s)", start.elapsed().as_secs_f32());
    result
}

fn tick(label: &str, start: Instant, stopped: &mpsc::Receiver<()>) {
    let terminal = std::io::stderr().is_terminal();
    let period = if terminal { Duration::from_millis(120) } else { Duration::from_secs(10) };
    if !terminal {
        eprintln!("xtask: {label} ...");
    }
    for frame in ["|", "/", "-", "\\"].iter().cycle() {
        match stopped.recv_timeout(period) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        let seconds = start.elapsed().as_secs();
        if terminal {
            eprint!("\r\x1b[K{frame} {label} ({seconds} s)");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("xtask: {label}: {seconds} s");
        }
    }
}

/// Runs a long command quietly under [`step`], its output in `log`; on failure
/// the last lines of the log are shown.
pub fn logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    step(what, || {
        let file = std::fs::File::create(log)
            .with_context(|| format!("cannot create the log {}", log.display()))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("cannot start `{}`", show(command)))?;
        if status.success() {
            return Ok(());
        }
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "`{}` ended with {status}; the end of {}:\n{}",
            show(command),
            log.display(),
            lines[lines.len().saturating_sub(30)..].join("\n")
        )
    })
}

/// A [`Command`] with its arguments, in one expression.
pub fn cmd<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}
