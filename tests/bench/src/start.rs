//! How long a container takes to start, stage by stage, beside others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use protocol::agent::FIRST_LINE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bare;
use crate::memory::{self, Memory};
use crate::{qemu, verbs};

/// Options of `start`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// OCI layout of the image
    #[arg(long)]
    image: PathBuf,
    /// Directory that holds vmlinux and initramfs.cpio
    #[arg(long)]
    share: PathBuf,
    /// Another kernel (an uncompressed ELF) to compare with on our VMM
    #[arg(long)]
    kernel: PathBuf,
    /// Samples of each
    #[arg(long, default_value_t = 7)]
    runs: usize,
}

/// Samples in milliseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Samples {
    /// In the order in which they were taken.
    pub all: Vec<f64>,
    /// The middle one.
    pub median: f64,
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, taken: f64) {
        self.all.push(taken);
        let mut sorted = self.all.clone();
        sorted.sort_by(f64::total_cmp);
        self.median = sorted[sorted.len() / 2];
    }
}

/// What was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Whole commands: `bulkhead run IMAGE true`, `runc run`, ...
    pub commands: BTreeMap<String, Samples>,
    /// Each verb of the OCI runtimes.
    #[serde(default)]
    pub verbs: verbs::Verbs,
    /// From the start of a VMM to the first user-space line of the same kernel.
    pub first_line: BTreeMap<String, Samples>,
    /// Stages of bulkhead's start, in order, milliseconds each.
    pub stages: Vec<(String, Samples)>,
    /// bulkhead's first line over that of `qemu -M microvm`.
    pub first_line_ratio: f64,
    /// Our kernel's first line over that of Debian's cloud kernel on our VMM.
    pub kernel_ratio: f64,
    /// One idle container.
    pub memory: Memory,
    /// Guest memory of both VMMs in MiB.
    pub guest_mib: u32,
}

/// A machine without a container.
const OURS: &str = "bulkhead-vmm";
const QEMU: &str = "qemu -M microvm";
/// Our VMM with Debian's cloud kernel.
const DEBIANS: &str = "bulkhead-vmm, Debian's kernel";
const NAME: &str = "debian:bench";
const RUN: &str = "bulkhead run";
const CONTAINER: &str = "bench";
/// Guest memory of the comparison.
const GUEST_MIB: u32 = 128;

/// Measures everything.
pub fn run(options: &Options) -> Result<Report> {
    let mut report = Report { guest_mib: GUEST_MIB, ..Report::default() };
    bulkhead(&["load", path(&options.image)?, "--name", NAME])?;
    let bundle = Bundle::new()?;
    for round in 0..=options.runs {
        eprintln!("bench: round {round} of {}", options.runs);
        // The first round fills caches and is not counted.
        let mut scratch = Report::default();
        let target = if round == 0 { &mut scratch } else { &mut report };
        once(target, options, &bundle)?;
    }
    let median = |name| report.first_line.get(name).map_or(f64::NAN, |samples| samples.median);
    report.first_line_ratio = median(OURS) / median(QEMU);
    report.kernel_ratio = median(OURS) / median(DEBIANS);
    Ok(report)
}

fn once(report: &mut Report, options: &Options, bundle: &Bundle) -> Result<()> {
    bundle.configure(&["true"])?;
    let mut command =
        |name: &str, taken| report.commands.entry(name.into()).or_default().push(taken);
    command(RUN, time(|| bulkhead(&["run", "--rm", "--network", "none", NAME, "true"]).map(drop))?);
    command("bulkhead-runtime run", time(|| bundle.run("bulkhead-runtime"))?);
    command("runc run", time(|| bundle.run("runc"))?);
    command("crun run", time(|| bundle.run("crun"))?);
    bundle.configure(&["sleep", "600"])?;
    verbs::once(&mut report.verbs, bundle.0.path())?;
    let mut line =
        |name: &str, taken| report.first_line.entry(name.into()).or_default().push(taken);
    line(QEMU, first_line(options, qemu::PLAIN)?);
    line("qemu -M microvm, tuned", first_line(options, qemu::TUNED)?);
    let initrd = options.share.join("initramfs.cpio");
    line(OURS, bare::first_line(&options.share.join("vmlinux"), &initrd, GUEST_MIB)?);
    line(DEBIANS, bare::first_line(&options.kernel, &initrd, GUEST_MIB)?);
    detached(report)
}

/// Starts a container in the background, reads its stages and its memory.
fn detached(report: &mut Report) -> Result<()> {
    let memory = format!("{GUEST_MIB}m");
    let options = ["--name", CONTAINER, "--memory", &memory, "--network", "none"];
    bulkhead(&[&["run", "-d"], &options[..], &[NAME, "sleep", "600"]].concat())?;
    let result = (|| {
        let inspected: Vec<Value> = serde_json::from_str(&bulkhead(&["inspect", CONTAINER])?)?;
        let launch = find(&inspected[0], "first_line_us")
            .context("`bulkhead inspect` tells no launch timings")?
            .clone();
        // Idle: let the guest settle.
        std::thread::sleep(Duration::from_secs(2));
        let pid = |name: &str| {
            let found = find(&inspected[0], name).and_then(|object| object[name].as_u64());
            found.map(|pid| pid as u32).with_context(|| format!("no {name} in inspect"))
        };
        let memory = memory::of(pid("vmm")?, pid("supervisor")?)?;
        Ok::<_, anyhow::Error>((launch, memory))
    })();
    bulkhead(&["rm", "-f", CONTAINER])?;
    let (launch, memory) = result?;
    report.memory = memory;
    let at = |name: &str| launch[name].as_f64().unwrap_or(f64::NAN) / 1000.0;
    let mut stages = vec![
        ("resources and clone3".to_owned(), at("spawned_us")),
        ("id-mapped mounts".to_owned(), at("boot_sent_us") - at("spawned_us")),
    ];
    let mut before = 0.0;
    for stage in launch["vmm"]["stages"].as_array().into_iter().flatten() {
        let end = stage[1].as_f64().unwrap_or(f64::NAN) / 1000.0;
        stages.push((format!("VMM: {}", stage[0].as_str().unwrap_or("?")), end - before));
        before = end;
    }
    stages.push(("guest kernel".into(), at("first_line_us") - at("running_us")));
    stages.push(("agent to first message".into(), at("agent_us") - at("first_line_us")));
    stages.push(("container: create".into(), at("created_us") - at("agent_us")));
    stages.push(("container: start".into(), at("started_us") - at("created_us")));
    // Of the foreground command of the same round.
    let whole = report.commands.get(RUN).and_then(|samples| samples.all.last());
    let rest = whole.map_or(f64::NAN, |whole| whole - at("started_us"));
    stages.push(("command, process, power-off, removal".into(), rest));
    for (index, (name, taken)) in stages.into_iter().enumerate() {
        if report.stages.len() == index {
            report.stages.push((name, Samples::default()));
        }
        report.stages[index].1.push(taken);
    }
    Ok(())
}

/// The object that holds `key`, anywhere in `value`.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) if map.contains_key(key) => Some(value),
        Value::Object(map) => map.values().find_map(|value| find(value, key)),
        Value::Array(items) => items.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn time(action: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    action()?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

fn bulkhead(arguments: &[&str]) -> Result<String> {
    output(Command::new("bulkhead").args(arguments))
}

/// Standard output of a program that succeeds.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {stderr}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Milliseconds from QEMU's start to the first user-space line.
fn first_line(options: &Options, machine: &[&str]) -> Result<f64> {
    let (kernel, initrd) = (options.share.join("vmlinux"), options.share.join("initramfs.cpio"));
    let start = Instant::now();
    let mut command = qemu::command(machine, &kernel, &initrd, GUEST_MIB, "loglevel=3");
    command.args(["-serial", "stdio"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let mut taken = None;
    for line in lines.map_while(Result::ok) {
        if line.ends_with(FIRST_LINE) {
            taken = Some(start.elapsed().as_secs_f64() * 1000.0);
            break;
        }
    }
    let _ = child.kill();
    child.wait()?;
    taken.context("qemu ended without the agent's first line")
}

/// An OCI bundle of the same image for runc and crun.
struct Bundle(tempfile::TempDir);

impl Bundle {
    fn new() -> Result<Bundle> {
        let inspected: Vec<Value> = serde_json::from_str(&bulkhead(&["inspect", NAME])?)?;
        let layers = find(&inspected[0], "Layers").context("`bulkhead inspect` tells no layers")?;
        let mut lower: Vec<&str> =
            layers["Layers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        lower.reverse();
        // On the disk of the store: overlayfs wants no overlay for its upper layer.
        let bundle = Bundle(tempfile::tempdir_in("/var/lib/bulkhead")?);
        for directory in ["rootfs", "upper", "work"] {
            fs::create_dir(bundle.0.path().join(directory))?;
        }
        let at = |name: &str| bundle.0.path().join(name).display().to_string();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), at("upper"), at("work"));
        output(Command::new("mount").args([
            "-t",
            "overlay",
            "overlay",
            "-o",
            &options,
            &at("rootfs"),
        ]))?;
        output(Command::new("runc").arg("spec").current_dir(bundle.0.path()))?;
        Ok(bundle)
    }

    /// Sets the command of its process.
    fn configure(&self, words: &[&str]) -> Result<()> {
        let config = self.0.path().join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(words);
        Ok(fs::write(config, serde_json::to_vec(&spec)?)?)
    }

    fn run(&self, runtime: &str) -> Result<()> {
        let mut command = Command::new(runtime);
        output(command.args(["run", "--bundle"]).arg(self.0.path()).arg("bench")).map(drop)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path().join("rootfs")).status();
    }
}
