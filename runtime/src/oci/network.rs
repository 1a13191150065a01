//! The network namespace of a container on the host.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use super::OciError;
use super::plan::Plan;
use crate::container::chain;
use crate::network::{self, Network, Policy};
use crate::sandbox::LaunchError;

/// Takes this process into the namespace, which is a new one unless it has a path, and opens
/// it for a machine of the container's own. Before it is in the container's cgroup, and
/// before it has threads.
pub(super) fn enter(plan: &Plan) -> Result<Option<Network>, OciError> {
    match &plan.network {
        Some(path) => join(path)?,
        None => unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| OciError::Namespace {
            what: "make a network namespace".into(),
            source: errno.into(),
        })?,
    }
    if plan.machine.is_some() {
        return Ok(None);
    }
    let network = Network::open(plan.shape.vcpus, Policy::default()).map_err(LaunchError::from)?;
    Ok(Some(network.with_resolv_conf(plan.resolv_conf())))
}

fn join(path: &Path) -> Result<(), OciError> {
    let failed = |source| OciError::Namespace {
        what: format!("join the network namespace {}", path.display()),
        source,
    };
    let namespace = File::open(path).map_err(failed)?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

/// Ends the redirects in a namespace that lives on, where the monitor was killed.
pub(super) fn give_back(plan: &Plan) {
    // One that is a process's went with it.
    let path = plan.network.as_ref().filter(|path| !path.starts_with("/proc") && path.exists());
    let Some(path) = path else { return };
    let clean = || -> Result<(), OciError> {
        join(path)?;
        network::clean().map_err(|error| LaunchError::from(error).into())
    };
    // A thread of its own: this one stays where it is.
    let cleaned = std::thread::scope(|scope| scope.spawn(clean).join());
    if let Ok(Err(error)) = cleaned {
        tracing::warn!("interfaces stay redirected: {}", chain(&error));
    }
}
