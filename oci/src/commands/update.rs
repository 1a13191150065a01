//! `update`.

use std::io::Read;

use anyhow::{Context, bail};
use clap::Args;
use runtime::oci::verbs;
use serde_json::{Map, Value, json};

use crate::args::Global;

/// Options of `update`.
#[derive(Debug, Default, Args)]
pub struct Arguments {
    /// File with a `resources` object, `-` for stdin; other options are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<String>,
    /// Relative weight of the block devices, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// CPU period in microseconds
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPU time within a period in microseconds
    #[arg(long, value_name = "US", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Relative weight of the CPUs
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// Real-time period in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_period: Option<u64>,
    /// Real-time runtime in microseconds
    #[arg(long, value_name = "US")]
    cpu_rt_runtime: Option<i64>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory in bytes
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory that is kept for it, in bytes
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together, in bytes
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Most processes and threads
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Intel RDT
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Intel RDT
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// Id of the container
    id: String,
}

/// Changes the limits.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    if arguments.l3_cache_schema.is_some() || arguments.mem_bw_schema.is_some() {
        bail!("Intel RDT is not supported: a guest has none");
    }
    let resources = match arguments.resources.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .take(1 << 20)
                .read_to_string(&mut text)
                .context("cannot read stdin")?;
            serde_json::from_str(&text).context("stdin is no resources object")?
        }
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            serde_json::from_str(&text).with_context(|| format!("{path} is no resources object"))?
        }
        None => from_options(arguments),
    };
    verbs::update(&super::find(global, &arguments.id)?, &resources)?;
    Ok(0)
}

fn from_options(arguments: &Arguments) -> Value {
    let object = |pairs: &[(&str, Option<Value>)]| {
        let set = pairs.iter().filter_map(|(key, value)| Some(((*key).into(), value.clone()?)));
        let map: Map<String, Value> = set.collect();
        (!map.is_empty()).then_some(Value::Object(map))
    };
    let memory = object(&[
        ("limit", arguments.memory.map(|n| json!(n))),
        ("reservation", arguments.memory_reservation.map(|n| json!(n))),
        ("swap", arguments.memory_swap.map(|n| json!(n))),
    ]);
    let cpu = object(&[
        ("shares", arguments.cpu_share.map(|n| json!(n))),
        ("quota", arguments.cpu_quota.map(|n| json!(n))),
        ("period", arguments.cpu_period.map(|n| json!(n))),
        ("realtimeRuntime", arguments.cpu_rt_runtime.map(|n| json!(n))),
        ("realtimePeriod", arguments.cpu_rt_period.map(|n| json!(n))),
        ("cpus", arguments.cpuset_cpus.as_ref().map(|text| json!(text))),
        ("mems", arguments.cpuset_mems.as_ref().map(|text| json!(text))),
    ]);
    let pids = object(&[("limit", arguments.pids_limit.map(|n| json!(n)))]);
    let block = object(&[("weight", arguments.blkio_weight.map(|n| json!(n)))]);
    let all = [("memory", memory), ("cpu", cpu), ("pids", pids), ("blockIO", block)];
    object(&all).unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_changed() {
        let arguments =
            Arguments { memory: Some(-1), cpuset_cpus: Some("0".into()), ..Arguments::default() };
        let expected = json!({"memory": {"limit": -1}, "cpu": {"cpus": "0"}});
        assert_eq!(from_options(&arguments), expected);
        assert_eq!(from_options(&Arguments::default()), json!({}));
    }
}
