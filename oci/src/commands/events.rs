//! `events`: figures of the container's cgroup in the guest, in runc's form.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use runtime::oci::verbs;
use serde_json::{Map, Value, json};

use crate::args::Global;

/// Options of `events`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print the figures once
    #[arg(long)]
    stats: bool,
    /// Time between two lines: a number with one of ms, s, m, h
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    interval: Duration,
    /// Id of the container
    id: String,
}

fn interval(text: &str) -> anyhow::Result<Duration> {
    let digits =
        text.find(|c: char| !c.is_ascii_digit()).context("a unit is missing: ms, s, m, h")?;
    let number: u64 = text[..digits].parse().context("it does not begin with a number")?;
    let duration = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        "h" => Duration::from_secs(number.saturating_mul(3600)),
        unit => bail!("{unit:?} is none of ms, s, m, h"),
    };
    if duration.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    Ok(duration)
}

/// Prints figures, one object in each line.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    let container = super::find(global, &arguments.id)?;
    let mut kills = None;
    loop {
        let files = match verbs::stats(&container) {
            Ok(files) => files,
            // It ended while we watched, which is no failure.
            Err(_) if kills.is_some() && !alive(&container) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let now = number(&keyed(&files, "memory.events"), "oom_kill");
        if kills.is_some_and(|before| now > before) {
            line("oom", &arguments.id, None)?;
        }
        line("stats", &arguments.id, Some(data(&files)))?;
        if arguments.stats {
            return Ok(0);
        }
        kills = Some(now);
        std::thread::sleep(arguments.interval);
    }
}

fn alive(container: &runtime::oci::Container) -> bool {
    matches!(container.status(), Ok(runtime::oci::Status::Live(_)))
}

fn line(kind: &str, id: &str, data: Option<Value>) -> anyhow::Result<()> {
    let mut event = json!({ "type": kind, "id": id });
    if let Some(data) = data {
        event["data"] = data;
    }
    super::print(&format!("{event}\n"))
}

type Files = BTreeMap<String, String>;

/// `key value` lines.
fn keyed(files: &Files, name: &str) -> BTreeMap<String, u64> {
    let text = files.get(name).map_or("", String::as_str);
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn number(map: &BTreeMap<String, u64>, key: &str) -> u64 {
    map.get(key).copied().unwrap_or(0)
}

/// One number; `max` is the largest.
fn single(files: &Files, name: &str) -> u64 {
    match files.get(name).map(|text| text.trim()) {
        Some("max") => u64::MAX,
        Some(text) => text.parse().unwrap_or(0),
        None => 0,
    }
}

fn data(files: &Files) -> Value {
    let cpu = keyed(files, "cpu.stat");
    let memory = keyed(files, "memory.stat");
    let micro = |key: &str| number(&cpu, key).saturating_mul(1000);
    let swap = single(files, "memory.swap.current");
    let usage = single(files, "memory.current");
    let entry = |usage: u64, limit: u64| json!({ "usage": usage, "limit": limit, "failcnt": 0 });
    let raw: Map<String, Value> =
        memory.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    json!({
        "cpu": {
            "usage": {
                "total": micro("usage_usec"),
                "kernel": micro("system_usec"),
                "user": micro("user_usec"),
            },
            "throttling": {
                "periods": number(&cpu, "nr_periods"),
                "throttledPeriods": number(&cpu, "nr_throttled"),
                "throttledTime": micro("throttled_usec"),
            },
        },
        "memory": {
            "cache": number(&memory, "file"),
            "usage": entry(usage, single(files, "memory.max")),
            "swap": entry(usage.saturating_add(swap), single(files, "memory.swap.max")),
            "raw": raw,
        },
        "pids": { "current": single(files, "pids.current"), "limit": limit(files, "pids.max") },
        "blkio": io(files),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// runc writes 0 where there is no limit.
fn limit(files: &Files, name: &str) -> u64 {
    match single(files, name) {
        u64::MAX => 0,
        limit => limit,
    }
}

fn io(files: &Files) -> Value {
    let (mut bytes, mut calls) = (Vec::new(), Vec::new());
    for line in files.get("io.stat").map_or("", String::as_str).lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let device = |op: &str, value: u64| {
            let number = |text: &str| text.parse::<u64>().unwrap_or(0);
            json!({ "major": number(major), "minor": number(minor), "op": op, "value": value })
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => bytes.push(device("Read", value)),
                "wbytes" => bytes.push(device("Write", value)),
                "rios" => calls.push(device("Read", value)),
                "wios" => calls.push(device("Write", value)),
                _ => {}
            }
        }
    }
    json!({ "ioServiceBytesRecursive": bytes, "ioServicedRecursive": calls })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(interval("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "5", "0s", "s", "5x"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn figures_come_from_the_cgroups_files() {
        let files = Files::from([
            ("cpu.stat".into(), "usage_usec 7\nuser_usec 3\nsystem_usec 4\n".into()),
            ("memory.current".into(), "4096\n".into()),
            ("memory.max".into(), "max\n".into()),
            ("pids.current".into(), "2\n".into()),
            ("pids.max".into(), "max\n".into()),
            ("io.stat".into(), "254:0 rbytes=1 wbytes=2 rios=3 wios=4\n".into()),
        ]);
        let data = data(&files);
        assert_eq!(data["cpu"]["usage"]["total"], 7000);
        assert_eq!(data["memory"]["usage"]["limit"], u64::MAX);
        assert_eq!(data["pids"], json!({"current": 2, "limit": 0}));
        assert_eq!(data["blkio"]["ioServicedRecursive"][1]["value"], 4);
    }
}
