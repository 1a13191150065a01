//! The OCI configuration, validated: what the roles carry out without asking.
//!
//! [`Plan::new`] is the only place that reads the specification. A field that
//! is not honoured is an error which names it ([`PlanError`]).

pub mod devices;
pub mod hooks;
pub mod mounts;
pub mod namespaces;
pub mod process;
mod refuse;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{Linux, Spec};
use protocol::agent::{Create, Rootfs, SeedFile, Upper};
use serde::{Deserialize, Serialize};

pub use devices::DeviceNode;
pub use hooks::HookPlan;
pub use mounts::{MountPlan, Source};
pub use namespaces::Namespaces;
pub use process::ProcessPlan;

use crate::boot::{SHARES, VOLUMES};

/// Why a specification is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not the JSON of a specification.
    #[error("the OCI configuration cannot be read")]
    Json(#[from] serde_json::Error),
    /// A field that is wrong, or that the guest does not honour.
    #[error("{field}: {reason}")]
    Field {
        /// As in config.json.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::SeccompError),
}

/// An error that names `field`.
pub fn field(field: impl Into<String>, reason: impl Into<String>) -> PlanError {
    PlanError::Field { field: field.into(), reason: reason.into() }
}

/// A root file system in the guest's own tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootPlan {
    /// overlayfs.
    Overlay {
        /// Absolute paths, bottom first.
        layers: Vec<PathBuf>,
        /// Writable part.
        upper: UpperPlan,
    },
    /// A directory as it is.
    Directory(PathBuf),
}

/// The writable layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpperPlan {
    /// tmpfs of this size.
    Memory(Option<u64>),
    /// A directory which holds `upper` and `work`.
    Directory(PathBuf),
}

/// Everything that the init role does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Id of the container.
    pub container: String,
    /// Where the root file system comes from.
    pub root: RootPlan,
    /// `root.readonly`.
    pub root_readonly: bool,
    /// `linux.rootfsPropagation` as an MS_* flag and whether it is recursive.
    pub root_propagation: Option<(u64, bool)>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// Device nodes.
    pub devices: Vec<DeviceNode>,
    /// Seed files over which nothing is mounted.
    pub files: Vec<SeedFile>,
    /// UTS names.
    pub hostname: Option<String>,
    /// UTS names.
    pub domainname: Option<String>,
    /// Path below /proc/sys -> value.
    pub sysctl: BTreeMap<String, String>,
    /// The same of the machine's network, where the container is in a user namespace
    /// that has no power over it: the agent's to set.
    pub network_sysctl: BTreeMap<String, String>,
    /// Hidden.
    pub masked_paths: Vec<String>,
    /// Made read-only.
    pub readonly_paths: Vec<String>,
    /// Run in the container before its process.
    pub start_hooks: Vec<HookPlan>,
    /// What they are told.
    pub state: serde_json::Value,
    /// How many descriptors the process gets beside its stdio.
    pub descriptors: usize,
    /// The container's process.
    pub process: ProcessPlan,
}

impl Plan {
    /// Validates a Create call.
    ///
    /// # Errors
    /// Names the field which is wrong or not honoured.
    pub fn new(create: &Create) -> Result<(Self, Spec), PlanError> {
        let spec = Spec::deserialize(&create.spec)?;
        refuse::spec(&spec)?;
        let linux = spec.linux().clone().unwrap_or_default();
        let process = spec.process().as_ref().ok_or_else(|| field("process", "is missing"))?;
        let process = ProcessPlan::new(process, linux.seccomp().as_ref(), linux.personality())?;
        if process.terminal.is_some() != create.stdio.terminal {
            return Err(field("process.terminal", "disagrees with the announced streams"));
        }
        let namespaces = Namespaces::new(&linux)?;
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let mounts = mounts::plan(mounts, &create.sources)?;
        let mounted =
            |path: &str| mounts.iter().any(|m| m.destination == std::path::Path::new(path));
        let files = create.files.iter().filter(|file| !mounted(&file.path)).cloned().collect();
        let of = spec.hooks().as_ref();
        let start_hooks = of.and_then(|hooks| hooks.start_container().as_deref());
        let (network_sysctl, sysctl) = sysctl(&linux, &namespaces)?
            .into_iter()
            .partition(|(path, _)| namespaces.user() && path.starts_with("net/"));
        let plan = Plan {
            container: create.container.clone(),
            root: root(&create.rootfs)?,
            root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            root_propagation: root_propagation(&linux)?,
            hostname: names(spec.hostname(), &namespaces, "hostname")?,
            domainname: names(spec.domainname(), &namespaces, "domainname")?,
            sysctl,
            network_sysctl,
            devices: devices::nodes(linux.devices().as_deref().unwrap_or_default())?,
            masked_paths: absolute(linux.masked_paths().as_deref(), "linux.maskedPaths")?,
            readonly_paths: absolute(linux.readonly_paths().as_deref(), "linux.readonlyPaths")?,
            start_hooks: hooks::plan(start_hooks.unwrap_or_default())?,
            state: create.state.clone(),
            descriptors: create.descriptors.len(),
            namespaces,
            mounts,
            files,
            process,
        };
        Ok((plan, spec))
    }
}

/// The absolute path of share path `path` (`<kind>/<name>[/...]`), or of a volume in
/// memory (`memory/<name>`).
///
/// # Errors
/// When it would leave the share tree.
pub fn share(path: &str) -> Result<PathBuf, PlanError> {
    use std::path::{Component, Path};
    let normal = |component| matches!(component, Component::Normal(_));
    if path.is_empty() || !Path::new(path).components().all(normal) {
        return Err(field(format!("share path {path:?}"), "is not relative to the share tree"));
    }
    match path.strip_prefix("memory/") {
        Some(name) => Ok(Path::new(VOLUMES).join(name)),
        None => Ok(Path::new(SHARES).join(path)),
    }
}

fn root(rootfs: &Rootfs) -> Result<RootPlan, PlanError> {
    Ok(match rootfs {
        Rootfs::Overlay { layers, upper } => {
            if layers.is_empty() {
                return Err(field("rootfs.overlay.layers", "is empty"));
            }
            RootPlan::Overlay {
                layers: layers.iter().map(|layer| share(layer)).collect::<Result<_, _>>()?,
                upper: match upper {
                    Upper::Memory { size } => UpperPlan::Memory(*size),
                    Upper::Share { path } => UpperPlan::Directory(share(path)?),
                },
            }
        }
        Rootfs::Share { path } => RootPlan::Directory(share(path)?),
    })
}

fn root_propagation(linux: &Linux) -> Result<Option<(u64, bool)>, PlanError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(word) => mounts::propagation(word)
            .map(Some)
            .ok_or_else(|| field("linux.rootfsPropagation", format!("{word:?} is unknown"))),
    }
}

fn names(
    name: &Option<String>,
    namespaces: &Namespaces,
    what: &str,
) -> Result<Option<String>, PlanError> {
    match name.as_deref() {
        None | Some("") => Ok(None),
        Some(_) if !namespaces.uses(libc::CLONE_NEWUTS) => {
            Err(field(what, "needs a uts namespace in linux.namespaces"))
        }
        Some(name) if name.len() > 64 => Err(field(what, "is longer than 64 bytes")),
        Some(name) => Ok(Some(name.to_owned())),
    }
}

/// Which sysctls are a container's own, as runc decides it.
fn sysctl(linux: &Linux, namespaces: &Namespaces) -> Result<BTreeMap<String, String>, PlanError> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
    ];
    let mut paths = BTreeMap::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        // Either separator may be used; the first one seen says which.
        let dotted = match key.find(['.', '/']) {
            Some(at) if key.as_bytes()[at] == b'/' => key
                .chars()
                .map(|c| {
                    if c == '/' {
                        '.'
                    } else if c == '.' {
                        '/'
                    } else {
                        c
                    }
                })
                .collect(),
            _ => key.clone(),
        };
        let ipc = IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.");
        // The machine's network is the container's alone: see Namespaces.
        let allowed = dotted.starts_with("net.")
            || (ipc && namespaces.uses(libc::CLONE_NEWIPC))
            || (dotted == "kernel.domainname" && namespaces.uses(libc::CLONE_NEWUTS));
        let path: String = dotted
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        if !allowed || path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(field(
                format!("linux.sysctl[{key:?}]"),
                "is not of the container's namespaces",
            ));
        }
        paths.insert(path, value.clone());
    }
    Ok(paths)
}

fn absolute(paths: Option<&[String]>, what: &str) -> Result<Vec<String>, PlanError> {
    let paths = paths.unwrap_or_default();
    match paths.iter().find(|path| !path.starts_with('/')) {
        Some(path) => Err(field(what, format!("{path:?} is not absolute"))),
        None => Ok(paths.to_vec()),
    }
}

#[cfg(test)]
mod tests;
