//! What work costs the host.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

/// Where KVM's counters are.
const KVM: &str = "/sys/kernel/debug/kvm";
/// Those that tell why a guest was left, or what it was told.
const COUNTERS: [&str; 9] = [
    "exits",
    "mmio_exits",
    "io_exits",
    "halt_exits",
    "irq_exits",
    "irq_window_exits",
    "irq_injections",
    "halt_wakeup",
    "insn_emulation",
];

/// Of one piece of work.
pub struct Cost {
    /// On the wall.
    pub seconds: f64,
    /// Of all CPUs of the host, whoever used them.
    pub cpu_seconds: f64,
    /// What KVM counted, where it shows it.
    pub kvm: BTreeMap<String, f64>,
}

/// Does `work` and counts what the host did in the meantime.
pub fn measured<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
    let (start, idle, before) = (Instant::now(), idle()?, counters());
    let result = work()?;
    let seconds = start.elapsed().as_secs_f64();
    let (idle_after, after) = (self::idle()?, counters());
    let cpu_seconds = (seconds * idle.len() as f64 - (sum(&idle_after) - sum(&idle))).max(1e-3);
    let kvm = after.into_iter().map(|(name, count)| {
        let change = count - before.get(&name).copied().unwrap_or(0.0);
        (name, change)
    });
    Ok((result, Cost { seconds, cpu_seconds, kvm: kvm.collect() }))
}

fn sum(of_cpus: &[f64]) -> f64 {
    of_cpus.iter().sum()
}

/// Seconds that each CPU did nothing. The kernel measures these, and only samples the others.
fn idle() -> Result<Vec<f64>> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    text.lines()
        .filter(|line| line.strip_prefix("cpu").is_some_and(|rest| !rest.starts_with(' ')))
        .map(|line| {
            let fields: Vec<f64> =
                line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
            // idle and iowait, in units of USER_HZ, which is 100.
            let both = fields.get(3).zip(fields.get(4)).map(|(idle, wait)| (idle + wait) / 100.0);
            both.context("a line of /proc/stat is short")
        })
        .collect()
}

/// Of all machines together.
fn counters() -> BTreeMap<String, f64> {
    let read = |name: &&str| {
        let text = fs::read_to_string(format!("{KVM}/{name}")).ok()?;
        Some(((*name).to_owned(), text.trim().parse().ok()?))
    };
    COUNTERS.iter().filter_map(read).collect()
}
