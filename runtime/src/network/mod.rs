//! The network of a machine: that of a network namespace, whose interfaces it takes over.
//!
//! ```text
//! Network::open            in the namespace: sockets, descriptors of /dev/net/tun
//!   .take_over             interfaces -> taps, tied to them        -> the VMM's Boot
//!   .introduce             addresses, routes, neighbours           -> the agent
//! Watch::begin             ... and what changes of all that, for as long as it lives
//! ```
//!
//! The namespace is the engine's, or CNI's, which go on to work in it as if the container
//! were there: what they set up is looked at, and told to the guest. The addresses stay on
//! the host's side as well, where nothing arrives for them any more.
//!
//! Whatever ends us, the taps end with the VMM's descriptors. What stays is a filter that
//! leads nowhere, on an interface of somebody else's: [`clean`] and the next start remove it.

mod keeper;
mod made;
mod netlink;
mod resolver;
mod tap;
mod view;
mod watch;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use protocol::machine::{MAX_NETS, MAX_QUEUE_PAIRS, RateLimits};

use crate::agent::AgentError;
use crate::sandbox::vmm::ControlError;
use crate::sys::tun;
use netlink::Netlink;
use netlink_packet_route::link::LinkMessage;
use view::View;

pub(crate) use keeper::{Keeper, Machine, Plug};
pub(crate) use made::{Made, Routes, make};
pub(crate) use resolver::Resolver;
pub(crate) use watch::{Asks, Watch};

/// What names of our taps begin with; the interface's number follows.
const TAP: &str = "bhtap";

/// Interfaces that may come while the machine runs, beside those of the start.
pub(crate) const LATER: usize = 3;

/// Why a machine does not get its network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// /dev/net/tun.
    #[error(
        "cannot open {}: the kernel's module tun is missing, or the cgroup's device rules forbid it",
        tun::DEVICE
    )]
    Open(#[source] std::io::Error),
    /// The sockets.
    #[error("cannot open a netlink socket")]
    Socket(#[source] Errno),
    /// rtnetlink.
    #[error("cannot list the {what} of the network namespace")]
    List {
        /// Of what kind.
        what: &'static str,
        /// Why.
        source: Errno,
    },
    /// TUNSETIFF, or its set-up.
    #[error("cannot make a tap for interface {name}")]
    Tap {
        /// The interface.
        name: String,
        /// Why.
        source: Errno,
    },
    /// The tap is there.
    #[error(
        "another machine has the network namespace ({name} is in it): one that is ending, or \
         of another --root, whose containers cannot share it"
    )]
    Occupied {
        /// Its tap.
        name: String,
    },
    /// Traffic control.
    #[error(
        "cannot redirect interface {name} to the machine (the kernel needs the modules \
         sch_ingress, cls_matchall and act_mirred)"
    )]
    Tie {
        /// The interface.
        name: String,
        /// Why.
        source: Errno,
    },
    /// More than slots.
    #[error("the network namespace has {count} interfaces; a machine can have {MAX_NETS}")]
    TooMany {
        /// In the namespace.
        count: usize,
    },
    /// All slots are taken.
    #[error(
        "the machine has no room for interface {name}: it was started for {count} at a time \
         (those that there were, and {LATER} more)"
    )]
    NoRoom {
        /// The interface.
        name: String,
        /// Slots.
        count: usize,
    },
    /// More than a guest is told.
    #[error(
        "the network namespace has {count} interfaces, addresses, routes and neighbours, or \
         longer ones, than a machine can have"
    )]
    TooMuch {
        /// In the namespace.
        count: usize,
    },
    /// Its guest could not tell them apart.
    #[error("interfaces {name} and {other} have the same hardware address")]
    SameMac {
        /// One.
        name: String,
        /// The other.
        other: String,
    },
    /// No address of an interface.
    #[error("the hardware address of interface {name} is none that a machine can have")]
    Mac {
        /// The interface.
        name: String,
    },
    /// A VLAN's, for one.
    #[error(
        "interface {name} lies upon {other} of the same network namespace: a machine can have \
         only one of them"
    )]
    Stacked {
        /// The upper one.
        name: String,
        /// The lower one.
        other: String,
    },
    /// More than the guard takes.
    #[error("interface {name} has {count} addresses, too many for its guard")]
    Guard {
        /// The interface.
        name: String,
        /// Its addresses.
        count: usize,
    },
    /// The VMM.
    #[error("the machine does not take interface {name}")]
    Attach {
        /// The interface.
        name: String,
        /// Why.
        source: ControlError,
    },
    /// The guest.
    #[error("the guest does not take the network of its namespace")]
    Guest(#[source] AgentError),
    /// The one who watches is gone.
    #[error("{0}")]
    Settle(String),
}

/// What a machine may do in its network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whether each interface sends from its own hardware address and IP addresses alone
    /// ([`protocol::machine::Guard`], made of the addresses that it has).
    pub guard: bool,
    /// What may pass each interface.
    pub limits: Option<RateLimits>,
}

/// A network namespace, opened for a machine.
#[derive(Debug)]
pub struct Network {
    netlink: Netlink,
    news: OwnedFd,
    queues: Queues,
    policy: Policy,
    resolv_conf: Option<PathBuf>,
}

impl Network {
    /// Opens the namespace that this thread is in, for a machine of `vcpus` vCPUs; the thread
    /// on which the sandbox lives is to be in it as well. Before the process is in a cgroup
    /// whose rules may forbid /dev/net/tun. Nothing is looked at, or changed, until the
    /// machine starts: what is there then is what it gets, and what comes later as well.
    ///
    /// # Errors
    /// When a socket or the device cannot be opened.
    pub fn open(vcpus: u8, policy: Policy) -> Result<Network, NetworkError> {
        Ok(Network {
            netlink: Netlink::open().map_err(NetworkError::Socket)?,
            // Before anything is looked at: no change is missed.
            news: netlink::news().map_err(NetworkError::Socket)?,
            queues: Queues::open(vcpus.clamp(1, MAX_QUEUE_PAIRS))?,
            policy,
            resolv_conf: None,
        })
    }

    /// Where that file of the container is, if an engine made it: a loopback address in it is
    /// one of the namespace, at which the engine's resolver answers.
    pub fn with_resolv_conf(self, path: Option<PathBuf>) -> Network {
        Network { resolv_conf: path, ..self }
    }

    /// What answers the guest's questions to that resolver.
    pub(crate) fn resolver(&self) -> Option<Resolver> {
        self.resolv_conf.as_deref().map(Resolver::new)
    }
}

/// Descriptors of /dev/net/tun.
#[derive(Debug)]
struct Queues {
    pairs: usize,
    open: Vec<OwnedFd>,
}

impl Queues {
    /// As many as a machine can use at once.
    fn open(pairs: u8) -> Result<Queues, NetworkError> {
        let pairs = usize::from(pairs);
        let open = (0..pairs * MAX_NETS).map(|_| tun::open()).collect::<Result<_, _>>();
        Ok(Queues { pairs, open: open.map_err(NetworkError::Open)? })
    }

    /// Those of an interface. When the first ones are used up, interfaces have come and gone,
    /// it depends on the cgroup's rules whether there are more.
    fn take(&mut self) -> Result<Vec<OwnedFd>, NetworkError> {
        while self.open.len() < self.pairs {
            self.open.push(tun::open().map_err(NetworkError::Open)?);
        }
        Ok(self.open.split_off(self.open.len() - self.pairs))
    }

    /// Keeps those of which no tap was made.
    fn put_back(&mut self, queues: Vec<OwnedFd>) {
        self.open.extend(queues);
    }
}

/// Removes what a machine that was killed left in the network namespace that this thread is
/// in: redirects to taps that have gone. All others are left alone.
///
/// # Errors
/// When the kernel does not tell, or refuses.
pub fn clean() -> Result<(), NetworkError> {
    let mut netlink = Netlink::open().map_err(NetworkError::Socket)?;
    let all = View::names(&mut netlink)?;
    let lives = |index| all.iter().any(|(one, _)| *one == index);
    for (index, name) in &all {
        let failed = |source| NetworkError::Tie { name: name.clone(), source };
        for tap in tap::astray(&mut netlink, *index, lives).map_err(failed)? {
            tap::untie(&mut netlink, *index, tap).map_err(failed)?;
        }
    }
    Ok(())
}

/// Removes the interface with this number from the network namespace that this thread is in.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_link(index: u32) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Netlink::open()?.change(libc::RTM_DELLINK, 0, &message)
}

/// Numbers of interfaces.
type Indexes = HashSet<u32>;
