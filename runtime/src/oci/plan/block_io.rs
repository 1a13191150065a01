//! `linux.resources.blockIO`: weights and rates of the host's block devices, which the
//! sandbox's files lie on.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::super::bundle::{BundleError, field};
use crate::sandbox::cgroup::Version;

/// Files of the host's cgroup and what is written to them, one device at a time.
///
/// # Errors
/// Names what no kernel has any more.
pub(super) fn limits(
    block: &LinuxBlockIo,
    version: Version,
) -> Result<Vec<(String, String)>, BundleError> {
    const LEAF: &str = "was CFQ's, which Linux dropped";
    let is_set = |weight: Option<u16>| weight.is_some_and(|weight| weight != 0);
    if is_set(block.leaf_weight()) {
        return Err(field("linux.resources.blockIO.leafWeight", LEAF));
    }
    let mut limits = Vec::new();
    let mut push = |file: &str, value: String| limits.push((file.to_owned(), value));
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        match version {
            Version::V1 => push("blkio.bfq.weight", weight.to_string()),
            Version::V2 => push("io.weight", format!("default {}", converted(weight))),
        }
    }
    for device in block.weight_device().iter().flatten() {
        if is_set(device.leaf_weight()) {
            return Err(field("linux.resources.blockIO.weightDevice.leafWeight", LEAF));
        }
        let Some(weight) = device.weight() else { continue };
        let device = format!("{}:{}", device.major(), device.minor());
        match version {
            Version::V1 => push("blkio.bfq.weight_device", format!("{device} {weight}")),
            Version::V2 => push("io.weight", format!("{device} {}", converted(weight))),
        }
    }
    type Rates<'a> = &'a Option<Vec<LinuxThrottleDevice>>;
    let rates: [(&str, &str, Rates); 4] = [
        ("read_bps", "rbps", block.throttle_read_bps_device()),
        ("write_bps", "wbps", block.throttle_write_bps_device()),
        ("read_iops", "riops", block.throttle_read_iops_device()),
        ("write_iops", "wiops", block.throttle_write_iops_device()),
    ];
    for (v1, v2, devices) in rates {
        for device in devices.iter().flatten() {
            let (rate, device) = (device.rate(), format!("{}:{}", device.major(), device.minor()));
            match version {
                Version::V1 => {
                    push(&format!("blkio.throttle.{v1}_device"), format!("{device} {rate}"))
                }
                // There 0 stands for no limit.
                Version::V2 if rate == 0 => push("io.max", format!("{device} {v2}=max")),
                Version::V2 => push("io.max", format!("{device} {v2}={rate}")),
            }
        }
    }
    Ok(limits)
}

/// `io.weight` of a weight of cgroup v1, as runc converts it: [10, 1000] to [1, 10000].
fn converted(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_limited_one_by_one() {
        let device = |name: &str, value: u64| json!([{"major": 8, "minor": 16, name: value}]);
        let block = json!({
            "weight": 10, "weightDevice": device("weight", 1000),
            "throttleReadBpsDevice": device("rate", 5), "throttleWriteIOPSDevice": device("rate", 0),
        });
        let told = |version| {
            let block: LinuxBlockIo = serde_json::from_value(block.clone()).unwrap();
            let limits = limits(&block, version).unwrap();
            limits.iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(
            told(Version::V2),
            [
                "io.weight=default 1",
                "io.weight=8:16 10000",
                "io.max=8:16 rbps=5",
                "io.max=8:16 wiops=max"
            ]
        );
        assert_eq!(
            told(Version::V1),
            [
                "blkio.bfq.weight=10",
                "blkio.bfq.weight_device=8:16 1000",
                "blkio.throttle.read_bps_device=8:16 5",
                "blkio.throttle.write_iops_device=8:16 0"
            ]
        );
        let leaf: LinuxBlockIo = serde_json::from_value(json!({"leafWeight": 10})).unwrap();
        let error = limits(&leaf, Version::V2).unwrap_err().to_string();
        assert!(error.contains("leafWeight"), "{error}");
    }
}
