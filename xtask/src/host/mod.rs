//! `cargo xtask host -- COMMAND...`: runs COMMAND as root in a throw-away host
//! with a genuine KVM. tests/host/README.md says what it is made of and why.

pub mod artifacts;
mod job;
mod machine;
mod relay;
mod view;

use std::process::ExitCode;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::paths::Tree;
use crate::sh::note;
use artifacts::KernelChoice;
use machine::Machine;
use relay::Event;

/// Exit status when the host itself failed, as opposed to the command in it.
pub const HOST_FAILED: u8 = 120;
/// Exit status when the time limit was reached, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;
/// How long a host may take until it starts the command.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// How the host has its cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CgroupChoice {
    /// One tree of cgroup v2.
    #[default]
    V2,
    /// A hierarchy for each controller, as systemd's legacy layout has it.
    V1,
}

/// Options of `cargo xtask host`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// End the command, and the host, after this many seconds (exit status 124).
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    pub timeout: u64,
    /// CPUs of the host.
    #[arg(long, default_value_t = 2)]
    pub cpus: u32,
    /// Memory of the host in MiB. Half of what it uses is given back at its end.
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    pub memory: u32,
    /// Count instructions: 2^SHIFT ns each, one CPU. A clock that does not
    /// depend on what else this machine does.
    #[arg(long, value_name = "SHIFT", num_args = 0..=1, default_missing_value = "1")]
    pub icount: Option<u8>,
    /// Debian's kernel that the host runs.
    #[arg(long, value_enum, default_value_t)]
    pub kernel: KernelChoice,
    /// Which cgroups it has; v1 has a memory controller with `--kernel 6.1` only.
    #[arg(long, value_enum, default_value_t)]
    pub cgroup: CgroupChoice,
    /// Forward standard input to the command.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Set a variable for the command.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Say how long the host took to start.
    #[arg(short, long)]
    pub verbose: bool,
    /// The command and its arguments. Our binaries are first on its PATH.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Runs the command in a host and returns its exit status.
pub fn run(tree: &Tree, options: &Options) -> ExitCode {
    match drive(tree, options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            note(format!("the test host failed: {error:#}"));
            ExitCode::from(HOST_FAILED)
        }
    }
}

fn drive(tree: &Tree, options: &Options) -> Result<u8> {
    // Rarely one stands still before it starts the command. Nothing was done in it then, unless
    // it was fed.
    if !options.stdin {
        match attempt(tree, options)? {
            Outcome::Ended(status) => return Ok(status),
            Outcome::Stood(logs) => note(format!("{STOOD}; another one is started\n{logs}")),
        }
    }
    match attempt(tree, options)? {
        Outcome::Ended(status) => Ok(status),
        Outcome::Stood(logs) => bail!("{STOOD}\n{logs}"),
    }
}

/// What is said of [`Outcome::Stood`].
const STOOD: &str = "a host did not start the command in time";

/// What became of a host.
enum Outcome {
    /// The command's exit status, or [`TIMED_OUT`].
    Ended(u8),
    /// It did not start the command within [`BOOT_LIMIT`]; what it left.
    Stood(String),
}

/// Starts one host and runs the command in it.
fn attempt(tree: &Tree, options: &Options) -> Result<Outcome> {
    let begin = Instant::now();
    let (mut machine, streams) = Machine::start(tree, options)?;
    let relay = relay::start(streams, options.stdin)?;
    let mut started = false;
    let mut limit = begin + BOOT_LIMIT;
    let status = loop {
        let left = limit.saturating_duration_since(Instant::now());
        match relay.events.recv_timeout(left.min(Duration::from_millis(200))) {
            Ok(Event::Started) => {
                started = true;
                limit = Instant::now() + Duration::from_secs(options.timeout);
                if options.verbose {
                    note(format!("host up after {:.1} s", begin.elapsed().as_secs_f32()));
                }
            }
            Ok(Event::Exited(status)) => break status,
            Ok(Event::Failed(reason)) => bail!("{reason}\n{}", machine.logs()),
            Err(RecvTimeoutError::Timeout) if left.is_zero() && started => {
                note(format!("time limit of {} s reached, the host is ended", options.timeout));
                break TIMED_OUT;
            }
            Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                machine.kill();
                return Ok(Outcome::Stood(machine.logs()));
            }
            Ok(Event::Closed) | Err(_) => {
                if let Some(how) = machine.ended() {
                    bail!("QEMU ended ({how}) before the command did\n{}", machine.logs());
                }
            }
        }
    };
    machine.kill();
    relay.drain();
    if options.verbose {
        note(format!(
            "host ended after {:.1} s with status {status}",
            begin.elapsed().as_secs_f32()
        ));
    }
    Ok(Outcome::Ended(status))
}
