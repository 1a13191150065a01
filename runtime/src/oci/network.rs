//! The network namespace of a container on the host.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use super::OciError;
use super::plan::Identity;
use super::store::Container;
use crate::container::chain;
use crate::network::{self, Network, Policy};
use crate::sandbox::LaunchError;

/// Takes this process into the namespace, which is a new one unless it has a path, and opens
/// it for a machine of the container's own. Before it is in the container's cgroup, and
/// before it has threads.
pub(super) fn enter(container: &Container) -> Result<Option<Network>, OciError> {
    let plan = &container.record.plan;
    match &plan.network {
        Some(path) => {
            let namespace = open(path)?;
            // The host's by now, or one that no lock keeps others from: see `occupant`.
            if plan.namespace != Some(namespace.1) {
                let reason = "the path names another one than a moment ago: try again";
                return Err(failed("join", path)(std::io::Error::other(reason)));
            }
            join(path, namespace.0)?;
            if plan.machine.is_none() {
                container.note_network(namespace.1)?;
            }
        }
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

/// The namespace at `path`, and which one it is.
pub(super) fn open(path: &Path) -> Result<(File, Identity), OciError> {
    let opened = File::open(path).and_then(|namespace| {
        let metadata = namespace.metadata()?;
        Ok((namespace, (metadata.dev(), metadata.ino())))
    });
    opened.map_err(failed("open", path))
}

fn join(path: &Path, namespace: File) -> Result<(), OciError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failed("join", path)(errno.into()))
}

pub(super) fn failed(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> OciError {
    let what = format!("{verb} the network namespace {}", path.display());
    |source| OciError::Namespace { what, source }
}

/// Ends the redirects in a namespace that lives on, where the monitor was killed. Once its
/// machine has gone.
pub(super) fn give_back(container: &Container) {
    let Some(path) = &container.record.plan.network else { return };
    let clean = || -> Result<(), OciError> {
        let Some(entered) = container.network()? else { return Ok(()) };
        let (namespace, identity) = match open(path) {
            // It went, with its process or otherwise.
            Err(OciError::Namespace { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(());
            }
            other => other?,
        };
        // Or the path is another one's now.
        if identity != entered {
            return Ok(());
        }
        join(path, namespace)?;
        network::clean().map_err(|error| LaunchError::from(error).into())
    };
    // A thread of its own: this one stays where it is.
    let cleaned = std::thread::scope(|scope| scope.spawn(clean).join());
    if let Ok(Err(error)) = cleaned {
        tracing::warn!("interfaces stay redirected: {}", chain(&error));
    }
}
