//! Namespaces of a specification: those of the host, and those of a machine that is
//! joined.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};
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

/// The network namespace that a specification names by a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Which one it is.
    pub identity: Identity,
    /// The container whose machine has it.
    pub occupant: Option<Neighbour>,
}

/// What lives on the host beside a new container.
pub struct Neighbours<'a> {
    /// Of its network namespace, if that has a path.
    pub network: Option<Named>,
    /// The container that process PID of the host stands for.
    pub of_process: &'a dyn Fn(i32) -> Option<Neighbour>,
}

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

/// Where a specification has its network namespace, if it names one by a path.
pub fn network_path(linux: &Linux) -> Option<&Path> {
    let mut all = linux.namespaces().iter().flatten();
    all.find_map(|namespace| match namespace.typ() {
        LinuxNamespaceType::Network => path_of(namespace),
        _ => None,
    })
}

fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// What the namespaces of a specification say of the host.
#[derive(Default)]
pub(super) struct Namespaces {
    pub(super) network: Option<(PathBuf, Identity)>,
    pub(super) own_network: bool,
    pub(super) machine: Option<String>,
    pub(super) user: User,
}

impl Namespaces {
    /// In `raw`, paths of the host become those of the guest.
    pub(super) fn of(
        linux: &Linux,
        raw: &mut Value,
        beside: &Neighbours,
    ) -> Result<Namespaces, BundleError> {
        let mut this = Namespaces::default();
        let mut joined: Option<(Neighbour, PathBuf)> = None;
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let kind = namespace.typ();
            let is_network = kind == LinuxNamespaceType::Network;
            this.own_network |= is_network;
            let is_user = kind == LinuxNamespaceType::User;
            let Some(path) = path_of(namespace) else {
                if is_user {
                    this.user = User::New;
                }
                continue;
            };
            let neighbour = match (&beside.network, is_network) {
                (Some(named), true) => {
                    this.network = Some((path.to_owned(), named.identity));
                    named.occupant.clone().map(|neighbour| (neighbour, "net"))
                }
                (None, true) => None,
                (_, false) => {
                    process_of(path).and_then(|(pid, file)| Some(((beside.of_process)(pid)?, file)))
                }
            };
            match neighbour {
                Some((neighbour, file)) => {
                    raw[index]["path"] =
                        Value::String(format!("/proc/{}/ns/{file}", neighbour.guest_pid));
                    one_machine(joined.as_ref(), &neighbour, path)?;
                    match &neighbour.mappings {
                        Some(mappings) if is_user => this.user = User::Joined(mappings.clone()),
                        None if is_user => {
                            let reason = "its container is in no user namespace";
                            return refuse(format!("{}: {reason}", path.display()));
                        }
                        _ => {}
                    }
                    joined = Some((neighbour, path.to_owned()));
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
        }
        let has_its_network =
            beside.network.as_ref().is_some_and(|network| network.occupant.is_some());
        match joined {
            Some((neighbour, _)) if has_its_network => this.machine = Some(neighbour.machine),
            Some((neighbour, path)) => {
                return refuse(format!(
                    "containers of one machine share its network namespace: with {}, that of \
                     process {} must be joined as well",
                    path.display(),
                    neighbour.monitor
                ));
            }
            None => this.refuse_the_hosts()?,
        }
        Ok(this)
    }

    /// A machine takes over the interfaces of its network namespace.
    fn refuse_the_hosts(&self) -> Result<(), BundleError> {
        let alternative = "choose a network of the engine instead (--network bridge, with \
                           published ports), --network none, or a network namespace with an \
                           interface for the container";
        if !self.own_network {
            let reason = "has no network namespace, which means the host's: a machine takes over \
                          the interfaces of its network namespace, and the host would lose them";
            return refuse(format!("{reason}; {alternative}"));
        }
        match &self.network {
            Some((path, identity)) if hosts_network() == Some(*identity) => refuse(format!(
                "{} is the host's network namespace, whose interfaces the machine would take \
                 over; {alternative}",
                path.display()
            )),
            _ => Ok(()),
        }
    }
}

/// A container is in one machine, whatever it joins there.
fn one_machine(
    joined: Option<&(Neighbour, PathBuf)>,
    neighbour: &Neighbour,
    path: &Path,
) -> Result<(), BundleError> {
    match joined {
        Some((other, first)) if other.machine != neighbour.machine => refuse(format!(
            "{} is of another machine (that of container {:?}) than {} (that of container {:?}): \
             all that a container joins must be of one",
            path.display(),
            neighbour.machine,
            first.display(),
            other.machine
        )),
        _ => Ok(()),
    }
}

fn refuse<T>(reason: String) -> Result<T, BundleError> {
    Err(field("linux.namespaces", reason))
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
