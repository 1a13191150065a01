//! What is to be undone of a container's network: a file in its directory, from before the
//! first plugin runs until after the last one has taken everything back.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::NetworkError;
use super::cidr::Cidr;
use super::options::Published;
use crate::cni::{CniResult, NetworkList, PluginPath};
use crate::dirs;
use crate::files::{FileError, read_json, write_json};

const RECORD: &str = "attached.json";
const LOG: &str = "network.log";
/// How long plugins of a process that was killed may go on.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// What `attached.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The network as it was then.
    pub list: NetworkList,
    /// Its subnets, as far as its list names them.
    pub subnets: Vec<Cidr>,
    /// Name of the interface.
    pub interface: String,
    /// Settings by capability.
    pub settings: Map<String, Value>,
    /// Ports of the host.
    pub ports: Vec<Published>,
    /// What others on the network call the container.
    pub names: Vec<String>,
    /// The kernel's boot_id: what is not of this boot has left nothing in the kernel.
    pub boot: String,
    /// Where its plugins are.
    pub plugins: PluginPath,
    /// Whether rules of the container may be there.
    pub rules: bool,
    /// Addresses that these are for.
    #[serde(default)]
    pub sources: Vec<IpAddr>,
    /// Whether what was refused is of interest after the end.
    pub keep_counts: bool,
    /// What the last plugin gave that is done.
    pub result: Option<Value>,
}

impl Record {
    /// Whether the container is, or was, in the network since the host was started.
    pub fn is_of(&self, boot: &str) -> bool {
        self.boot == boot
    }

    /// The result, as far as it is there and can be read.
    pub fn outcome(&self) -> Option<CniResult> {
        serde_json::from_value(self.result.clone()?).ok()
    }

    /// Addresses of the container.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let outcome = self.outcome().unwrap_or_default();
        outcome.addresses().map(|(address, _)| address).collect()
    }
}

/// The record of the container whose directory is `lib`, if it is in a network.
///
/// # Errors
/// When it cannot be read.
pub fn read(lib: &Path) -> Result<Option<Record>, NetworkError> {
    Ok(read_json(&path(lib))?)
}

pub(super) fn write(lib: &Path, record: &Record) -> Result<(), NetworkError> {
    Ok(write_json(&path(lib), record)?)
}

pub(super) fn forget(lib: &Path) -> Result<(), NetworkError> {
    let path = path(lib);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::access(path)(error).into())
        }
        _ => Ok(()),
    }
}

fn path(lib: &Path) -> PathBuf {
    lib.join(RECORD)
}

/// What the kernel calls this boot.
pub(super) fn this_boot() -> Result<String, NetworkError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(FileError::access(path))?;
    Ok(text.trim().to_owned())
}

/// Removes the container's directory `lib`; but for the record, and the log that is its
/// lock, as long as something of its network is to be undone.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_all_else(lib: &Path) -> std::io::Result<()> {
    if !path(lib).exists() {
        return dirs::remove_tree(lib);
    }
    for entry in std::fs::read_dir(lib)? {
        let entry = entry?;
        if ![RECORD, LOG].iter().any(|kept| entry.file_name() == *kept) {
            dirs::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// The log of plugins and of nft. Its lock is held by each process that has it open by us: also by a
/// program whose starter was killed, and which may do anything until it ends.
pub(super) fn log(lib: &Path) -> Result<File, NetworkError> {
    let path = lib.join(LOG);
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&path).map_err(FileError::access(&path))?;
    let begin = Instant::now();
    while file.try_lock().is_err() {
        if begin.elapsed() > PATIENCE {
            return Err(NetworkError::Busy);
        }
        std::thread::sleep(LOOK);
    }
    file.set_len(0).map_err(FileError::access(&path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_undone_outlives_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        std::fs::create_dir_all(lib.join("rw/upper")).unwrap();
        for file in [RECORD, LOG, "state.json"] {
            std::fs::write(lib.join(file), "{}").unwrap();
        }
        remove_all_else(&lib).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(&lib).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [RECORD, LOG]);
        forget(&lib).unwrap();
        remove_all_else(&lib).unwrap();
        assert!(!lib.exists());
        remove_all_else(&lib).unwrap();
    }

    #[test]
    fn records_are_of_a_boot() {
        let boot = this_boot().unwrap();
        assert_eq!(boot.len(), 36, "{boot}");
        let record = serde_json::json!({ "list": { "cniVersion": "1.0.0", "name": "a",
            "plugins": [] }, "subnets": [], "interface": "eth0", "settings": {}, "ports": [],
            "names": [], "boot": boot, "plugins": "/opt/cni/bin", "rules": true,
            "keep_counts": false, "result": null });
        let record: Record = serde_json::from_value(record).unwrap();
        assert!(record.is_of(&boot) && !record.is_of("another"));
    }
}
