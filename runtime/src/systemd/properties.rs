//! Properties of a scope: of limits, which are files of a cgroup here, and of
//! annotations. See systemd.resource-control(5) for the former.

use serde::{Deserialize, Serialize};

use super::value::{Type, Value};
use super::{SystemdError, Unit};

/// Precedes a property's name in annotations, as runc's docs/systemd.md has it.
const ANNOTATION: &str = "org.systemd.property.";
/// Properties that nobody else may choose: where the scope is, and who is in it.
const OURS: [&str; 4] = ["Slice", "PIDs", "Delegate", "ControlGroup"];
/// No limit, to systemd.
const INFINITY: u64 = u64::MAX;
/// `cpu.max` without a period, in microseconds: see the kernel's cgroup-v2.rst.
const CPU_PERIOD_US: u64 = 100_000;
/// What systemd counts CPU time in, per second: a percent of one CPU.
const PERCENT_US: u64 = 10_000;
/// Most CPUs, or memory nodes, of a host.
const MAX_CPUS: usize = 8192;

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Property {
    /// Its name on D-Bus.
    pub name: String,
    /// Its value.
    pub value: Value,
}

impl Property {
    pub(super) fn new(name: impl Into<String>, value: Value) -> Property {
        Property { name: name.into(), value }
    }
}

/// What a scope of `unit` that holds process `pid` begins with, beside limits.
pub(super) fn of_scope(unit: &Unit, pid: u32) -> Vec<Property> {
    let text = |name: &str, text: &str| Property::new(name, Value::Text(text.to_owned()));
    let flag = |name: &str, on| Property::new(name, Value::Bool(on));
    let mut properties = vec![
        text("Description", &unit.description),
        text("Slice", &unit.slice),
        Property::new("PIDs", Value::List(Type::Basic('u'), vec![Value::Uint32(pid)])),
        // What is below is ours, and systemd leaves it alone.
        flag("Delegate", true),
        // Engines end their containers themselves, and before those that they need.
        flag("DefaultDependencies", false),
        flag("MemoryAccounting", true),
        flag("CPUAccounting", true),
        flag("IOAccounting", true),
        flag("TasksAccounting", true),
    ];
    properties.extend(unit.properties.iter().cloned());
    properties
}

/// The properties that annotations name.
///
/// # Errors
/// An annotation, and what is wrong with it.
pub fn of_annotations<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<Property>, (String, String)> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(ANNOTATION) else { continue };
        let wrong = |reason: String| (key.clone(), reason);
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(wrong(
                "the name of a property has at least three letters, and none else".into(),
            ));
        }
        let value = Value::parse(text).map_err(wrong)?;
        if OURS.contains(&name) {
            return Err(wrong(format!("{name} is what the runtime sets")));
        }
        properties.push(match in_microseconds(name) {
            Some(name) => Property::new(name, microseconds(value).map_err(wrong)?),
            None => Property::new(name, value),
        });
    }
    properties.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(properties)
}

/// `TimeoutStopSec` of unit files is `TimeoutStopUSec` on D-Bus.
fn in_microseconds(name: &str) -> Option<String> {
    let stem = name.strip_suffix("Sec")?;
    stem.ends_with(|letter: char| letter.is_ascii_lowercase()).then(|| format!("{stem}USec"))
}

fn microseconds(seconds: Value) -> Result<Value, String> {
    let whole = |seconds: i128| u64::try_from(seconds * 1_000_000).ok();
    let value = match seconds {
        Value::Byte(n) => whole(n.into()),
        Value::Int16(n) => whole(n.into()),
        Value::Uint16(n) => whole(n.into()),
        Value::Int32(n) => whole(n.into()),
        Value::Uint32(n) => whole(n.into()),
        Value::Int64(n) => whole(n.into()),
        Value::Uint64(n) => whole(n.into()),
        Value::Double(n) if (0.0..1e12).contains(&n) => Some((n * 1e6) as u64),
        _ => None,
    };
    Ok(Value::Uint64(value.ok_or("is no number of seconds")?))
}

/// The properties for limits, where there are such: what systemd does not know of a
/// cgroup it would write over with its own defaults. The others are files only.
///
/// # Errors
/// Names the limit.
pub fn of_limits(limits: &[(String, String)]) -> Result<Vec<Property>, SystemdError> {
    let mut properties = Vec::new();
    for (file, value) in limits {
        let some = of_limit(file, value.trim()).map_err(|reason| SystemdError::Limit {
            file: file.clone(),
            value: value.clone(),
            reason,
        })?;
        properties.extend(some);
    }
    properties.extend(cfs(limits)?);
    Ok(properties)
}

/// Both files of cgroup v1 that say together what `cpu.max` says.
fn cfs(limits: &[(String, String)]) -> Result<Vec<Property>, SystemdError> {
    const QUOTA: &str = "cpu.cfs_quota_us";
    let last = |name: &str| limits.iter().rfind(|(file, _)| file == name).map(|(_, value)| value);
    let Some(quota) = last(QUOTA) else { return Ok(Vec::new()) };
    let words = match (quota.as_str(), last("cpu.cfs_period_us")) {
        ("-1", _) => "max".to_owned(),
        (quota, None) => quota.to_owned(),
        (quota, Some(period)) => format!("{quota} {period}"),
    };
    let (file, value) = (QUOTA.to_owned(), quota.clone());
    cpu_max(&words).map_err(|reason| SystemdError::Limit { file, value, reason })
}

fn of_limit(file: &str, value: &str) -> Result<Vec<Property>, &'static str> {
    let one = |name: &str, value| Ok(vec![Property::new(name, value)]);
    match file {
        "memory.max" => one("MemoryMax", limit(value)?),
        // Those of cgroup v1; systemd converts no number then.
        "memory.limit_in_bytes" => one("MemoryLimit", limit(value)?),
        "cpu.shares" => one("CPUShares", Value::Uint64(number(value)?)),
        "memory.high" => one("MemoryHigh", limit(value)?),
        "memory.low" => one("MemoryLow", limit(value)?),
        "memory.min" => one("MemoryMin", limit(value)?),
        "memory.swap.max" => one("MemorySwapMax", limit(value)?),
        "pids.max" => one("TasksMax", limit(value)?),
        "cpu.weight" => one("CPUWeight", Value::Uint64(number(value)?)),
        "cpu.max" => cpu_max(value),
        "cpuset.cpus" => Ok(bits("AllowedCPUs", value)),
        "cpuset.mems" => Ok(bits("AllowedMemoryNodes", value)),
        "io.weight" => each_line(value, io_weight),
        "io.max" => each_line(value, io_max),
        "io.latency" => each_line(value, |value| {
            let (path, pairs) = device(value)?;
            let [("target", target)] = pairs[..] else {
                return Err("it is of the form MAJOR:MINOR target=US");
            };
            one("IODeviceLatencyTargetUSec", of_device(path, number(target)?))
        }),
        _ => Ok(Vec::new()),
    }
}

/// A file may be told of several devices, one in each line.
fn each_line(
    value: &str,
    of_line: impl Fn(&str) -> Result<Vec<Property>, &'static str>,
) -> Result<Vec<Property>, &'static str> {
    let lines = value.lines().filter(|line| !line.trim().is_empty()).map(of_line);
    Ok(lines.collect::<Result<Vec<_>, _>>()?.concat())
}

fn number(value: &str) -> Result<u64, &'static str> {
    value.parse().map_err(|_| "it is no number")
}

fn number_or_max(value: &str) -> Result<u64, &'static str> {
    if value == "max" { Ok(INFINITY) } else { number(value) }
}

fn limit(value: &str) -> Result<Value, &'static str> {
    Ok(Value::Uint64(number_or_max(value)?))
}

/// `QUOTA [PERIOD]`. The file gets the same limit exactly, and after this.
fn cpu_max(value: &str) -> Result<Vec<Property>, &'static str> {
    let mut words = value.split_whitespace();
    let quota = number_or_max(words.next().unwrap_or_default())?;
    let period = words.next().map_or(Ok(CPU_PERIOD_US), number)?;
    if words.next().is_some() || period == 0 {
        return Err("it is of the form QUOTA PERIOD");
    }
    let per_second = match quota {
        INFINITY => INFINITY,
        quota => {
            let exact = u128::from(quota) * 1_000_000 / u128::from(period);
            let exact = u64::try_from(exact).map_err(|_| "it is too large")?;
            // Rounded up as runc does: it must not be less than what is wanted.
            exact.div_ceil(PERCENT_US).saturating_mul(PERCENT_US)
        }
    };
    Ok(vec![
        Property::new("CPUQuotaPeriodUSec", Value::Uint64(period)),
        Property::new("CPUQuotaPerSecUSec", Value::Uint64(per_second)),
    ])
}

/// The property for `0-2,7`, as a mask, lowest byte first. What else the kernel takes
/// (`0-7:1/2`, see `bitmap_parselist`), or refuses, is the file's alone.
fn bits(name: &str, list: &str) -> Vec<Property> {
    let mut mask: Vec<u8> = Vec::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let cpu = |text: &str| text.trim().parse::<usize>().ok().filter(|&cpu| cpu < MAX_CPUS);
        let (Some(first), Some(last)) = (cpu(first), cpu(last)) else { return Vec::new() };
        if first > last {
            return Vec::new();
        }
        mask.resize(mask.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|cpu| mask[cpu / 8] |= 1 << (cpu % 8));
    }
    let mask = mask.into_iter().map(Value::Byte).collect();
    vec![Property::new(name, Value::List(Type::Basic('y'), mask))]
}

/// `[default] WEIGHT`, or `MAJOR:MINOR WEIGHT`.
fn io_weight(value: &str) -> Result<Vec<Property>, &'static str> {
    let words: Vec<&str> = value.split_whitespace().collect();
    let property = match words[..] {
        [weight] | ["default", weight] => Property::new("IOWeight", Value::Uint64(number(weight)?)),
        [of, weight] => Property::new("IODeviceWeight", of_device(path(of)?, number(weight)?)),
        _ => return Err("it is of the form MAJOR:MINOR WEIGHT"),
    };
    Ok(vec![property])
}

/// `MAJOR:MINOR KEY=VALUE...`.
fn io_max(value: &str) -> Result<Vec<Property>, &'static str> {
    let (path, pairs) = device(value)?;
    let property = |(key, value): &(&str, &str)| {
        let name = match *key {
            "rbps" => "IOReadBandwidthMax",
            "wbps" => "IOWriteBandwidthMax",
            "riops" => "IOReadIOPSMax",
            "wiops" => "IOWriteIOPSMax",
            _ => return Err("its keys are rbps, wbps, riops and wiops"),
        };
        Ok(Property::new(name, of_device(path.clone(), number_or_max(value)?)))
    };
    pairs.iter().map(property).collect()
}

/// A device's number, and the limits that hold for it.
type Device<'a> = (String, Vec<(&'a str, &'a str)>);

/// Path and `KEY=VALUE` pairs of `MAJOR:MINOR KEY=VALUE...`.
fn device(value: &str) -> Result<Device<'_>, &'static str> {
    let mut words = value.split_whitespace();
    let path = path(words.next().unwrap_or_default())?;
    let pairs = words.map(|word| word.split_once('=').ok_or("a value is KEY=VALUE"));
    Ok((path, pairs.collect::<Result<_, _>>()?))
}

/// The device node of `MAJOR:MINOR`: systemd wants a path.
fn path(numbers: &str) -> Result<String, &'static str> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match numbers.split_once(':') {
        Some((major, minor)) if digits(major) && digits(minor) => {
            Ok(format!("/dev/block/{numbers}"))
        }
        _ => Err("a device is MAJOR:MINOR"),
    }
}

fn of_device(path: String, value: u64) -> Value {
    let of = Type::Tuple(vec![Type::Basic('s'), Type::Basic('t')]);
    Value::List(of, vec![Value::Tuple(vec![Value::Text(path), Value::Uint64(value)])])
}
