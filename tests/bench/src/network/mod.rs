//! What the network of a container carries and what that costs, in runc's, in ours and in
//! another VMM's machine on the same bridge: TCP each way, and requests to nginx.
//!
//! ```text
//!  bench0 (bridge) --- veth              runc:             /bench serve, nginx
//!     |            |-- veth - tc - tap    bulkhead-runtime: the same
//!     |            |-- veth - tc - tap    qemu -M microvm:  the same, with our kernel, vhost
//!     |            `-- veth - tc - tap    qemu -M microvm:  the same, with our kernel
//!  this process
//! ```
//!
//! Each is in a cgroup below the root. All run all the time and are asked in turn. The host's CPU seconds are
//! those of everybody: client, server, kernel, VMM.

mod container;
mod load;
mod machine;
mod meter;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use self::container::{Bridge, Container, Servers};
use self::machine::{Backend, Machine};
use self::meter::{Cost, measured};
use crate::start::Samples;

pub use self::load::serve;

/// Options of `network`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The file system of servers that `cargo xtask bench` builds
    #[arg(long)]
    servers: PathBuf,
    /// The guest's kernel (vmlinux), for QEMU
    #[arg(long)]
    kernel: PathBuf,
    /// Samples of each
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// MiB that are sent each way
    #[arg(long, default_value_t = 64)]
    mib: u64,
    /// Requests, of one connection and of all together
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Connections that request at once
    #[arg(long, default_value_t = 32)]
    connections: usize,
}

/// What the others are compared with: no machine.
const BASE: &str = "runc";
const RUNTIMES: [&str; 2] = [BASE, "bulkhead-runtime"];
const BACKENDS: [Backend; 2] = [Backend::Vhost, Backend::Qemu];

/// One kind of traffic to one subject.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// MiB or requests in a second.
    pub per_second: Samples,
    /// The same in a second of one of the host's CPUs.
    pub per_cpu_second: Samples,
    /// Milliseconds that the median request took.
    pub p50_ms: Option<Samples>,
    /// Milliseconds that all but the slowest hundredth took.
    pub p99_ms: Option<Samples>,
    /// What KVM counted for each MiB or request.
    pub kvm: BTreeMap<String, Samples>,
}

/// A subject's over those of [`BASE`], of medians.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ratios {
    /// Higher is better.
    pub per_second: f64,
    /// Higher is better.
    pub per_cpu_second: f64,
    /// Lower is better.
    pub p50: Option<f64>,
    /// Lower is better.
    pub p99: Option<f64>,
}

/// What was measured: kind of traffic, then subject.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// All samples.
    pub traffic: BTreeMap<String, BTreeMap<String, Figures>>,
    /// The comparison.
    pub ratios: BTreeMap<String, BTreeMap<String, Ratios>>,
}

/// Who serves. What runs it goes with it.
enum Subject {
    Container(Container),
    Machine(Backend, Machine),
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Subject::Container(container) => container.runtime,
            Subject::Machine(backend, _) => backend.name(),
        }
    }

    fn ip(&self) -> &str {
        match self {
            Subject::Container(container) => &container.ip,
            Subject::Machine(_, machine) => &machine.ip,
        }
    }
}

fn subjects(kernel: &Path, servers: &Servers, bridge: &Bridge) -> Result<Vec<Subject>> {
    let mut last = 2..;
    let mut last = || last.next().expect("no end");
    let mut subjects = Vec::new();
    for runtime in RUNTIMES {
        subjects.push(Subject::Container(Container::start(runtime, servers, bridge, last())?));
    }
    for backend in BACKENDS {
        let machine = Machine::start(backend, kernel, servers, bridge, last())?;
        subjects.push(Subject::Machine(backend, machine));
    }
    Ok(subjects)
}

/// Measures everything.
pub fn run(options: &Options) -> Result<Report> {
    let servers = Servers::mount(&options.servers)?;
    let bridge = Bridge::new()?;
    let subjects = subjects(&options.kernel, &servers, &bridge)?;
    let mut report = Report::default();
    for round in 0..=options.runs {
        // The first round fills caches and is not counted.
        let mut scratch = Report::default();
        let target = if round == 0 { &mut scratch } else { &mut report };
        for subject in &subjects {
            eprintln!("bench: network, round {round} of {}, {}", options.runs, subject.name());
            once(target, options, subject)?;
        }
    }
    compare(&mut report);
    Ok(report)
}

fn once(report: &mut Report, options: &Options, subject: &Subject) -> Result<()> {
    let ip = subject.ip();
    let mut add = |kind: &str, count: f64, cost: Cost, latencies: Option<Vec<f64>>| {
        let kind = report.traffic.entry(kind.into()).or_default();
        let figures = kind.entry(subject.name().into()).or_default();
        figures.per_second.push(count / cost.seconds);
        figures.per_cpu_second.push(count / cost.cpu_seconds);
        if let Some(mut latencies) = latencies {
            latencies.sort_by(f64::total_cmp);
            let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
            figures.p50_ms.get_or_insert_default().push(at(0.5));
            figures.p99_ms.get_or_insert_default().push(at(0.99));
        }
        if subject.name() != BASE {
            for (name, counted) in cost.kvm {
                figures.kvm.entry(name).or_default().push(counted / count);
            }
        }
    };
    let ((), cost) = measured(|| load::send(ip, options.mib))?;
    add("MiB to it", options.mib as f64, cost, None);
    let ((), cost) = measured(|| load::receive(ip, options.mib))?;
    add("MiB from it", options.mib as f64, cost, None);
    let (latencies, cost) = measured(|| load::requests(ip, 1, options.requests))?;
    add("requests, one at a time", latencies.len() as f64, cost, Some(latencies));
    let at_once = options.connections;
    let (latencies, cost) = measured(|| load::requests(ip, at_once, options.requests))?;
    let name = format!("requests, {at_once} at a time");
    add(&name, latencies.len() as f64, cost, Some(latencies));
    Ok(())
}

fn compare(report: &mut Report) {
    for (kind, subjects) in &report.traffic {
        let Some(base) = subjects.get(BASE) else { continue };
        let others = subjects.iter().filter(|(name, _)| *name != BASE);
        let ratios = others.map(|(name, figures)| (name.clone(), figures.over(base)));
        report.ratios.insert(kind.clone(), ratios.collect());
    }
}

impl Figures {
    fn over(&self, base: &Figures) -> Ratios {
        let both = |ours: &Option<Samples>, theirs: &Option<Samples>| {
            Some(ours.as_ref()?.median / theirs.as_ref()?.median)
        };
        Ratios {
            per_second: self.per_second.median / base.per_second.median,
            per_cpu_second: self.per_cpu_second.median / base.per_cpu_second.median,
            p50: both(&self.p50_ms, &base.p50_ms),
            p99: both(&self.p99_ms, &base.p99_ms),
        }
    }
}
