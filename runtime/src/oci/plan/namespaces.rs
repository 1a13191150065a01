//! Namespaces of a specification: those of the host, and those of a machine that is
//! joined.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use serde_json::Value;

use super::super::bundle::{BundleError, field};
use crate::sandbox::ids::Mappings;

/// The host's network namespace; our own, where the first process's cannot be read.
const HOST: [&str; 2] = ["/proc/1/ns/net", "/proc/self/ns/net"];

/// A container that lives, as another one sees it which names a namespace of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The container that began its machine.
    pub machine: String,
    /// Process on the host that stands for it.
    pub monitor: i32,
    /// Pid of its process in the guest.
    pub guest_pid: i32,
    /// Of its user namespace, if it is in one.
    pub mappings: Option<Mappings>,
}

/// The container that process PID of the host stands for.
pub type Neighbours<'a> = &'a dyn Fn(i32) -> Option<Neighbour>;

/// The user namespace of a specification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum User {
    /// The machine's.
    #[default]
    None,
    /// One of its own.
    New,
    /// Another container's, with these mappings.
    Joined(Mappings),
}

/// What the namespaces of a specification say of the host.
#[derive(Default)]
pub(super) struct Namespaces {
    pub(super) network: Option<PathBuf>,
    pub(super) own_network: bool,
    pub(super) machine: Option<String>,
    pub(super) user: User,
}

impl Namespaces {
    /// In `raw`, paths of the host become those of the guest.
    pub(super) fn of(
        linux: &Linux,
        raw: &mut Value,
        of: Neighbours,
    ) -> Result<Namespaces, BundleError> {
        let refuse = |reason: String| Err(field("linux.namespaces", reason));
        let mut this = Namespaces::default();
        let mut joined: Option<Neighbour> = None;
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let kind = namespace.typ();
            let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
            let is_network = kind == LinuxNamespaceType::Network;
            this.own_network |= is_network;
            let is_user = kind == LinuxNamespaceType::User;
            let Some(path) = path else {
                if is_user {
                    this.user = User::New;
                }
                continue;
            };
            let neighbour = process_of(&path).and_then(|(pid, file)| Some((of(pid)?, file)));
            match neighbour {
                Some((neighbour, file)) => {
                    raw[index]["path"] =
                        Value::String(format!("/proc/{}/ns/{file}", neighbour.guest_pid));
                    if joined.as_ref().is_some_and(|other| other.machine != neighbour.machine) {
                        return refuse(format!("{} is of another machine", path.display()));
                    }
                    match &neighbour.mappings {
                        Some(mappings) if is_user => this.user = User::Joined(mappings.clone()),
                        None if is_user => {
                            let reason = "its container is in no user namespace";
                            return refuse(format!("{}: {reason}", path.display()));
                        }
                        _ => {}
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
        } else {
            this.refuse_the_hosts()?;
        }
        Ok(this)
    }
}

impl Namespaces {
    /// A machine takes over the interfaces of its network namespace.
    fn refuse_the_hosts(&self) -> Result<(), BundleError> {
        let alternative = "choose a network of the engine instead (--network bridge, with \
                           published ports), --network none, or a network namespace with an \
                           interface for the container";
        if !self.own_network {
            let reason = "has no network namespace, which means the host's: a machine takes over \
                          the interfaces of its network namespace, and the host would lose them";
            return Err(field("linux.namespaces", format!("{reason}; {alternative}")));
        }
        let Some(path) = &self.network else { return Ok(()) };
        match (path.metadata(), hosts_network()) {
            (Ok(one), Some(host)) if (one.dev(), one.ino()) == host => {
                let reason = format!(
                    "{} is the host's network namespace, whose interfaces the machine would \
                     take over",
                    path.display()
                );
                Err(field("linux.namespaces", format!("{reason}; {alternative}")))
            }
            _ => Ok(()),
        }
    }
}

/// Device and inode of a namespace's file: which one it is.
pub type Identity = (u64, u64);

/// Which network namespace is the host's.
pub fn hosts_network() -> Option<Identity> {
    let host = HOST.iter().find_map(|path| Path::new(path).metadata().ok())?;
    Some((host.dev(), host.ino()))
}

/// Pid and file name of `/proc/PID/ns/FILE`.
fn process_of(path: &Path) -> Option<(i32, &str)> {
    let mut words = path.to_str()?.strip_prefix("/proc/")?.split('/');
    let (pid, ns, file) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    (ns == "ns" && words.next().is_none()).then_some((pid, file))
}
