//! Device nodes: the six that the specification requires, and `linux.devices`.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType as Type};
use serde::{Deserialize, Serialize};

use super::{PlanError, field};

/// A node to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// S_IFCHR, S_IFBLK or S_IFIFO, and the permissions.
    pub mode: u32,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What every container has (config-linux.md, "Default Devices"); /dev/console
/// and /dev/ptmx are made with the terminal.
const DEFAULT: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The nodes of a container: those of the specification replace a default.
///
/// # Errors
/// Names the field.
pub fn nodes(extra: &[LinuxDevice]) -> Result<Vec<DeviceNode>, PlanError> {
    let mut nodes = extra.iter().map(node).collect::<Result<Vec<_>, _>>()?;
    for (path, major, minor) in DEFAULT {
        let path = PathBuf::from(path);
        if nodes.iter().all(|node| node.path != path) {
            let mode = libc::S_IFCHR | 0o666;
            nodes.push(DeviceNode { path, mode, major, minor, uid: 0, gid: 0 });
        }
    }
    Ok(nodes)
}

fn node(device: &LinuxDevice) -> Result<DeviceNode, PlanError> {
    let wrong = |reason| field(format!("linux.devices[{}]", device.path().display()), reason);
    let kind = match device.typ() {
        Type::C | Type::U => libc::S_IFCHR,
        Type::B => libc::S_IFBLK,
        Type::P => libc::S_IFIFO,
        Type::A => return Err(wrong("type \"a\" is none of a device node")),
    };
    if !device.path().is_absolute() {
        return Err(wrong("is not absolute"));
    }
    let number = |n: i64| u64::try_from(n).map_err(|_| wrong("has a negative number"));
    Ok(DeviceNode {
        path: device.path().clone(),
        mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
        major: number(device.major())?,
        minor: number(device.minor())?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
