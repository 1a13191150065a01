//! What the network of a container carries and what that costs, in runc's and in ours on the
//! same bridge: TCP each way, and requests to nginx.
//!
//! ```text
//!  bench0 (bridge) --- bench-runc              runc:             /bench serve, nginx
//!     |            `-- bench-bulkhead-runtime  bulkhead-runtime: the same
//!  this process
//! ```
//!
//! Both run all the time and are asked in turn. The host's CPU seconds are those of everybody:
//! client, server, kernel, VMM.

mod container;
mod load;
mod meter;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use self::container::{Bridge, Container, Servers};
use self::meter::{Cost, measured};
use crate::start::Samples;

pub use self::load::serve;

/// Options of `network`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The file system of servers that `cargo xtask bench` builds
    #[arg(long)]
    servers: PathBuf,
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

/// The runtimes, that which is compared with first.
const RUNTIMES: [&str; 2] = ["runc", "bulkhead-runtime"];

/// One kind of traffic to the container of one runtime.
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

/// Ours over runc's, of medians.
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

/// What was measured: kind of traffic, then runtime.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// All samples.
    pub traffic: BTreeMap<String, BTreeMap<String, Figures>>,
    /// The comparison.
    pub ratios: BTreeMap<String, Ratios>,
}

/// Measures everything.
pub fn run(options: &Options) -> Result<Report> {
    let servers = Servers::mount(&options.servers)?;
    let bridge = Bridge::new()?;
    let containers: Vec<Container> = RUNTIMES
        .iter()
        .enumerate()
        .map(|(index, runtime)| Container::start(runtime, &servers, &bridge, index as u8 + 2))
        .collect::<Result<_>>()?;
    let mut report = Report::default();
    for round in 0..=options.runs {
        eprintln!("bench: network, round {round} of {}", options.runs);
        // The first round fills caches and is not counted.
        let mut scratch = Report::default();
        let target = if round == 0 { &mut scratch } else { &mut report };
        for container in &containers {
            once(target, options, container)?;
        }
    }
    compare(&mut report);
    Ok(report)
}

fn once(report: &mut Report, options: &Options, container: &Container) -> Result<()> {
    let ip = container.ip.as_str();
    let mut add = |kind: &str, count: f64, cost: Cost, latencies: Option<Vec<f64>>| {
        let kind = report.traffic.entry(kind.into()).or_default();
        let figures = kind.entry(container.runtime.into()).or_default();
        figures.per_second.push(count / cost.seconds);
        figures.per_cpu_second.push(count / cost.cpu_seconds);
        if let Some(mut latencies) = latencies {
            latencies.sort_by(f64::total_cmp);
            let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
            figures.p50_ms.get_or_insert_default().push(at(0.5));
            figures.p99_ms.get_or_insert_default().push(at(0.99));
        }
        // A container of runc has no machine.
        if container.runtime != RUNTIMES[0] {
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
    for (kind, runtimes) in &report.traffic {
        let (Some(theirs), Some(ours)) = (runtimes.get(RUNTIMES[0]), runtimes.get(RUNTIMES[1]))
        else {
            continue;
        };
        let both = |ours: &Option<Samples>, theirs: &Option<Samples>| {
            Some(ours.as_ref()?.median / theirs.as_ref()?.median)
        };
        let ratios = Ratios {
            per_second: ours.per_second.median / theirs.per_second.median,
            per_cpu_second: ours.per_cpu_second.median / theirs.per_cpu_second.median,
            p50: both(&ours.p50_ms, &theirs.p50_ms),
            p99: both(&ours.p99_ms, &theirs.p99_ms),
        };
        report.ratios.insert(kind.clone(), ratios);
    }
}
