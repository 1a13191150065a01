//! The specification, split: what the host does for it, and what the guest does.
//!
//! ```text
//! config.json
//!   root.path, mounts with a source      -> shares; their names stay in the copy
//!   linux.resources, cgroupsPath         -> the machine's shape, the host's cgroup and
//!                                           who makes it
//!   hooks of the runtime's namespaces    -> hooks
//!   linux.namespaces[network].path       -> where the VMM's interfaces are looked for
//!   namespaces of another container,
//!   a network namespace that one has     -> the machine that this one joins
//!   everything else, and a copy of all   -> the agent, which refuses what it cannot do
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::agent::{Create, MemoryVolume, Rootfs, Upper};
use protocol::apparmor::Policy;
use protocol::machine::ShareKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bundle::{Bundle, BundleError, field};
use super::cgroup::Manager;
use crate::limits::{Shape, host_cpus, possible_vcpus};
use crate::sandbox::ShareConfig;
use crate::sandbox::cgroup::Version;
use crate::sandbox::ids::{Both, High, Mappings};
use crate::streams::HostStdio;

mod block_io;
mod ids;
mod namespaces;
mod resources;
mod shares;
#[cfg(test)]
mod tests;

use ids::Ids;
use namespaces::Namespaces;
pub use namespaces::{Identity, Named, Neighbour, Neighbours, hosts_network, network_path};
pub(super) use resources::{Update, host_resources, updated};

/// Name of the share that is the root file system.
const ROOT: &str = "root";
/// Where the guest has volumes in memory, beside the kinds of shares.
const MEMORY: &str = "memory";

/// What the host does for a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The root file system on the host.
    pub rootfs: PathBuf,
    /// What the machine shares with the host.
    pub shares: Vec<ShareConfig>,
    /// Mount source -> path in the share tree.
    pub sources: BTreeMap<String, String>,
    /// The specification for the agent.
    pub spec: Value,
    /// `state` of the specification, for the guest's own hooks.
    pub state: Value,
    /// Size of the machine when it starts.
    pub shape: Shape,
    /// vCPUs to which it can grow.
    #[serde(default)]
    pub max_vcpus: u8,
    /// The container's cgroup on the host.
    pub cgroup: PathBuf,
    /// Who makes it.
    #[serde(default)]
    pub manager: Manager,
    /// Its limits: file and value.
    pub cgroup_limits: Vec<(String, String)>,
    /// The network namespace to join: none is a new one, if `own_network`.
    pub network: Option<PathBuf>,
    /// Which one that was when the plan was made.
    #[serde(default)]
    pub namespace: Option<Identity>,
    /// Whether the specification wants a network namespace at all.
    pub own_network: bool,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// The container that began the machine, when this one joins it.
    #[serde(default)]
    pub machine: Option<String>,
    /// What it has in the guest's memory.
    #[serde(default)]
    pub volumes: Vec<MemoryVolume>,
    /// Of its user namespace, if it is in one.
    #[serde(default)]
    pub mappings: Option<Mappings>,
    /// Ids that its machine must have beside 0..65535.
    #[serde(default)]
    pub ids: Both<High>,
}

/// How cgroups are made on this host.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// Whether systemd makes them.
    pub systemd: bool,
    /// Which ones there are.
    pub version: Version,
}

impl Plan {
    /// Validates what concerns the host.
    ///
    /// # Errors
    /// Names the field.
    pub fn new(
        id: &str,
        bundle: &Bundle,
        host: Host,
        beside: &Neighbours,
    ) -> Result<Plan, BundleError> {
        let spec = &bundle.spec;
        let process = spec.process().as_ref().ok_or_else(|| field("process", "is missing"))?;
        let linux = spec.linux().clone().unwrap_or_default();
        let rootfs = bundle.rootfs()?;
        let mut raw = bundle.raw.clone();
        let Namespaces { network, own_network, machine, user } =
            Namespaces::of(&linux, &mut raw["linux"]["namespaces"], beside)?;
        let (network, namespace) = network.unzip();
        let ids = Ids::of(spec, &linux, user, &mut raw["linux"])?;
        let mut shares = vec![ShareConfig {
            name: ROOT.into(),
            kind: ShareKind::Private,
            source: rootfs.clone(),
            read_only: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            ids: ids.plain(),
        }];
        let mut sources = BTreeMap::new();
        let mut volumes = Vec::new();
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            let entry = &mut raw["mounts"][index];
            shares::share_mount(
                index,
                mount,
                bundle,
                entry,
                &ids,
                (&mut shares, &mut sources, &mut volumes),
            )?;
        }
        host_hooks_only(&mut raw);
        if let Some(resources) = raw.pointer_mut("/linux/resources") {
            host_resources(resources);
        }
        let limits = linux.resources().clone().unwrap_or_default();
        let annotations = spec.annotations().clone().unwrap_or_default();
        let shape = resources::shape(&limits, &annotations)?;
        let cgroups_path = linux.cgroups_path().as_deref();
        let (cgroup, manager) = match host.systemd {
            true => resources::scope(id, cgroups_path, &annotations)?,
            false => (resources::cgroup_path(id, cgroups_path)?, Manager::Files),
        };
        Ok(Plan {
            rootfs,
            shares,
            sources,
            state: json!({
                "ociVersion": spec.version(),
                "id": id,
                "status": "created",
                "bundle": bundle.path,
                "annotations": annotations,
            }),
            spec: raw,
            shape,
            max_vcpus: possible_vcpus(shape.vcpus, host_cpus()),
            cgroup,
            manager,
            cgroup_limits: resources::host_limits(&limits, &shape, host.version)?,
            network,
            namespace,
            own_network,
            terminal: process.terminal().unwrap_or(false),
            machine,
            volumes,
            mappings: ids.mappings,
            ids: ids.machine,
        })
    }

    /// Tells the process of `count` sockets of a socket activation, see
    /// sd_listen_fds(3). It is the first process, as runc has it.
    pub fn activate(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let words = [format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()].map(Value::from);
        let env = &mut self.spec["process"]["env"];
        match env.as_array_mut() {
            Some(list) => list.extend(words),
            None => *env = Value::from(words.to_vec()),
        }
    }

    /// Shares that are mounted in the container, and where.
    pub fn binds(&self) -> impl Iterator<Item = (&ShareConfig, &str)> {
        let mounts = self.spec["mounts"].as_array().into_iter().flatten();
        mounts.filter_map(|mount| {
            let source = mount["source"].as_str()?;
            let share = self.shares.iter().find(|share| share.guest_path() == source)?;
            Some((share, mount["destination"].as_str()?))
        })
    }

    /// Where its resolv.conf(5) is, if that is one of its own.
    pub fn resolv_conf(&self) -> Option<PathBuf> {
        let mut binds = self.binds();
        binds.find_map(|(share, to)| (to == "/etc/resolv.conf").then(|| share.source.clone()))
    }

    /// The AppArmor profile of its process.
    pub fn apparmor_profile(&self) -> Option<&str> {
        self.spec["process"]["apparmorProfile"].as_str()
    }

    /// A share that refuses writes has no room for mount points: they are in memory.
    fn root(&self, path: String) -> Rootfs {
        match self.shares.first() {
            Some(share) if share.read_only => {
                Rootfs::Overlay { layers: vec![path], upper: Upper::Memory { size: None } }
            }
            _ => Rootfs::Share { path },
        }
    }

    /// The call that builds the container in the guest, where `prefix` precedes the
    /// names of its shares in a machine that it joined.
    pub fn create_call(
        &self,
        id: &str,
        prefix: Option<&str>,
        host: &HostStdio,
        apparmor: Vec<Policy>,
    ) -> Create {
        let place = |path: &str| match (prefix, path.split_once('/')) {
            (Some(prefix), Some((kind, name))) if kind != MEMORY => {
                format!("{kind}/{prefix}-{name}")
            }
            _ => path.to_owned(),
        };
        Create {
            container: id.to_owned(),
            rootfs: self.root(place(&format!("{}/{ROOT}", ShareKind::Private.dir()))),
            sources: self.sources.iter().map(|(key, path)| (key.clone(), place(path))).collect(),
            volumes: self.volumes.clone(),
            spec: self.spec.clone(),
            stdio: host.announced(),
            descriptors: host.announced_descriptors(),
            state: self.state.clone(),
            files: Vec::new(),
            apparmor,
        }
    }
}

/// Takes the hooks out that the host runs.
fn host_hooks_only(raw: &mut Value) {
    let Some(hooks) = raw.get_mut("hooks").and_then(Value::as_object_mut) else { return };
    hooks.retain(|name, _| name == "startContainer");
    if hooks.is_empty()
        && let Some(spec) = raw.as_object_mut()
    {
        spec.remove("hooks");
    }
}
