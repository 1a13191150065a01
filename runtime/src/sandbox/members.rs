//! Containers that join a machine which another one began (a pod's): what its
//! supervisor does for them.
//!
//! ```text
//! joining monitor                       supervisor
//!   | connects to members.sock           |
//!   | <--- Welcome + user namespace ---- |  whose ids its shares are mapped to
//!   | ---- Join(shares) + mounts ------> |  Attach -> VMM
//!   | <--- Ok -------------------------- |
//!   |   ... builds its container by the agent, attends it ...
//!   | ---- Leave, or its end ----------> |  Delete -> agent, Detach -> VMM
//! ```
//!
//! The verb `update` comes by the same way, with no container of its own:
//! ```text
//!   | ---- Grow(size) -----------------> |  Grow -> VMM, Grow -> agent
//!   | <--- Ok(size) -------------------- |
//! ```
//! and so does `start`, with Settle: interfaces may have come since `create`.
//!
//! A connection stands for a container: whoever closes it, in whatever way, nothing of
//! the container is left in the machine. When the supervisor ends, the machine does.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use protocol::agent::{Call, ErrorKind};
use protocol::machine::{Reply, Request, Share, Size, grown_mib};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::ids::{Both, High};
use super::vmm::Requests;
use crate::agent::{Agent, AgentError};
use crate::container::chain;
use crate::network::Asks;
use crate::sys::descriptors::{Packet, accept, receive_packet, send_packet, watch_fd};

/// Name of the socket in the sandbox's directory.
pub(super) const SOCKET: &str = "members.sock";
/// Longest message in bytes.
pub(super) const MAX_MESSAGE: usize = 128 << 10;
/// How long a container's removal in the guest is tried.
const REMOVAL: Duration = Duration::from_secs(20);
/// How long a guest may take to use what was added: a TiB in blocks of 2 GiB.
const GROWTH: Duration = Duration::from_secs(60);
/// Between two tries, or two attempts to accept while descriptors are short.
const PAUSE: Duration = Duration::from_millis(20);

/// First message of the supervisor. The user namespace comes with it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// [`protocol::PROTOCOL_VERSION`].
    pub(super) version: u32,
    /// The host's id for its id 0.
    pub(super) base: u32,
    /// Which ids of the host the machine has.
    #[serde(default)]
    pub(super) ids: Both<High>,
    /// What the names of this container's shares begin with: no two are alike in a
    /// machine's life, since its guest remembers names.
    pub(super) prefix: String,
    /// Whether it takes [`Ask::Grow`].
    #[serde(default)]
    pub(super) grows: bool,
    /// Whether it takes [`Ask::Settle`].
    #[serde(default)]
    pub(super) settles: bool,
}

/// What a monitor asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// Serve these shares. Their mounts come with it.
    Join { container: String, shares: Vec<Share> },
    /// Remove what this connection stands for; answered when it is gone.
    Leave,
    /// Answered when nothing of the container is left, whoever stood for it.
    Gone { container: String },
    /// Make the machine this large, where it is smaller; answered when its guest uses it.
    Grow { size: Size },
    /// Answered when the guest has the network that its namespace has now.
    Settle,
}

/// What it is told: the machine's size, when it was to grow.
pub(super) type Answer = Result<Option<Size>, String>;

/// The supervisor's side, for as long as this lives.
#[derive(Debug)]
pub(super) struct Members(tokio::task::JoinHandle<()>);

impl Drop for Members {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Members {
    /// Listens in `directory`.
    pub(super) fn serve(
        directory: &Path,
        (agent, vmm, network): (Agent, Requests, Option<Asks>),
        (userns, base, ids): (OwnedFd, u32, Both<High>),
        size: Size,
    ) -> std::io::Result<Members> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // By descriptor: a socket's path is limited to 108 bytes.
        let opened = std::fs::File::open(directory)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd());
        bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        listen(&listener, Backlog::MAXCONN)?;
        let host = Arc::new(Host {
            agent: agent.with_timeout(REMOVAL),
            vmm,
            network,
            userns,
            base,
            ids,
            next: AtomicU64::new(1),
            growth: size.into(),
            present: watch::Sender::default(),
        });
        Ok(Members(tokio::spawn(accept_all(watch_fd(listener)?, host))))
    }
}

async fn accept_all(listener: AsyncFd<OwnedFd>, host: Arc<Host>) {
    loop {
        let Ok(mut ready) = listener.readable().await else { return };
        match accept(listener.get_ref().as_fd()) {
            Ok(connection) => {
                let host = host.clone();
                tokio::spawn(async move { host.attend(connection).await });
            }
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!("accepting a container that joins: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct Host {
    agent: Agent,
    vmm: Requests,
    network: Option<Asks>,
    userns: OwnedFd,
    base: u32,
    ids: Both<High>,
    next: AtomicU64,
    /// The most that was ever asked for; held by the one who makes the machine larger.
    growth: tokio::sync::Mutex<Size>,
    /// Ids of containers of which something is in the machine.
    present: watch::Sender<HashSet<String>>,
}

/// A container that joined.
struct Member {
    container: String,
    shares: Vec<Share>,
}

impl Host {
    async fn attend(&self, connection: OwnedFd) {
        let mut member = None;
        // However it ends, its monitor does not speak any more.
        let _ = self.converse(connection, &mut member).await;
        if let Some(member) = member {
            self.remove(member).await;
        }
    }

    async fn converse(&self, fd: OwnedFd, member: &mut Option<Member>) -> std::io::Result<()> {
        let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&fd, nonblocking)?;
        let connection = watch_fd(fd)?;
        let welcome = Welcome {
            version: protocol::PROTOCOL_VERSION,
            base: self.base,
            ids: self.ids.clone(),
            prefix: self.next.fetch_add(1, Ordering::Relaxed).to_string(),
            grows: true,
            settles: true,
        };
        send(&connection, &welcome, &[self.userns.as_fd()]).await?;
        while let Some((ask, fds)) = receive(&connection).await? {
            let answer: Answer = match ask {
                Ask::Join { .. } if member.is_some() => Err("it has joined already".into()),
                Ask::Join { container, shares } => {
                    self.arrive(&container).await;
                    *member = Some(Member { container, shares: shares.clone() });
                    match self.vmm.request(Request::Attach { shares }, fds).await {
                        Ok(_) => Ok(None),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Ask::Grow { size } => self.grow(size).await.map(Some),
                Ask::Settle => match &self.network {
                    Some(network) => {
                        network.settle().await.map(|()| None).map_err(|error| chain(&error))
                    }
                    None => Ok(None),
                },
                Ask::Leave => {
                    if let Some(member) = member.take() {
                        self.remove(member).await;
                    }
                    Ok(None)
                }
                Ask::Gone { container } => {
                    let mut present = self.present.subscribe();
                    let _ = present.wait_for(|all| !all.contains(&container)).await;
                    Ok(None)
                }
            };
            send(&connection, &answer, &[]).await?;
        }
        Ok(())
    }

    /// First the machine, then its guest: what it is told of is there.
    async fn grow(&self, size: Size) -> Result<Size, String> {
        let mut most = self.growth.lock().await;
        let Size { memory_mib, vcpus } = size;
        let larger = grown_mib(most.memory_mib, memory_mib);
        *most = Size { memory_mib: larger, vcpus: most.vcpus.max(vcpus) };
        let reply = self.vmm.request(Request::Grow { memory_mib, vcpus }, Vec::new()).await;
        let (size, memory) = match reply.map_err(|error| error.to_string())? {
            // Limits of the host follow from it, and a guest may have taken the VMM over.
            Reply::Grown { size, added }
                if size.memory_mib <= most.memory_mib && size.vcpus <= most.vcpus =>
            {
                (size, added)
            }
            _ => return Err("the VMM's answer makes no sense".into()),
        };
        let agent = self.agent.clone().with_timeout(GROWTH);
        match agent.order(Call::Grow { memory, vcpus: size.vcpus }).await {
            Ok(()) => Ok(size),
            Err(error) => Err(format!(
                "it has {} MiB and {} vCPUs now, but its kernel does not use them all: {}",
                size.memory_mib,
                size.vcpus,
                chain(&error)
            )),
        }
    }

    /// Waits until a former container of this id has gone.
    async fn arrive(&self, container: &str) {
        let mut present = self.present.subscribe();
        while !self.present.send_if_modified(|all| all.insert(container.to_owned())) {
            let _ = present.wait_for(|all| !all.contains(container)).await;
        }
    }

    /// Ends what it runs, then takes its files away.
    async fn remove(&self, member: Member) {
        let Member { container, shares } = member;
        if tokio::time::timeout(REMOVAL, self.delete(&container)).await.is_err() {
            tracing::warn!("container {container:?} is not removed from its machine in time");
        }
        let names = shares.iter().map(|share| share.name.clone()).collect();
        if let Err(error) = self.vmm.request(Request::Detach { names }, Vec::new()).await {
            tracing::warn!("the shares of container {container:?} cannot be taken back: {error}");
        }
        let path = |share: &Share| format!("{}/{}", share.kind.dir(), share.name);
        let forget = Call::Forget { shares: shares.iter().map(path).collect() };
        if let Err(error) = self.agent.order(forget).await {
            tracing::warn!("the guest keeps what it knows of shares: {}", chain(&error));
        }
        self.present.send_if_modified(|all| all.remove(&container));
    }

    async fn delete(&self, container: &str) {
        loop {
            let call = Call::Delete { container: container.to_owned() };
            match self.agent.order(call).await {
                // Its monitor died while it was being built: the agent is about to see.
                Err(AgentError::Refused(error)) if error.kind == ErrorKind::State => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(AgentError::Refused(error)) if error.kind == ErrorKind::NotFound => return,
                Err(error) => {
                    tracing::warn!("container {container:?} is not removed: {}", chain(&error));
                    return;
                }
                Ok(()) => return,
            }
        }
    }
}

async fn send<T: Serialize>(
    to: &AsyncFd<OwnedFd>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    loop {
        let mut ready = to.writable().await?;
        match send_packet(to.get_ref().as_fd(), &bytes, fds) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn receive(from: &AsyncFd<OwnedFd>) -> std::io::Result<Option<(Ask, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let mut ready = from.readable().await?;
        match receive_packet(from.get_ref().as_fd(), &mut buffer) {
            Ok(packet) => return parse(&buffer, packet),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A packet as a message; `None` at the end.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    buffer: &[u8],
    packet: Packet,
) -> std::io::Result<Option<(T, Vec<OwnedFd>)>> {
    if packet.length == 0 {
        return Ok(None);
    }
    if packet.truncated {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&buffer[..packet.length])?, packet.fds)))
}
