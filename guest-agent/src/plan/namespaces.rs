//! `linux.namespaces`, `uidMappings`, `gidMappings`, `timeOffsets`.
//!
//! * Network: the machine's own network namespace is the container's (or the
//!   pod's): the machine is there for them alone, and its virtio-net device is
//!   what the host gave them. A network namespace in the specification, with or
//!   without a path, therefore means the machine's; so does none, which is
//!   "the runtime's" and which the host has mapped to this machine as well.
//! * A path on another type names a namespace of this guest,
//!   `/proc/<pid>/ns/<type>` with the pid that Create returned for another
//!   container of the pod.
//! * Ids of the host are its own in here too (see `sandbox/ids.rs` of the runtime), so
//!   that a user namespace is made as the specification says it.
//! * cgroup and time namespaces are unshared by the init role itself: made by
//!   clone3, a cgroup namespace would have the agent's cgroup as its root, and
//!   a time namespace could no longer be given its offsets.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType as Type};
use serde::{Deserialize, Serialize};

use super::{PlanError, field};

/// Offsets of a time namespace: clock name, seconds, nanoseconds.
pub type TimeOffset = (String, i64, u32);

/// Namespaces of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// CLONE_NEW* that clone3 creates.
    pub clone: u64,
    /// CLONE_NEW* that the init role unshares.
    pub unshare: u64,
    /// CLONE_NEW* that are joined, by path.
    pub join: Vec<(u64, PathBuf)>,
    /// Of a time namespace.
    pub time_offsets: Vec<TimeOffset>,
    /// Lines of uid_map, when there is a user namespace.
    pub uid_map: String,
    /// Lines of gid_map.
    pub gid_map: String,
}

impl Namespaces {
    /// Validates the namespaces of `linux`.
    ///
    /// # Errors
    /// Names the field.
    pub fn new(linux: &Linux) -> Result<Self, PlanError> {
        let mut this = Namespaces::default();
        for namespace in linux.namespaces().iter().flatten() {
            let kind = namespace.typ();
            let flag = kind as u64;
            if this.uses(kind as i32) {
                return Err(field("linux.namespaces", format!("{kind} is there twice")));
            }
            match (kind, namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())) {
                (Type::Network, _) => {}
                (Type::Cgroup | Type::Time, None) => this.unshare |= flag,
                (_, None) => this.clone |= flag,
                (Type::Mount, Some(_)) => {
                    let reason = format!("joining a {kind} namespace by path is not supported");
                    return Err(field("linux.namespaces", reason));
                }
                (_, Some(path)) => this.join.push((flag, of_guest(path)?)),
            }
        }
        if !this.owns(libc::CLONE_NEWNS) {
            return Err(field("linux.namespaces", "there is no mount namespace"));
        }
        for (clock, offset) in linux.time_offsets().iter().flatten() {
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(field("linux.timeOffsets", format!("{clock:?} is no clock")));
            }
            let (seconds, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            this.time_offsets.push((clock.clone(), seconds, nanos));
        }
        if !this.time_offsets.is_empty() && !this.owns(libc::CLONE_NEWTIME) {
            return Err(field("linux.timeOffsets", "needs a time namespace in linux.namespaces"));
        }
        this.users(linux)?;
        Ok(this)
    }

    /// Whether the container has a new namespace of this kind.
    pub fn owns(&self, flag: i32) -> bool {
        (self.clone | self.unshare) & flag as u64 != 0
    }

    /// Whether the container is in a user namespace, new or another container's.
    pub fn user(&self) -> bool {
        self.uses(libc::CLONE_NEWUSER)
    }

    /// The path of a namespace that is joined.
    pub fn joined(&self, flag: i32) -> Option<&Path> {
        let (_, path) = self.join.iter().find(|(kind, _)| *kind == flag as u64)?;
        Some(path)
    }

    /// Every kind of namespace in which the container differs from the agent.
    pub fn all(&self) -> u64 {
        self.join.iter().fold(self.clone | self.unshare, |all, (flag, _)| all | flag)
    }

    /// Whether the container has a namespace of this kind, new or another container's.
    pub fn uses(&self, flag: i32) -> bool {
        self.all() & flag as u64 != 0
    }

    fn users(&mut self, linux: &Linux) -> Result<(), PlanError> {
        let lines = |list: &Option<Vec<LinuxIdMapping>>| {
            let line =
                |m: &LinuxIdMapping| format!("{} {} {}\n", m.container_id(), m.host_id(), m.size());
            list.iter().flatten().map(line).collect::<String>()
        };
        self.uid_map = lines(linux.uid_mappings());
        self.gid_map = lines(linux.gid_mappings());
        match (self.owns(libc::CLONE_NEWUSER), self.uid_map.is_empty() || self.gid_map.is_empty()) {
            (true, true) => {
                Err(field("linux.uidMappings, linux.gidMappings", "a user namespace needs both"))
            }
            (false, _) if !(self.uid_map.is_empty() && self.gid_map.is_empty()) => {
                let reason = "needs a new user namespace in linux.namespaces";
                Err(field("linux.uidMappings", reason))
            }
            _ => Ok(()),
        }
    }
}

fn of_guest(path: &Path) -> Result<PathBuf, PlanError> {
    let words: Vec<_> = path.iter().map(|word| word.to_string_lossy()).collect();
    if let [root, proc, pid, ns, _] = &words[..]
        && (root == "/" && proc == "proc" && ns == "ns")
        && pid.parse::<u32>().is_ok()
    {
        return Ok(path.to_path_buf());
    }
    let reason = format!("{} is not a namespace of the guest (/proc/PID/ns/TYPE)", path.display());
    Err(field("linux.namespaces", reason))
}
