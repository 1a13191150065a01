//! `linux.resources` -> files of cgroup v2, the numbers converted as runc does.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::plan::{PlanError, field};

/// File and value, in the order in which they are written.
pub type Settings = Vec<(String, String)>;

/// The files that `resources` asks for (devices apart).
///
/// # Errors
/// Names a field that cgroup v2 does not have.
pub fn settings(resources: &LinuxResources) -> Result<Settings, PlanError> {
    let mut files = Settings::new();
    if let Some(given) = resources.memory() {
        memory(given, &mut files)?;
    }
    if let Some(given) = resources.cpu() {
        cpu(given, &mut files)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        push(&mut files, "pids.max", or_max(limit));
    }
    if resources.block_io().is_some() {
        return Err(field("linux.resources.blockIO", "the guest has no disk of the host"));
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        if !page_size(size) {
            let reason = format!("the page size {size:?} is not like 64KB, 2MB or 1GB");
            return Err(field("linux.resources.hugepageLimits", reason));
        }
        push(&mut files, &format!("hugetlb.{size}.max"), or_max(limit.limit()));
    }
    if let Some(network) = resources.network() {
        let priorities = network.priorities().as_ref().is_some_and(|list| !list.is_empty());
        if network.class_id().is_some_and(|id| id != 0) || priorities {
            return Err(field("linux.resources.network", "cgroup v2 has no network controllers"));
        }
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(field("linux.resources.rdma", "the guest has no RDMA devices"));
    }
    unified(resources, &mut files)?;
    Ok(files)
}

/// Whether `text` is a page size as config-linux.md writes it, and with that part of a
/// file's name.
fn page_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| {
        !number.is_empty() && number.len() <= 9 && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn push(files: &mut Settings, file: &str, value: impl ToString) {
    files.push((file.to_owned(), value.to_string()));
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

#[allow(deprecated)] // `kernel` must be seen to be refused
fn memory(memory: &LinuxMemory, files: &mut Settings) -> Result<(), PlanError> {
    let wrong =
        |name: &str, reason: &str| Err(field(format!("linux.resources.memory.{name}"), reason));
    let set = |value: Option<i64>| value.filter(|value| *value != 0);
    let (limit, swap) = (set(memory.limit()), set(memory.swap()));
    if let Some(swap) = swap {
        // The specification counts memory and swap together, v2 apart.
        let value = match limit {
            _ if swap < 0 => -1,
            Some(limit) if limit >= 0 && swap >= limit => swap - limit,
            Some(limit) if limit >= 0 => return wrong("swap", "is smaller than the memory limit"),
            _ => return wrong("swap", "needs a memory limit"),
        };
        push(files, "memory.swap.max", or_max(value));
    }
    if let Some(limit) = limit {
        push(files, "memory.max", or_max(limit));
    }
    if let Some(reservation) = set(memory.reservation()) {
        push(files, "memory.low", or_max(reservation));
    }
    let v1 = "cgroup v2 has no such limit";
    if set(memory.kernel()).is_some_and(|limit| limit > 0) {
        return wrong("kernel", v1);
    }
    if set(memory.kernel_tcp()).is_some_and(|limit| limit > 0) {
        return wrong("kernelTCP", v1);
    }
    if memory.swappiness().is_some() {
        return wrong("swappiness", v1);
    }
    if memory.disable_oom_killer() == Some(true) {
        return wrong("disableOOMKiller", v1);
    }
    if memory.check_before_update() == Some(true) {
        return wrong("checkBeforeUpdate", "is not supported");
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu, files: &mut Settings) -> Result<(), PlanError> {
    if cpu.realtime_runtime().is_some_and(|n| n != 0)
        || cpu.realtime_period().is_some_and(|n| n != 0)
    {
        let name = "linux.resources.cpu.realtimeRuntime, realtimePeriod";
        return Err(field(name, "cgroup v2 has no such limit"));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        // [2, 262144] -> [1, 10000].
        let shares = shares.clamp(2, 262_144);
        push(files, "cpu.weight", 1 + ((shares - 2) * 9999) / 262_142);
    }
    if let Some(idle) = cpu.idle() {
        push(files, "cpu.idle", idle);
    }
    let period = cpu.period().filter(|period| *period != 0);
    match (cpu.quota().filter(|quota| *quota != 0), period) {
        (None, None) => {}
        (None, Some(period)) => push(files, "cpu.max", format!("max {period}")),
        (Some(quota), period) => {
            let quota = if quota > 0 { quota.to_string() } else { "max".to_owned() };
            push(files, "cpu.max", format!("{quota} {}", period.unwrap_or(100_000)));
        }
    }
    if let Some(burst) = cpu.burst() {
        push(files, "cpu.max.burst", burst);
    }
    for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            push(files, file, list);
        }
    }
    Ok(())
}

fn unified(resources: &LinuxResources, files: &mut Settings) -> Result<(), PlanError> {
    let sorted: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, value) in sorted {
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            let name = format!("linux.resources.unified[{file:?}]");
            return Err(field(name, "is not the name of a cgroup file"));
        }
        value.lines().for_each(|line| push(files, file, line));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn convert(value: serde_json::Value) -> Result<Settings, PlanError> {
        settings(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn limits_are_converted_as_runc_does() {
        let files = convert(json!({
            "memory": {"limit": 67108864, "swap": 134217728, "reservation": 1048576,
                       "disableOOMKiller": false},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0"},
            "pids": {"limit": 32},
            "unified": {"memory.high": "1000"},
        }))
        .unwrap();
        let files: Vec<_> = files.iter().map(|(f, v)| (f.as_str(), v.as_str())).collect();
        assert_eq!(
            files,
            [
                ("memory.swap.max", "67108864"),
                ("memory.max", "67108864"),
                ("memory.low", "1048576"),
                ("cpu.weight", "39"),
                ("cpu.max", "50000 100000"),
                ("cpuset.cpus", "0"),
                ("pids.max", "32"),
                ("memory.high", "1000"),
            ]
        );
    }

    #[test]
    fn only_page_sizes_become_names_of_files() {
        let limit = |size| json!({"hugepageLimits": [{"pageSize": size, "limit": 1}]});
        for (size, file) in [("64KB", "hugetlb.64KB.max"), ("2MB", "hugetlb.2MB.max")] {
            assert_eq!(convert(limit(size)).unwrap(), [(file.to_owned(), "1".to_owned())]);
        }
        for size in ["", "MB", "2", "2mb", "2TB", "../2MB", "/2MB", "2MB/../x", "-2MB"] {
            let error = convert(limit(size)).unwrap_err().to_string();
            assert!(error.starts_with("linux.resources.hugepageLimits: "), "{error}");
        }
    }

    #[test]
    fn minus_one_lifts_a_limit() {
        let files = convert(json!({"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1},
            "pids": {"limit": -1}}))
        .unwrap();
        let values: Vec<_> = files.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["max", "max", "max 100000", "max"]);
    }

    #[test]
    fn what_v2_lacks_is_named() {
        let cases = [
            (json!({"memory": {"swappiness": 10}}), "linux.resources.memory.swappiness"),
            (json!({"memory": {"disableOOMKiller": true}}), "disableOOMKiller"),
            (json!({"memory": {"limit": 5, "swap": 4}}), "linux.resources.memory.swap"),
            (json!({"cpu": {"realtimeRuntime": 1}}), "realtimeRuntime"),
            (json!({"network": {"classID": 1}}), "linux.resources.network"),
            (json!({"unified": {"../x.y": "1"}}), "linux.resources.unified"),
        ];
        for (value, name) in cases {
            let error = convert(value).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
