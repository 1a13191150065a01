//! The specification, split: what the host does for it, and what the guest does.
//!
//! ```text
//! config.json
//!   root.path, mounts with a source      -> shares; their names stay in the copy
//!   linux.resources, cgroupsPath         -> the machine's shape, the host's cgroup
//!   hooks of the runtime's namespaces    -> hooks
//!   linux.namespaces[network].path       -> where the VMM's interfaces are looked for
//!   namespaces of another container      -> the machine that this one joins
//!   everything else, and a copy of all   -> the agent, which refuses what it cannot do
//! ```

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Mount};
use protocol::agent::{Create, MemoryVolume, Rootfs, Upper};
use protocol::machine::ShareKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bundle::{Bundle, BundleError, field};
use crate::limits::{Bytes, Cpus, LimitError, Limits, Shape};
use crate::sandbox::{ShareConfig, cgroup};
use crate::streams::HostStdio;

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
    /// Size of the machine.
    pub shape: Shape,
    /// The container's cgroup on the host.
    pub cgroup: PathBuf,
    /// Its limits: file and value.
    pub cgroup_limits: Vec<(String, String)>,
    /// The network namespace to join: none is a new one, if `own_network`.
    pub network: Option<PathBuf>,
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
}

/// A container that lives, as another one sees it which names a namespace of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The container that began its machine.
    pub machine: String,
    /// Process on the host that stands for it.
    pub monitor: i32,
    /// Pid of its process in the guest.
    pub guest_pid: i32,
}

/// The container that process PID of the host stands for.
pub type Neighbours<'a> = &'a dyn Fn(i32) -> Option<Neighbour>;

impl Plan {
    /// Validates what concerns the host.
    ///
    /// # Errors
    /// Names the field.
    pub fn new(id: &str, bundle: &Bundle, of: Neighbours) -> Result<Plan, BundleError> {
        let spec = &bundle.spec;
        let process = spec.process().as_ref().ok_or_else(|| field("process", "is missing"))?;
        let linux = spec.linux().clone().unwrap_or_default();
        let rootfs = bundle.rootfs()?;
        let mut shares = vec![ShareConfig {
            name: ROOT.into(),
            kind: ShareKind::Private,
            source: rootfs.clone(),
            read_only: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        }];
        let mut sources = BTreeMap::new();
        let mut volumes = Vec::new();
        let mut raw = bundle.raw.clone();
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            let entry = &mut raw["mounts"][index];
            share_mount(index, mount, bundle, entry, (&mut shares, &mut sources, &mut volumes))?;
        }
        let Namespaces { network, own_network, machine } =
            Namespaces::of(&linux, &mut raw["linux"]["namespaces"], of)?;
        host_hooks_only(&mut raw);
        if let Some(resources) = raw.pointer_mut("/linux/resources") {
            host_resources(resources);
        }
        let resources = linux.resources().clone().unwrap_or_default();
        let annotations = spec.annotations().clone().unwrap_or_default();
        let shape = shape(&resources, &annotations)?;
        let cgroups_path = linux.cgroups_path().clone();
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
            cgroup: cgroup_path(id, cgroups_path.as_deref())?,
            cgroup_limits: host_limits(&resources, &shape),
            network,
            own_network,
            terminal: process.terminal().unwrap_or(false),
            machine,
            volumes,
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
    pub fn create_call(&self, id: &str, prefix: Option<&str>, host: &HostStdio) -> Create {
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
        }
    }
}

type Places<'a> =
    (&'a mut Vec<ShareConfig>, &'a mut BTreeMap<String, String>, &'a mut Vec<MemoryVolume>);

/// Makes a share of a bind mount's source.
fn share_mount(
    index: usize,
    mount: &Mount,
    bundle: &Bundle,
    entry: &mut Value,
    (shares, sources, volumes): Places,
) -> Result<(), BundleError> {
    let options = mount.options().clone().unwrap_or_default();
    let has = |word: &str| options.iter().any(|option| option == word);
    if !has("bind") && !has("rbind") && mount.typ().as_deref() != Some("bind") {
        return Ok(());
    }
    let name = format!("mounts[{}]", mount.destination().display());
    let source = mount.source().clone().unwrap_or_default();
    if source.as_os_str().is_empty() {
        return Err(field(name, "a bind mount needs a source"));
    }
    let path = bundle.path.join(&source);
    let path = std::fs::canonicalize(&path)
        .map_err(|error| field(&name, format!("source {}: {error}", path.display())))?;
    if mount.destination() == Path::new("/dev/shm")
        && let Some(volume) = memory_volume(&path)
    {
        // Shared memory is memory of the guest: a file of the host could not be mapped
        // by two processes of it. What is one tmpfs on the host, a pod's, is one there.
        let key = format!("{MEMORY}/{}", volume.name);
        let options = ["bind", "nosuid", "noexec", "nodev"];
        *entry = json!({
            "destination": "/dev/shm", "type": "bind", "source": key, "options": options,
        });
        sources.insert(key.clone(), key);
        volumes.push(volume);
        return Ok(());
    }
    let share = ShareConfig {
        name: format!("m{index}"),
        kind: ShareKind::Live,
        source: path,
        read_only: (has("ro") && !has("rw")) || has("rro"),
    };
    let key = share.guest_path();
    entry["source"] = Value::String(key.clone());
    sources.insert(key.clone(), key);
    shares.push(share);
    Ok(())
}

/// The tmpfs at `path`, if it is one, as one of the guest.
fn memory_volume(path: &Path) -> Option<MemoryVolume> {
    let fs = nix::sys::statfs::statfs(path).ok()?;
    let metadata = std::fs::metadata(path).ok()?;
    let block = u64::try_from(fs.block_size()).unwrap_or(4096);
    (fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC).then(|| MemoryVolume {
        name: format!("{:x}-{:x}", metadata.dev(), metadata.ino()),
        size: fs.blocks().saturating_mul(block),
    })
}

/// What the namespaces of a specification say of the host.
struct Namespaces {
    network: Option<PathBuf>,
    own_network: bool,
    machine: Option<String>,
}

impl Namespaces {
    /// In `raw`, paths of the host become those of the guest.
    fn of(linux: &Linux, raw: &mut Value, of: Neighbours) -> Result<Namespaces, BundleError> {
        let refuse = |reason: String| Err(field("linux.namespaces", reason));
        let mut this = Namespaces { network: None, own_network: false, machine: None };
        let mut joined: Option<Neighbour> = None;
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let kind = namespace.typ();
            let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
            let is_network = kind == LinuxNamespaceType::Network;
            this.own_network |= is_network;
            let Some(path) = path else { continue };
            let neighbour = process_of(&path).and_then(|(pid, file)| Some((of(pid)?, file)));
            match neighbour {
                Some((neighbour, file)) => {
                    raw[index]["path"] =
                        Value::String(format!("/proc/{}/ns/{file}", neighbour.guest_pid));
                    if joined.as_ref().is_some_and(|other| other.machine != neighbour.machine) {
                        return refuse(format!("{} is of another machine", path.display()));
                    }
                    joined = Some(neighbour);
                }
                None if is_network => {}
                None => {
                    return refuse(format!(
                        "{} is of no container of this runtime that runs, and the {kind} \
                         namespace of a machine of its own cannot be joined with it",
                        path.display()
                    ));
                }
            }
            if is_network {
                this.network = Some(path);
            }
        }
        if let Some(neighbour) = joined {
            let theirs = PathBuf::from(format!("/proc/{}/ns/net", neighbour.monitor));
            let same = |path: &PathBuf| match (path.metadata(), theirs.metadata()) {
                (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
                _ => false,
            };
            if !this.network.as_ref().is_some_and(same) {
                return refuse(format!(
                    "containers of one machine share its network namespace: with one of \
                     process {}, the network namespace must be joined as well",
                    neighbour.monitor
                ));
            }
            this.machine = Some(neighbour.machine);
        }
        Ok(this)
    }
}

/// Pid and file name of `/proc/PID/ns/FILE`.
fn process_of(path: &Path) -> Option<(i32, &str)> {
    let mut words = path.to_str()?.strip_prefix("/proc/")?.split('/');
    let (pid, ns, file) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    (ns == "ns" && words.next().is_none()).then_some((pid, file))
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

/// Takes the limits out that only the host can honour: its CPUs and memory nodes are
/// not the guest's, nor are its disks.
pub(super) fn host_resources(resources: &mut Value) {
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
    if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
        unified.retain(|file, _| !file.starts_with("cpuset.") && !file.starts_with("io."));
    }
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
fn shape(
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
fn host_limits(resources: &LinuxResources, shape: &Shape) -> Vec<(String, String)> {
    let mut limits = cgroup::limits(shape);
    let mut push = |file: &str, value: String| limits.push((file.to_owned(), value));
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            push("cpu.weight", weight(shares).to_string());
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                push(file, list.clone());
            }
        }
    }
    for (file, value) in resources.unified().iter().flatten() {
        // Those that only the host can honour.
        if file.starts_with("cpuset.") || file.starts_with("io.") {
            push(file, value.clone());
        }
    }
    limits
}

/// What an update changes of the container's cgroup on the host.
///
/// # Errors
/// Names the field.
pub(super) fn updated(
    plan: &Plan,
    resources: &Value,
) -> Result<Vec<(String, String)>, BundleError> {
    let resources = LinuxResources::deserialize(resources)
        .map_err(|error| field("resources", error.to_string()))?;
    let wanted = shape(&resources, &HashMap::new())?;
    // In a machine that it joined, its limits are not the machine's.
    let own = plan.machine.is_none();
    // The guest's memory was given at its start: its own limit may be lowered and
    // raised below that.
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    if own && memory.is_some_and(|limit| limit > 0) && wanted.memory_mib > plan.shape.memory_mib {
        let reason = format!(
            "the machine of the container was started with {} MiB, and cannot grow",
            plan.shape.memory_mib
        );
        return Err(field("linux.resources.memory.limit", reason));
    }
    let quota = resources.cpu().as_ref().and_then(|cpu| cpu.quota()).unwrap_or(0);
    if own && quota > 0 && wanted.vcpus > plan.shape.vcpus {
        let reason = format!(
            "the machine of the container was started with {} vCPUs, and cannot grow",
            plan.shape.vcpus
        );
        return Err(field("linux.resources.cpu.quota", reason));
    }
    let keep = |(file, _): &(String, String)| file != "memory.max" && file != "pids.max";
    let mut settings: Vec<_> = host_limits(&resources, &wanted).into_iter().filter(keep).collect();
    if quota < 0 {
        settings.push(("cpu.max".into(), "max".into()));
    }
    Ok(settings)
}

/// `cpu.weight` of `cpu.shares`, as runc converts it.
pub(super) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// Where in the tree of cgroups: as runc does for cgroup v2 without systemd.
fn cgroup_path(id: &str, path: Option<&Path>) -> Result<PathBuf, BundleError> {
    let root = Path::new(cgroup::ROOT);
    let wrong = |reason: String| field("linux.cgroupsPath", reason);
    let path = match path.filter(|path| !path.as_os_str().is_empty()) {
        None => Path::new("/bulkhead").join(id),
        Some(path) if path.is_absolute() => path.to_owned(),
        Some(path) => {
            // Beside our own: that one holds processes, and cannot have children
            // with controllers.
            let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
            Path::new(own).parent().unwrap_or(Path::new("/")).join(path)
        }
    };
    let below = path.strip_prefix("/").unwrap_or(&path);
    let normal = |part| matches!(part, std::path::Component::Normal(_));
    if below.as_os_str().is_empty() || !below.components().all(normal) {
        return Err(wrong(format!("{} leads nowhere below {}", path.display(), root.display())));
    }
    Ok(root.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(spec: Value) -> (tempfile::TempDir, Result<Bundle, BundleError>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        std::fs::write(dir.path().join("data"), "x").unwrap();
        std::fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let bundle = Bundle::load(dir.path());
        (dir, bundle)
    }

    fn spec(more: &Value) -> Value {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    }

    fn plan(more: &Value) -> Result<Plan, BundleError> {
        let (_dir, bundle) = bundle(spec(more));
        Plan::new("c1", &bundle.unwrap(), &|_| None)
    }

    #[test]
    fn bind_mounts_become_shares() {
        let plan = plan(&json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "source": "data", "options": ["bind", "ro"]},
        ]}))
        .unwrap();
        assert_eq!(plan.shares.len(), 2);
        assert!(plan.shares[1].read_only && plan.shares[1].source.ends_with("data"));
        assert_eq!(plan.spec["mounts"][1]["source"], "live/m1");
        let binds: Vec<_> = plan.binds().map(|(share, to)| (share.name.as_str(), to)).collect();
        assert_eq!(binds, [("m1", "/data")]);
        assert_eq!(plan.sources["live/m1"], "live/m1");
        assert_eq!(plan.spec["mounts"][0]["source"], "proc");
    }

    #[test]
    fn what_the_host_cannot_do_is_named() {
        let cases = [
            (
                json!({"mounts": [{"destination": "/a", "source": "/no/such", "options": ["bind"]}]}),
                "mounts[/a]",
            ),
            (
                json!({"linux": {"namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}]}}),
                "linux.namespaces",
            ),
            (json!({"linux": {"cgroupsPath": "/a/../b"}}), "linux.cgroupsPath"),
            (
                json!({"linux": {"resources": {"memory": {"limit": 4096}}}}),
                "linux.resources.memory.limit",
            ),
        ];
        for (more, name) in cases {
            let error = plan(&more).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn limits_shape_machine_and_cgroup() {
        let plan = plan(&json!({"linux": {"cgroupsPath": "/a/b", "resources": {
            "memory": {"limit": 67_108_864},
            "cpu": {"quota": 150_000, "period": 100_000, "shares": 1024, "cpus": "0-1"},
            "unified": {"io.weight": "default 10", "memory.high": "1"},
        }}}))
        .unwrap();
        assert_eq!((plan.shape.memory_mib, plan.shape.vcpus), (129, 2));
        assert_eq!(plan.cgroup, Path::new("/sys/fs/cgroup/a/b"));
        let value = |file: &str| {
            let found = plan.cgroup_limits.iter().find(|(name, _)| name == file);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(value("cpu.weight"), Some("39"));
        assert_eq!((value("cpuset.cpus"), value("io.weight")), (Some("0-1"), Some("default 10")));
        assert_eq!((value("cpu.max"), value("memory.high")), (Some("150000 100000"), None));
    }

    #[test]
    fn the_guest_gets_only_its_own_hooks() {
        let hooks = json!({"prestart": [{"path": "/a"}], "startContainer": [{"path": "/b"}]});
        let plan = plan(&json!({ "hooks": hooks })).unwrap();
        assert_eq!(plan.spec["hooks"], json!({"startContainer": [{"path": "/b"}]}));
    }
}
