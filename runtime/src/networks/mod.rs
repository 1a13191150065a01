//! Networks of `bulkhead run`: CNI's plugins put a network namespace into one, the machine
//! takes over the interface there (`crate::network`), and nftables on the host's side says
//! where its guest may connect to.
//!
//! ```text
//! definition   a *.conflist of ours, or one of /etc/cni/net.d
//! attach       namespace -> ADD -> rules of the guest -> names in /etc/hosts
//!   attached.json in the container's directory says what is to be undone
//! detach       rules -> DEL -> names; by whoever looks next, if the supervisor was killed
//! ```
//!
//! Invariant: the namespace is one of a live process, and never a mount. With the process
//! its interfaces go, and with these the host's ends of them and the rules that are on these.

mod attach;
pub mod bandwidth;
pub mod cidr;
mod counted;
mod counts;
mod definition;
pub mod egress;
mod files;
mod hosts;
mod link;
pub mod options;
pub mod passt;
mod record;
mod rules;
mod special;
mod standing;

use std::path::PathBuf;

use crate::rootless;

pub use attach::{Attached, Joining, attach, detach};
pub use counted::{All, Counted, Whose, counted, counted_all};
pub use counts::{Counts, Flow, Telling, Traffic};
pub use definition::{Created, DEFAULT, Known, Networks, missing};
pub use files::{Paths, paths};
pub use record::{Record, read as record, remove_all_else};
pub use rules::Refused;
pub use standing::{Standing, standing};

/// Why a container has no network, or a network is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A plugin.
    #[error(transparent)]
    Cni(#[from] crate::cni::CniError),
    /// A policy.
    #[error(transparent)]
    Egress(#[from] egress::EgressError),
    /// A file of ours.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// No such network.
    #[error(
        "no such network: {0}; `bulkhead network ls` lists those that are there, `bulkhead \
         network create {0}` makes one"
    )]
    NotFound(String),
    /// The name is taken.
    #[error("the network {0} exists already")]
    Exists(String),
    /// Not a name.
    #[error(
        "invalid network name {0:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed, and not none, host or passt"
    )]
    Name(String),
    /// Not one of ours.
    #[error("{0} is not a network of bulkhead's: it is described by {1}")]
    Foreign(String, PathBuf),
    /// Containers need it.
    #[error("the network {name} is in use by {users}; remove them first")]
    InUse {
        /// Its name.
        name: String,
        /// Names of containers.
        users: String,
    },
    /// A subnet that cannot be.
    #[error("the subnet {subnet} is not possible: {why}")]
    Subnet {
        /// Which.
        subnet: String,
        /// Why not.
        why: String,
    },
    /// The host learns its routes from a router.
    #[error(
        "a network with IPv6 would cut the host off: it would no longer take its default route \
         from the router at {0}; set net.ipv6.conf.{0}.accept_ra=2 first"
    )]
    Router(String),
    /// No room.
    #[error("no subnet of 10.87.0.0/16 is free; name one with --subnet")]
    NoSubnet,
    /// The host's port.
    #[error("cannot publish {port}: {why}")]
    Port {
        /// Which.
        port: String,
        /// Why not.
        why: String,
    },
    /// A call of the kernel.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// nftables.
    #[error("cannot set the rules of the network by nft: {0}")]
    Rules(String),
    /// What nftables tells.
    #[error(
        "cannot read the rules of the network by nft: {0}; where a firewall's reload has removed \
         them, a container has its own again once it is started anew"
    )]
    Listing(String),
    /// The program.
    #[error(
        "there is no program nft, which sets the rules of the network: install nftables \
         (Debian's package), or use --network none"
    )]
    NoNft,
    /// The program.
    #[error(
        "there is no program passt: install it (Debian's package passt), or use another \
         --network"
    )]
    NoPasst,
    /// passt.
    #[error("passt does not start: {0}")]
    Passt(String),
    /// `host-gateway`.
    #[error(
        "--add-host {0}:host-gateway is not possible on --network passt: the host has no \
         default route, and so no address of its own that stands for it"
    )]
    NoHostAddress(String),
    /// Its interface.
    #[error("cannot make the interface of the container")]
    Interface(#[source] Box<crate::network::NetworkError>),
    /// What plugins gave.
    #[error("cannot understand the result of the network's CNI plugins")]
    Result(#[source] serde_json::Error),
    /// What cannot be enforced there.
    #[error(
        "--egress is not possible on the network {0}: none of its interfaces is on the host, \
         where packets could be looked at; use a network of the plugin bridge or ptp"
    )]
    OutOfReach(String),
    /// What only root can have.
    #[error(
        "the network {0} needs root: without it there are --network passt (the default then) \
         and none; or run it with sudo"
    )]
    Rootless(String),
    /// Plugins that still run.
    #[error("plugins of a killed process still work on the container's network")]
    Busy,
}

/// Refuses a network that this process cannot put a container into.
///
/// # Errors
/// Without root, for all but passt.
pub fn check_root(network: &str) -> Result<(), NetworkError> {
    match rootless::is_rootless() && network != passt::NAME {
        true => Err(NetworkError::Rootless(network.into())),
        false => Ok(()),
    }
}

impl NetworkError {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> NetworkError {
        let what = what.into();
        move |source| NetworkError::System { what, source }
    }
}
