//! How much a container may use, and what its machine is given for it.

use std::str::FromStr;

use protocol::machine::Size;
use serde::{Deserialize, Serialize};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Guest memory of a container without a limit of its own.
pub const DEFAULT_GUEST_MIB: u32 = 512;
/// Memory of the guest beyond the container's limit: kernel, agent, page tables.
pub const GUEST_OVERHEAD_MIB: u32 = 64;
/// Memory of the VMM process beyond the guest's: its code and stacks, the file
/// server, page cache that it is charged with.
pub const VMM_HEADROOM_MIB: u64 = 64;
/// Smallest limit, as docker's.
pub const MIN_MEMORY: u64 = 6 * MIB;
/// vCPUs to which a machine can grow, where the host has as many CPUs. The guest's kernel
/// has an area and a device for each, also for those that never come; the areas of eight
/// fit into the one block of 2 MiB that it takes for them anyway.
pub const GROWTH_VCPUS: u8 = 8;
/// Most vCPUs of one machine.
pub const MAX_VCPUS: u32 = protocol::machine::MAX_VCPUS as u32;

/// Why a limit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not a size.
    #[error("invalid size: {0:?} (examples: 512m, 2g, 1048576)")]
    Size(String),
    /// Not a number of CPUs.
    #[error("invalid number of CPUs: {0:?} (examples: 2, 0.5)")]
    Cpus(String),
    /// Under [`MIN_MEMORY`].
    #[error("minimum memory limit allowed is 6MB; {0} bytes were asked for")]
    TooSmall(u64),
    /// Over what the contract with the VMM can say.
    #[error("{0} bytes of memory are more than a machine can have")]
    TooLarge(u64),
    /// Over [`MAX_VCPUS`] or under a hundredth.
    #[error("the number of CPUs must be between 0.01 and {MAX_VCPUS}")]
    CpuRange,
    /// Without root.
    #[error(
        "without root there is no limit of processor time but the number of vCPUs: ask for whole \
         CPUs (--cpus 1), or run it with sudo"
    )]
    CpuFraction,
}

/// A size in bytes, from docker's syntax: a number, maybe with a fraction, and
/// one of b, k, m, g, t with an optional b or ib; powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Bytes, LimitError> {
        parse_bytes(text).map(Bytes).ok_or_else(|| LimitError::Size(text.into()))
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.trim_start() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1u64 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let value = number.parse::<f64>().ok()? * unit as f64;
    (value.is_finite() && value < u64::MAX as f64).then_some(value as u64)
}

/// CPUs in millionths, so that they compare and add up exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cpus(pub u64);

impl FromStr for Cpus {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Cpus, LimitError> {
        let value: f64 = text.parse().map_err(|_| LimitError::Cpus(text.into()))?;
        if !(0.01..=f64::from(MAX_VCPUS)).contains(&value) {
            return Err(LimitError::CpuRange);
        }
        Ok(Cpus((value * 1e6).round() as u64))
    }
}

impl Cpus {
    /// vCPUs that can use up this share.
    pub fn vcpus(self) -> u8 {
        self.0.div_ceil(1_000_000).clamp(1, u64::from(MAX_VCPUS)) as u8
    }

    /// Whether that many vCPUs are no more than it.
    pub fn is_whole(self) -> bool {
        self.0.is_multiple_of(1_000_000)
    }

    /// CFS quota in microseconds for a period of 100 ms.
    pub fn quota_us(self) -> u64 {
        (self.0 / 10).max(1000)
    }
}

/// Period of [`Cpus::quota_us`] in microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Limit of the container's memory.
    pub memory: Option<Bytes>,
    /// Limit of its processor time.
    pub cpus: Option<Cpus>,
    /// Limit of its number of tasks.
    pub pids: Option<i64>,
}

/// What the machine gets for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u8,
    /// memory.max of the VMM's cgroup in bytes.
    pub host_memory_max: u64,
    /// cpu.max quota of the VMM's cgroup in microseconds per 100 ms.
    pub host_cpu_quota: Option<u64>,
}

impl Shape {
    /// The same with another size.
    pub fn resized(self, size: Size) -> Shape {
        let Size { memory_mib, vcpus } = size;
        Shape { memory_mib, vcpus, host_memory_max: host_memory_max(memory_mib), ..self }
    }
}

fn host_memory_max(memory_mib: u32) -> u64 {
    let guest = u64::from(memory_mib) * MIB;
    guest + guest / 64 + VMM_HEADROOM_MIB * MIB
}

/// CPUs of this host; at least one.
pub fn host_cpus() -> u8 {
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    online.ok().flatten().map_or(1, |count| u8::try_from(count.max(1)).unwrap_or(u8::MAX))
}

/// How many vCPUs a machine may have one day that is started with `vcpus` on a host of
/// `host` CPUs.
pub fn possible_vcpus(vcpus: u8, host: u8) -> u8 {
    vcpus.max(host.min(GROWTH_VCPUS))
}

impl Limits {
    /// The machine for these limits.
    ///
    /// # Errors
    /// When the memory limit is out of range.
    pub fn shape(&self) -> Result<Shape, LimitError> {
        let memory_mib = match self.memory {
            None => DEFAULT_GUEST_MIB,
            Some(Bytes(bytes)) if bytes < MIN_MEMORY => return Err(LimitError::TooSmall(bytes)),
            Some(Bytes(bytes)) => u32::try_from(bytes.div_ceil(MIB))
                .ok()
                .and_then(|mib| mib.checked_add(GUEST_OVERHEAD_MIB + mib / 64))
                .filter(|&mib| mib <= 1 << 20)
                .ok_or(LimitError::TooLarge(bytes))?,
        };
        Ok(Shape {
            memory_mib,
            vcpus: self.cpus.map_or(1, Cpus::vcpus),
            host_memory_max: host_memory_max(memory_mib),
            host_cpu_quota: self.cpus.map(Cpus::quota_us),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let cases = [
            ("1024", Some(1024)),
            ("512m", Some(512 << 20)),
            ("1.5g", Some(3 << 29)),
            ("64 MiB", Some(64 << 20)),
            ("2GB", Some(2 << 30)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1.2.3m", None),
            ("99999999999999t", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), expected, "{text}");
        }
    }

    #[test]
    fn cpus() {
        let half: Cpus = "0.5".parse().unwrap();
        assert_eq!((half.vcpus(), half.quota_us()), (1, 50_000));
        let more: Cpus = "2.1".parse().unwrap();
        assert_eq!((more.vcpus(), more.quota_us()), (3, 210_000));
        for bad in ["0", "-1", "NaN", "inf", "65", "x"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_is_larger_than_the_limit() {
        let limits = Limits { memory: Some(Bytes(64 << 20)), ..Limits::default() };
        let shape = limits.shape().unwrap();
        assert_eq!((shape.memory_mib, shape.vcpus), (129, 1));
        let limits = Limits { memory: Some(Bytes(1 << 20)), ..Limits::default() };
        assert_eq!(limits.shape(), Err(LimitError::TooSmall(1 << 20)));
        let limits = Limits { memory: Some(Bytes(u64::MAX)), ..Limits::default() };
        assert!(matches!(limits.shape(), Err(LimitError::TooLarge(_))));
    }

    #[test]
    fn room_for_vcpus_is_bounded_by_host_and_start() {
        let cases = [((1, 2), 2), ((1, 64), 8), ((12, 64), 12), ((3, 2), 3), ((1, 1), 1)];
        for ((vcpus, host), room) in cases {
            assert_eq!(possible_vcpus(vcpus, host), room, "{vcpus} of {host}");
        }
        assert!(host_cpus() >= 1);
    }

    proptest! {
        #[test]
        fn any_accepted_limit_fits_into_guest_and_host(bytes in MIN_MEMORY..(1u64 << 39)) {
            let limits = Limits { memory: Some(Bytes(bytes)), ..Limits::default() };
            let shape = limits.shape().unwrap();
            let guest = u64::from(shape.memory_mib) * MIB;
            prop_assert!(guest > bytes && shape.host_memory_max > guest);
        }

        #[test]
        fn nonsense_never_panics(text in ".{0,20}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Cpus>();
        }
    }
}
