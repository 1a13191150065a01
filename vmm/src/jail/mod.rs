//! The wall behind the wall: what is left to a guest that takes over this
//! process.
//!
//! The runtime cloned this process into user, mount, pid, net, ipc and uts
//! namespaces of its own, mapped to a host uid range of this sandbox alone, so it
//! never has a privilege on the host, not even in its first instruction (or, without
//! root, to the ids of the user who runs it). Here it gives up the rest:
//!
//! ```text
//! born:     root of its own user namespace, sees the host's mounts (copies)
//! enter():  a tmpfs with /shares (the detached mounts that the runtime sent)
//!           and /proc (of the own pid namespace), pivoted into, then read-only;
//!           capabilities but those of a file server dropped, no_new_privs
//! confine(): per thread: capabilities that the thread's kind does not need are
//!           dropped, then a seccomp allow-list
//! ```
//!
//! Mounts exist in this process's mount namespace only: they go with it.

mod privileges;
mod seccomp;
mod sys;
mod tree;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use protocol::machine::Share;

use crate::devices::virtio::fs;

pub use seccomp::Filters;

/// Where the shares are after [`enter`].
pub const SHARES: &str = "/shares";

/// Kinds of threads, each with its own allow-list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Waits for the runtime and for the machine's end.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Runs the handlers of slow devices.
    Devices,
    /// Serves files.
    Fs,
    /// Serves network interfaces.
    Net,
}

/// Why the jail could not be built. The machine then does not start.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step failed.
    #[error("{what}: {source}")]
    Step {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: nix::Error,
    },
    /// A share's name could lead out of the tree.
    #[error("{0:?} is not a name for a share: one path component is expected")]
    Name(String),
    /// A seccomp filter could not be made.
    #[error("cannot build the seccomp filter: {0}")]
    Filter(String),
    /// A capability call failed.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(String),
}

/// For `map_err`: names the step that failed.
fn step(what: impl Into<String>) -> impl FnOnce(nix::Error) -> JailError {
    let what = what.into();
    move |source| JailError::Step { what, source }
}

/// Builds the jail around this (still single-threaded) process. Returns the
/// directory of the shares.
///
/// # Errors
/// When any step fails: there is no weaker jail to fall back to.
pub fn enter(shares: &[(Share, OwnedFd)], hostname: &str) -> Result<PathBuf, JailError> {
    for (share, _) in shares {
        if !is_name(&share.name) {
            return Err(JailError::Name(share.name.clone()));
        }
    }
    privileges::become_namespace_root()?;
    // The name is for people who look at /proc; its loss changes nothing.
    let _ = nix::unistd::sethostname(hostname);
    tree::build(shares)?;
    privileges::limit_resources()?;
    fs::prepare_thread()
        .map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        .map_err(step("cannot set the file server's securebits"))?;
    privileges::keep_file_server_capabilities()?;
    privileges::no_new_privileges()?;
    Ok(PathBuf::from(SHARES))
}

/// Whether it is one path component, which cannot lead out of the tree of shares.
pub fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Confines the calling thread for good.
///
/// # Errors
/// When the kernel refuses; the caller must then end the process.
pub fn confine(filters: &Filters, kind: ThreadKind) -> Result<(), JailError> {
    if kind != ThreadKind::Fs {
        privileges::drop_all_capabilities()?;
    }
    filters.apply(kind)
}
