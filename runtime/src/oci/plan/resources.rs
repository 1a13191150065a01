//! Limits of a specification: the machine's size, and the container's cgroup on the host.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use protocol::machine::{Size, grown_mib};
use serde::Deserialize;
use serde_json::Value;

use super::super::bundle::{BundleError, field};
use super::super::cgroup::Manager;
use super::{Plan, block_io};
use crate::limits::{Bytes, Cpus, LimitError, Limits, Shape};
use crate::sandbox::cgroup::{self, Version};
use crate::systemd::{self, Unit};

/// Takes the limits out that only the host can honour: its CPUs and memory nodes are
/// not the guest's, nor are its disks.
pub(in crate::oci) fn host_resources(resources: &mut Value) {
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("blockIO");
    }
    if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
        unified.retain(|file, _| !of_the_host(file));
    }
}

/// Whether a file of cgroup v2 can mean the host's cgroup only.
fn of_the_host(file: &str) -> bool {
    file.starts_with("cpuset.") || file.starts_with("io.")
}

/// Size of a pod's containers together, as containerd tells the pod's first one:
/// bytes, microseconds.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Size of the machine, whatever the limits of its first container are: `2g`, `1.5`.
const OWN_MEMORY: &str = "bulkhead.memory";
const OWN_CPUS: &str = "bulkhead.cpus";

/// The machine for these limits.
pub(super) fn shape(
    resources: &LinuxResources,
    annotations: &HashMap<String, String>,
) -> Result<Shape, BundleError> {
    let number = |name: &str| annotations.get(name)?.parse::<i64>().ok().filter(|&n| n > 0);
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    let memory = memory.filter(|&limit| limit > 0).or_else(|| number(POD_MEMORY));
    let cpu = resources.cpu().clone().unwrap_or_default();
    let quota = cpu.quota().filter(|&quota| quota > 0);
    let cpu = match quota {
        None => (number(POD_QUOTA), number(POD_PERIOD).map(i64::unsigned_abs)),
        quota => (quota, cpu.period()),
    };
    let mut limits = Limits {
        memory: memory.map(|limit| Bytes(limit.unsigned_abs())),
        cpus: match cpu {
            (Some(quota), period) if quota > 0 => {
                let period = period.filter(|&period| period > 0).unwrap_or(100_000);
                let millionths = u128::from(quota.unsigned_abs()) * 1_000_000 / u128::from(period);
                Some(Cpus(u64::try_from(millionths).unwrap_or(u64::MAX)))
            }
            _ => None,
        },
        pids: None,
    };
    let wrong =
        |name: &str, error: LimitError| field(format!("annotations[{name}]"), error.to_string());
    if let Some(text) = annotations.get(OWN_MEMORY) {
        limits.memory = Some(text.parse().map_err(|error| wrong(OWN_MEMORY, error))?);
    }
    if let Some(text) = annotations.get(OWN_CPUS) {
        limits.cpus = Some(text.parse().map_err(|error| wrong(OWN_CPUS, error))?);
    }
    limits.shape().map_err(|error| field("linux.resources.memory.limit", error.to_string()))
}

/// What the container's cgroup on the host is limited to: the limits themselves
/// hold in the guest; these are for what stands for the container on the host.
///
/// # Errors
/// Names what the host's version of cgroups has not.
pub(super) fn host_limits(
    resources: &LinuxResources,
    shape: &Shape,
    version: Version,
) -> Result<Vec<(String, String)>, BundleError> {
    let mut limits = cgroup::limits(shape, version);
    let mut push = |file: &str, value: String| limits.push((file.to_owned(), value));
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            match version {
                Version::V1 => push("cpu.shares", shares.to_string()),
                Version::V2 => push("cpu.weight", weight(shares).to_string()),
            }
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                push(file, list.clone());
            }
        }
    }
    for (file, value) in resources.unified().iter().flatten().filter(|(file, _)| of_the_host(file))
    {
        if version == Version::V1 {
            let reason = format!("{file} is a limit of the host's cgroup v2, and the host has v1");
            return Err(field("linux.resources.unified", reason));
        }
        // The kernel takes a device at a time.
        value.lines().for_each(|line| push(file, line.to_owned()));
    }
    if let Some(block) = resources.block_io() {
        limits.extend(block_io::limits(block, version)?);
    }
    Ok(limits)
}

/// What an update changes on the host.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::oci) struct Update {
    /// Of the container's cgroup: file and value.
    pub(in crate::oci) settings: Vec<(String, String)>,
    /// What the machine has to grow to.
    pub(in crate::oci) size: Option<Size>,
}

/// What an update changes of a container whose machine has the shape `present`, on a host
/// of `host_cpus` CPUs.
///
/// # Errors
/// Names the field.
pub(in crate::oci) fn updated(
    plan: &Plan,
    present: &Shape,
    resources: &Value,
    host_cpus: u8,
    version: Version,
) -> Result<Update, BundleError> {
    let resources = LinuxResources::deserialize(resources)
        .map_err(|error| field("resources", error.to_string()))?;
    let wanted = shape(&resources, &HashMap::new())?;
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or(0);
    let quota = resources.cpu().as_ref().and_then(|cpu| cpu.quota()).unwrap_or(0);
    let mut size = Size { memory_mib: present.memory_mib, vcpus: present.vcpus };
    if memory > 0 {
        size.memory_mib = grown_mib(present.memory_mib, wanted.memory_mib);
    }
    if quota > 0 {
        // More than the host has would gain nothing.
        size.vcpus = present.vcpus.max(wanted.vcpus.min(host_cpus));
    }
    // In a machine that it joined, its limits are not the machine's.
    let own = plan.machine.is_none();
    // One that was started by an earlier version says so itself.
    let room = if own && plan.max_vcpus > 0 { plan.max_vcpus } else { u8::MAX };
    if size.vcpus > present.vcpus && size.vcpus > room {
        let reason = format!(
            "{} CPUs are wanted; the machine of the container was started with room for {} \
             (the annotation bulkhead.cpus gives it more)",
            size.vcpus, room
        );
        return Err(field("linux.resources.cpu.quota", reason));
    }
    let grows = (size.memory_mib, size.vcpus) != (present.memory_mib, present.vcpus);
    let size = (grows && own).then_some(size);
    // Those of the machine, which has them already.
    let keep = |(file, _): &(String, String)| !file.starts_with("memory.") && file != "pids.max";
    let mut settings = host_limits(&resources, &wanted, version)?;
    settings.retain(keep);
    if quota < 0 {
        let (file, none) = match version {
            Version::V1 => ("cpu.cfs_quota_us", "-1"),
            Version::V2 => ("cpu.max", "max"),
        };
        settings.push((file.into(), none.into()));
    }
    Ok(Update { settings, size })
}

/// `cpu.weight` of `cpu.shares`, as runc converts it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The scope, where systemd makes the cgroup, and its directory.
pub(super) fn scope(
    id: &str,
    path: Option<&Path>,
    annotations: &HashMap<String, String>,
) -> Result<(PathBuf, Manager), BundleError> {
    let wrong = |reason: String| field("linux.cgroupsPath", reason);
    let path = match path.map(Path::to_str) {
        Some(None) => return Err(wrong("is not UTF-8".into())),
        path => path.flatten(),
    };
    let mut unit = Unit::of(id, path).map_err(wrong)?;
    unit.properties = systemd::of_annotations(annotations)
        .map_err(|(key, reason)| field(format!("annotations[{key}]"), reason))?;
    Ok((unit.cgroup(), Manager::Systemd(unit)))
}

/// Where in the tree of cgroups: as runc does without systemd.
pub(super) fn cgroup_path(id: &str, path: Option<&Path>) -> Result<PathBuf, BundleError> {
    let root = Path::new(cgroup::ROOT);
    let wrong = |reason: String| field("linux.cgroupsPath", reason);
    let path = match path.filter(|path| !path.as_os_str().is_empty()) {
        None => Path::new("/bulkhead").join(id),
        Some(path) if path.is_absolute() => path.to_owned(),
        Some(path) => cgroup::base().join(path),
    };
    let below = path.strip_prefix("/").unwrap_or(&path);
    let normal = |part| matches!(part, std::path::Component::Normal(_));
    if below.as_os_str().is_empty() || !below.components().all(normal) {
        return Err(wrong(format!("{} leads nowhere below {}", path.display(), root.display())));
    }
    Ok(root.join(below))
}
