//! What a container is, written once when it is created.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::agent::{Create, Rootfs, Stdio, Upper};
use protocol::machine::ShareKind;
use serde::{Deserialize, Serialize};

use crate::limits::{Limits, Shape};
use crate::networks::options::Networking;
use crate::sandbox::{ShareConfig, ShareIds};
use crate::spec::ContainerSpec;
use crate::spec::mounts::{self, Volume};
use crate::time::Timestamp;

/// Version of `config.json`; another one is not read.
pub const VERSION: u32 = 1;

/// Where changes to the root file system go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writable {
    /// A directory of the host: they outlive the machine.
    #[default]
    Host,
    /// Guest memory: faster, gone with the machine.
    Memory,
}

/// What `config.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// [`VERSION`].
    pub version: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Unique among containers.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// The image as it was asked for.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// Directories of the image's layers, bottom first.
    pub layers: Vec<PathBuf>,
    /// Where changes go.
    pub writable: Writable,
    /// What runs.
    pub spec: ContainerSpec,
    /// Directories and files of the host.
    pub volumes: Vec<Volume>,
    /// Its network; none but loopback if absent.
    #[serde(default)]
    pub network: Option<Networking>,
    /// What was asked for.
    pub limits: Limits,
    /// What the machine is given.
    pub shape: Shape,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether its stdin is open.
    pub stdin: bool,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// Number of the signal that `stop` sends.
    pub stop_signal: i32,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Name of the private share that holds the writable layer.
const WRITABLE_SHARE: &str = "rw";

impl ContainerConfig {
    /// What the machine shares with the host. `rw` is the container's
    /// directory for changes.
    pub fn shares(&self, rw: &Path) -> Vec<ShareConfig> {
        let layer = |(index, path): (usize, &PathBuf)| ShareConfig {
            name: format!("l{index}"),
            kind: ShareKind::Immutable,
            source: path.clone(),
            read_only: true,
            ids: ShareIds::Machine,
        };
        let mut shares: Vec<_> = self.layers.iter().enumerate().map(layer).collect();
        if self.writes_to_host() {
            shares.push(ShareConfig {
                name: WRITABLE_SHARE.into(),
                kind: ShareKind::Private,
                source: rw.into(),
                read_only: false,
                ids: ShareIds::Machine,
            });
        }
        shares.extend(mounts::shares(&self.volumes));
        shares
    }

    /// Whether there is a writable layer on the host.
    pub fn writes_to_host(&self) -> bool {
        self.writable == Writable::Host && !self.is_read_only()
    }

    fn is_read_only(&self) -> bool {
        self.spec.spec["root"]["readonly"] == true
    }

    /// The call that builds the container in the guest.
    pub fn create_call(&self, stdio: Stdio) -> Create {
        let layers = (0..self.layers.len())
            .map(|index| format!("{}/l{index}", ShareKind::Immutable.dir()))
            .collect();
        let upper = if self.writes_to_host() {
            Upper::Share { path: format!("{}/{WRITABLE_SHARE}", ShareKind::Private.dir()) }
        } else {
            // A read-only root needs a layer for its mount points alone.
            Upper::Memory { size: None }
        };
        Create {
            container: self.id.clone(),
            rootfs: Rootfs::Overlay { layers, upper },
            volumes: Vec::new(),
            sources: self.spec.sources.clone(),
            spec: self.spec.spec.clone(),
            stdio,
            descriptors: Vec::new(),
            state: serde_json::Value::Null,
            files: self.spec.files.clone(),
            apparmor: Vec::new(),
        }
    }

    /// The command, for people.
    pub fn command(&self) -> String {
        let args = self.spec.spec["process"]["args"].as_array();
        let words = args.into_iter().flatten().filter_map(|word| word.as_str());
        words.collect::<Vec<_>>().join(" ")
    }
}
