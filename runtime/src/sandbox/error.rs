//! Why a sandbox does not start.

use std::path::PathBuf;
use std::sync::Arc;

use super::{
    VmmEnd, assets::AssetError, cgroup::CgroupError, ids::IdsError, share::ShareError,
    uids::UidError,
};
use crate::agent::AgentError;
use crate::sandbox::vmm::ControlError;

/// Why a sandbox does not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Kernel, initramfs, VMM or /dev/kvm.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// Root of somebody's namespace.
    #[error(
        "bulkhead-runtime needs root of the host, and this is one of a user namespace: run the \
         engine as root, or use `bulkhead run`, which needs none"
    )]
    NotRoot,
    /// The pool of host uids.
    #[error(transparent)]
    Uids(#[from] UidError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The host lacks memory.
    #[error(
        "not enough memory: the machine needs {needed} MiB, the host has {available} MiB \
         available; free some, or ask for less with --memory"
    )]
    Memory {
        /// MiB that the machine needs.
        needed: u64,
        /// MiB that the host has.
        available: u64,
    },
    /// A directory or socket of the sandbox.
    #[error("cannot prepare {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// clone3 failed.
    #[error(
        "cannot start the VMM in namespaces of its own (needs root, and user namespaces: \
         see user.max_user_namespaces)"
    )]
    Spawn(#[source] nix::Error),
    /// The namespaces could not be set up.
    #[error("cannot {what} of the VMM")]
    Namespace {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Ids of the host.
    #[error(transparent)]
    Ids(#[from] IdsError),
    /// A share.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// More than one message can carry.
    #[error(
        "{count} layers and volumes are too many for one machine; the limit is {limit}: \
         squash the image or mount fewer volumes"
    )]
    TooManyShares {
        /// Asked for.
        count: usize,
        /// Possible.
        limit: usize,
    },
    /// Its network.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// The VMM ended.
    #[error("the machine did not start: {0}")]
    Vmm(Arc<VmmEnd>),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest says nothing.
    #[error(
        "the guest never answered within {seconds} s (BULKHEAD_BOOT_TIMEOUT sets the limit; \
         `bulkhead doctor` tells whether this host's KVM works){}",
        super::ended::quoted("; its console ends with:", console)
    )]
    NoAnswer {
        /// The limit.
        seconds: u64,
        /// Last lines of the guest's console.
        console: String,
    },
    /// The agent's greeting.
    #[error(transparent)]
    Agent(#[from] AgentError),
}
