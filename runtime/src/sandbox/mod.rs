//! A machine on the host: VMM process, cgroup, host uids, directory, agent.
//!
//! ```text
//! SandboxConfig
//!   -> resources (uids, cgroup, directory with vsock.sock)     each frees itself
//!   -> spawn: VMM held in new namespaces, ids mapped             when dropped
//!   -> shares: detached mounts, id-mapped to those namespaces
//!   -> Boot + descriptors
//!   -> Running(timings) -> GuestConnect -> Hello
//! Sandbox { agent, vmm } ... shutdown() or drop: nothing is left
//! ```
//!
//! Invariant: no mount of a sandbox is ever in the host's mount namespace, and
//! the VMM runs without privilege from its first instruction on.

pub mod assets;
pub mod cgroup;
pub mod ended;
mod error;
mod gather;
pub mod ids;
mod launch;
mod members;
pub mod membership;
mod overlay;
mod owner;
mod resources;
pub mod share;
mod tail;
pub mod uids;
pub mod vmm;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::machine::{Request, ShareKind, Size, Timings};
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, AgentError, Greeting};
use crate::limits::Shape;
use crate::network::{Machine, Network, NetworkError, Watch};

use assets::OpenAssets;
use cgroup::Cgroup;
pub use cgroup::CgroupConfig;
pub use ended::VmmEnd;
pub use error::LaunchError;
use ids::{Both, High};
pub use launch::available_mib;
use launch::{
    answer_guest, check_memory, describe, explain, first_contact, in_time, introduce, prepare,
};
pub use overlay::clean as clean_overlay;
pub use owner::ShareIds;
use resources::Resources;
use vmm::VmmHandle;

/// How long a broken connection may precede the news that the VMM ended.
const POST_MORTEM: Duration = Duration::from_secs(5);

/// What a sandbox is made from.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Its id, unique on the host.
    pub id: String,
    /// Its directory, made at the start and removed at the end.
    pub directory: PathBuf,
    /// What it has of the host for itself.
    pub privileges: Privileges,
    /// Size of the machine.
    pub shape: Shape,
    /// vCPUs to which it can grow; none more, where it is less than it has.
    pub max_vcpus: u8,
    /// Ids of the host that the machine has beside 0..65535.
    pub ids: Both<High>,
    /// Directories and files that the guest sees.
    pub shares: Vec<ShareConfig>,
    /// Words added to the kernel's command line.
    pub cmdline: Vec<String>,
    /// Whether the guest's kernel has AppArmor.
    pub apparmor: bool,
    /// Longest time from the start of the VMM to the agent's first message.
    pub boot_timeout: Duration,
}

/// What the host gives a sandbox.
#[derive(Debug, Clone)]
pub enum Privileges {
    /// Root gives it ids and a cgroup of its own.
    Root {
        /// Locks of the host's uid ranges: one directory for all sandboxes of a host.
        uids: PathBuf,
        /// Where on the host everything that it spends is charged.
        cgroup: CgroupConfig,
    },
    /// A user ([`crate::rootless`]) has none to give: its ids are those of the user's
    /// namespace, it is charged where its supervisor is, and its size is what limits it.
    User,
}

/// A directory or file of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareConfig {
    /// One path component, unique among shares of a kind.
    pub name: String,
    /// What the guest may cache.
    pub kind: ShareKind,
    /// Path on the host.
    pub source: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Whom it belongs to.
    #[serde(default)]
    pub ids: ShareIds,
}

impl ShareConfig {
    /// Path in the guest's share tree.
    pub fn guest_path(&self) -> String {
        format!("{}/{}", self.kind.dir(), self.name)
    }
}

/// How long the start took, in microseconds since it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTimings {
    /// The VMM process exists.
    pub spawned_us: u64,
    /// Mounts were made and the machine's description sent.
    pub boot_sent_us: u64,
    /// The VMM said that the vCPUs run.
    pub running_us: u64,
    /// The agent's first line came out of the guest's console.
    #[serde(default)]
    pub first_line_us: Option<u64>,
    /// The agent's first message was read.
    pub agent_us: u64,
    /// The guest's own clock at that message.
    pub guest_uptime_us: u64,
    /// The agent had built the container, and its streams were attached.
    #[serde(default)]
    pub created_us: Option<u64>,
    /// The container's process ran.
    #[serde(default)]
    pub started_us: Option<u64>,
    /// The VMM's own stages.
    pub vmm: Timings,
}

/// A running machine whose agent answers.
#[derive(Debug)]
pub struct Sandbox {
    members: Option<members::Members>,
    network: Option<Watch>,
    // Dropped in this order: the process before what it uses.
    agent: Agent,
    vmm: VmmHandle,
    resources: Resources,
    userns: OwnedFd,
    ids: Both<High>,
    size: Size,
    greeting: Greeting,
    timings: LaunchTimings,
    begin: Instant,
}

/// `BULKHEAD_BOOT_TIMEOUT` in seconds, or 30 s.
pub fn boot_timeout() -> Duration {
    let seconds = std::env::var("BULKHEAD_BOOT_TIMEOUT").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).filter(|&seconds| seconds > 0);
    Duration::from_secs(seconds.unwrap_or(30))
}

impl Sandbox {
    /// Starts a machine and waits for its agent. Without a `network`, it has a loopback
    /// interface; else it has the interfaces of that namespace, now and later.
    ///
    /// # Errors
    /// With the reason; nothing is left behind.
    pub async fn launch(
        config: &SandboxConfig,
        assets: &OpenAssets,
        network: Option<Network>,
    ) -> Result<Sandbox, LaunchError> {
        Self::launch_timed(config, assets, network, &mut LaunchTimings::default()).await
    }

    /// [`Sandbox::launch`] that tells how far it came, and when, if it fails as
    /// well.
    ///
    /// # Errors
    /// The same.
    pub async fn launch_timed(
        config: &SandboxConfig,
        assets: &OpenAssets,
        network: Option<Network>,
        timings: &mut LaunchTimings,
    ) -> Result<Sandbox, LaunchError> {
        let begin = Instant::now();
        let micros = || begin.elapsed().as_micros() as u64;
        check_memory(config.shape)?;
        let resolver = network.as_ref().and_then(Network::resolver);
        let (network, plugs) = match network {
            Some(network) => {
                let (keeper, plugs, news) = network.take_over().await?;
                (Some((keeper, news)), Some(plugs))
            }
            None => (None, None),
        };
        let resources = Resources::acquire(config)?;
        let held = vmm::spawn(&assets.vmm, resources.cgroup().and_then(Cgroup::directory))?;
        *timings = LaunchTimings { spawned_us: micros(), ..LaunchTimings::default() };
        let (shares, userns) = match prepare(&held.process, &resources, config) {
            Ok(prepared) => prepared,
            Err(error) => {
                held.process.abandon();
                return Err(error);
            }
        };
        let (vmm, mut events, console) = held.go()?;
        let (machine, fds) =
            describe(config, assets, &resources, console, shares, (plugs, resolver.is_some()));
        let boot = vmm.request(Request::Boot(Box::new(machine)), fds);
        timings.boot_sent_us = micros();
        let limit = config.boot_timeout;
        let contact = first_contact(boot, &mut events, timings, begin);
        let greeting = match in_time(contact, &vmm, begin, limit).await {
            Ok(greeting) => Ok(greeting),
            Err(error) => Err(explain(error, &vmm).await),
        };
        let first_line = vmm.first_line();
        timings.first_line_us = first_line.map(|at| (at - begin).as_micros() as u64);
        let (agent, greeting) = greeting?;
        timings.agent_us = micros();
        timings.guest_uptime_us = greeting.hello.uptime_us;
        let timings = timings.clone();
        tokio::spawn(answer_guest(events, resolver));
        let network = match network {
            Some((keeper, news)) => {
                let machine = Machine { agent: agent.clone(), vmm: vmm.requests() };
                Some(in_time(introduce(keeper, machine, news), &vmm, begin, limit).await?)
            }
            None => None,
        };
        let (members, ids) = (None, config.ids.clone());
        let size = Size { memory_mib: config.shape.memory_mib, vcpus: config.shape.vcpus };
        Ok(Sandbox {
            members,
            network,
            agent,
            vmm,
            resources,
            userns,
            ids,
            size,
            greeting,
            timings,
            begin,
        })
    }

    /// The connection to the agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Lets further containers join the machine: see [`membership`].
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn welcome(&mut self) -> std::io::Result<()> {
        let owner = (self.userns.try_clone()?, self.uid_base(), self.ids.clone());
        let ways =
            (self.agent.clone(), self.vmm.requests(), self.network.as_ref().map(Watch::asks));
        self.members = Some(members::Members::serve(self.directory(), ways, owner, self.size)?);
        Ok(())
    }

    /// The VMM process.
    pub fn vmm(&self) -> &VmmHandle {
        &self.vmm
    }

    /// What the guest said of itself, and its events.
    pub fn greeting(&mut self) -> &mut Greeting {
        &mut self.greeting
    }

    /// Microseconds since the start was asked for.
    pub fn age_us(&self) -> u64 {
        self.begin.elapsed().as_micros() as u64
    }

    /// How long the start took.
    pub fn timings(&self) -> &LaunchTimings {
        &self.timings
    }

    /// The directory that holds the vsock socket.
    pub fn directory(&self) -> &Path {
        self.resources.directory()
    }

    /// First of the host uids that the machine has for itself; 0, where it has the user's.
    pub fn uid_base(&self) -> u32 {
        self.resources.uid_base()
    }

    /// The machine's end, where that is why the agent did not answer. Waits for it for
    /// a while: the broken connection is seen first.
    pub async fn end_behind(&self, error: &AgentError) -> Option<SharedEnd> {
        if !matches!(error, AgentError::Closed(_) | AgentError::Connect(_)) {
            return None;
        }
        tokio::time::timeout(POST_MORTEM, self.vmm.ended()).await.ok()
    }

    /// Waits until the guest has the network that its namespace has now: what was set up
    /// there since the launch is looked at within a moment, but not at once.
    ///
    /// # Errors
    /// When the machine or its guest does not take it.
    pub async fn settle_network(&self) -> Result<(), NetworkError> {
        match &self.network {
            Some(network) => network.asks().settle().await,
            None => Ok(()),
        }
    }

    /// Lets the guest sync and power off, and kills it if it takes longer than
    /// `limit`. Nothing is left afterwards.
    pub async fn shutdown(mut self, limit: Duration) {
        let agent = self.agent.clone().with_timeout(limit);
        let off = async {
            // There is no answer to it: only the machine's end tells.
            let _ = agent.call(protocol::agent::Call::PowerOff).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = off => {}
            _ = self.vmm.ended() => {}
            () = tokio::time::sleep(limit) => {}
        }
        if let Some(network) = self.network.take() {
            network.end().await;
        }
    }
}

/// The end of a VMM, shared by all who wait for it.
pub type SharedEnd = Arc<VmmEnd>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_found_by_kind_and_name() {
        let share = ShareConfig {
            name: "l3".into(),
            kind: ShareKind::Immutable,
            source: "/x".into(),
            read_only: true,
            ids: ShareIds::Machine,
        };
        assert_eq!(share.guest_path(), "immutable/l3");
    }
}
