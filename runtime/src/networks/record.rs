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
use crate::cni::{CniResult, NetworkList};
use crate::files::{FileError, read_json, write_json};

/// How long plugins of a process that was killed may go on.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// What `attached.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The network as it was then.
    pub list: NetworkList,
    /// Its subnets, of one of ours.
    pub subnets: Vec<Cidr>,
    /// Name of the interface.
    pub interface: String,
    /// Settings by capability.
    pub settings: Map<String, Value>,
    /// Ports of the host.
    pub ports: Vec<Published>,
    /// What others on the network call the container.
    pub names: Vec<String>,
    /// Whether rules of the container may be there.
    pub rules: bool,
    /// Whether what was refused is of interest after the end.
    pub keep_counts: bool,
    /// What the last plugin gave, once all have.
    pub result: Option<Value>,
}

impl Record {
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
    lib.join("attached.json")
}

/// The log of plugins. Its lock is held by each process that has it open by us: also by a
/// plugin whose starter was killed, and which may do anything until it ends.
pub(super) fn log(lib: &Path) -> Result<File, NetworkError> {
    let path = lib.join("network.log");
    let mut options = File::options();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
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
