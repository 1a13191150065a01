//! The VMM process: started, asked, waited for, killed.
//!
//! ```text
//! VmmHandle                       task
//!   request() --- command ----->    sends packets, matches replies by id
//!   <-------- reply -----------     events to whoever launched
//!   ended()  <---- watch -------    pidfd readable: reaps, gathers the reason
//!   drop: SIGKILL and reap, at once
//! ```
//!
//! The VMM is the wall's near side and is not trusted either: a packet that
//! cannot be understood gets it killed.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use protocol::machine::{Command, Event, ExitReason, FromVmm, MAX_PACKET, Reply, Request, Timings};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::tail::Tail;
use super::{LaunchError, SharedEnd, VmmEnd};
use crate::sys::descriptors::{receive_packet, send_packet, watch_fd, watch_process};
use crate::sys::pidfd::PidFd;
use crate::sys::process::{Held, Program, spawn_isolated};

/// Time that a VMM has to end after it said so or closed its socket.
const LAST_BREATH: Duration = Duration::from_secs(3);
/// Time that its standard error may stay open after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a request to the VMM failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It refused.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// It is gone.
    #[error("the VMM is gone")]
    Gone,
}

/// What the VMM reports beside replies.
#[derive(Debug)]
pub enum VmmEvent {
    /// The vCPUs run.
    Running(Timings),
    /// The guest connected to a port of the host.
    GuestConnect {
        /// Which.
        port: u32,
        /// Our end.
        stream: UnixStream,
    },
}

type Outcome = Result<Reply, ControlError>;

struct Outgoing {
    request: Request,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Outcome>,
}

/// A reply that is under way.
pub struct Pending(oneshot::Receiver<Outcome>);

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let outcome = Pin::new(&mut self.0).poll(context);
        outcome.map(|outcome| outcome.unwrap_or(Err(ControlError::Gone)))
    }
}

/// A VMM process that waits to be let go.
pub(super) struct HeldVmm {
    pub(super) process: Held,
    control: OwnedFd,
    stderr: Tail,
}

/// Starts the VMM in its namespaces, held before its first instruction.
pub(super) fn spawn(
    executable: &OwnedFd,
    cgroup: Option<BorrowedFd>,
) -> Result<HeldVmm, LaunchError> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (control, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(LaunchError::Spawn)?;
    let pipe = |source| LaunchError::Namespace { what: "make the pipes", source };
    let (stderr, stderr_write) = Tail::pipe().map_err(pipe)?;
    let program = Program {
        executable: executable.as_fd(),
        name: c"bulkhead-vmm",
        control: theirs.as_fd(),
        stderr: stderr_write.as_fd(),
        cgroup,
    };
    let process = spawn_isolated(&program).map_err(LaunchError::Spawn)?;
    Ok(HeldVmm { process, control, stderr })
}

impl HeldVmm {
    /// Lets it execute. Beside the handle: its events, and where the guest's
    /// console is to be written.
    pub(super) fn go(self) -> Result<(VmmHandle, mpsc::Receiver<VmmEvent>, OwnedFd), LaunchError> {
        let HeldVmm { process, control, stderr } = self;
        let namespace = |what| move |source| LaunchError::Namespace { what, source };
        let (pidfd, pid) = process.go().map_err(namespace("start the program"))?;
        let pidfd = Arc::new(pidfd);
        let (commands, inbox) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::channel(16);
        let (end_sender, end) = watch::channel(None);
        let (console, console_write) = Tail::pipe().map_err(namespace("make the console"))?;
        // From here on the handle's drop ends the process.
        let handle = VmmHandle { pid, pidfd: pidfd.clone(), commands, console, end };
        let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(control.as_fd(), nonblocking).map_err(LaunchError::Spawn)?;
        let task = Task {
            control: watch_fd(control).map_err(namespace("watch the control socket"))?,
            pidfd: watch_process(pidfd).map_err(namespace("watch the process"))?,
            inbox,
            events: event_sender,
            waiting: HashMap::new(),
            next_id: 0,
            reason: None,
            stderr,
        };
        tokio::spawn(task.run(end_sender));
        Ok((handle, events, console_write))
    }
}

/// A running VMM.
#[derive(Debug)]
pub struct VmmHandle {
    pid: i32,
    pidfd: Arc<PidFd>,
    commands: mpsc::UnboundedSender<Outgoing>,
    console: Tail,
    end: watch::Receiver<Option<SharedEnd>>,
}

/// The way to a VMM.
#[derive(Debug, Clone)]
pub(crate) struct Requests(mpsc::UnboundedSender<Outgoing>);

impl Requests {
    /// As [`VmmHandle::request`].
    pub(crate) fn request(&self, request: Request, fds: Vec<OwnedFd>) -> Pending {
        let (reply, pending) = oneshot::channel();
        // A task that has ended drops the slot, which the caller sees as Gone.
        let _ = self.0.send(Outgoing { request, fds, reply });
        Pending(pending)
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.request.fmt(f)
    }
}

impl VmmHandle {
    /// Number of the process on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a request; the descriptors are closed here once it is sent.
    pub fn request(&self, request: Request, fds: Vec<OwnedFd>) -> Pending {
        self.requests().request(request, fds)
    }

    /// For others who ask it.
    pub(crate) fn requests(&self) -> Requests {
        Requests(self.commands.clone())
    }

    /// Waits until the process has ended and was reaped.
    pub async fn ended(&self) -> SharedEnd {
        let mut end = self.end.clone();
        let lost = || VmmEnd { reason: None, status: None, stderr: String::new() };
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(|| Arc::new(lost())),
            Err(_) => Arc::new(lost()),
        }
    }

    /// When the first line of the guest's user space was on its console.
    pub fn first_line(&self) -> Option<std::time::Instant> {
        self.console.first()
    }

    /// Last lines of the guest's console.
    pub fn console_tail(&self) -> String {
        self.console.text()
    }

    /// Kills the process.
    pub fn kill(&self) {
        let _ = self.pidfd.signal(libc::SIGKILL);
    }
}

impl Drop for VmmHandle {
    fn drop(&mut self) {
        self.kill();
        // ECHILD: the task has reaped it.
        let _ = self.pidfd.wait();
    }
}

struct Task {
    control: AsyncFd<OwnedFd>,
    pidfd: AsyncFd<Arc<PidFd>>,
    inbox: mpsc::UnboundedReceiver<Outgoing>,
    events: mpsc::Sender<VmmEvent>,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    next_id: u64,
    reason: Option<ExitReason>,
    stderr: Tail,
}

/// What a packet means for the conversation.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    End,
}

impl Task {
    async fn run(mut self, end: watch::Sender<Option<SharedEnd>>) {
        let mut buffer = vec![0; MAX_PACKET];
        self.converse(&mut buffer).await;
        if tokio::time::timeout(LAST_BREATH, self.pidfd.readable()).await.is_err() {
            let _ = self.pidfd.get_ref().signal(libc::SIGKILL);
            let _ = self.pidfd.readable().await;
        }
        // ECHILD: the handle was dropped and has reaped it.
        let status = self.pidfd.get_ref().try_wait().ok().flatten();
        // What it said before it died may still be in the socket.
        while self.reason.is_none() && self.receive(&mut buffer) == Ok(Next::Continue) {}
        let stderr = self.stderr.finish(LAST_WORDS).await;
        self.waiting.clear();
        let _ = end.send(Some(Arc::new(VmmEnd { reason: self.reason, status, stderr })));
    }

    /// Sends and receives until the VMM ends or says that it will.
    async fn converse(&mut self, buffer: &mut [u8]) {
        loop {
            tokio::select! {
                outgoing = self.inbox.recv() => match outgoing {
                    Some(outgoing) => self.send(outgoing).await,
                    // The handle is gone, and with it the process.
                    None => return,
                },
                ready = self.control.readable() => {
                    let Ok(mut ready) = ready else { return };
                    ready.clear_ready_matching(tokio::io::Ready::READABLE);
                    loop {
                        match self.receive(buffer) {
                            Ok(Next::Continue) => {}
                            Ok(Next::End) => return,
                            Err(Errno::EINTR) => {}
                            Err(Errno::EAGAIN) => break,
                            Err(_) => return,
                        }
                        // A guest that keeps it busy must not keep the others waiting.
                        tokio::task::yield_now().await;
                    }
                }
                _ = self.pidfd.readable() => return,
            }
        }
    }

    async fn send(&mut self, outgoing: Outgoing) {
        let Outgoing { request, fds, reply } = outgoing;
        self.next_id += 1;
        let command = Command { id: self.next_id, request };
        let bytes = match serde_json::to_vec(&command) {
            Ok(bytes) if bytes.len() <= MAX_PACKET => bytes,
            _ => {
                let text = format!("the request is larger than {MAX_PACKET} bytes");
                let _ = reply.send(Err(ControlError::Refused(text)));
                return;
            }
        };
        self.waiting.insert(self.next_id, reply);
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        loop {
            let Ok(mut ready) = self.control.writable().await else { break };
            match send_packet(self.control.get_ref().as_fd(), &bytes, &borrowed) {
                Ok(()) => return,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        // The end of the process, seen next, tells why.
        self.waiting.remove(&self.next_id);
    }

    /// Handles one packet, if there is one.
    fn receive(&mut self, buffer: &mut [u8]) -> nix::Result<Next> {
        let packet = receive_packet(self.control.get_ref().as_fd(), buffer)?;
        if packet.length == 0 {
            return Ok(Next::End);
        }
        let message = serde_json::from_slice::<FromVmm>(&buffer[..packet.length]);
        let (Ok(message), false) = (message, packet.truncated) else {
            self.reason = Some(ExitReason::Internal {
                thread: "the VMM's control channel".into(),
                message: "it sent a message that cannot be understood, and was killed".into(),
            });
            let _ = self.pidfd.get_ref().signal(libc::SIGKILL);
            return Ok(Next::End);
        };
        Ok(self.handle(message, packet.fds))
    }

    fn handle(&mut self, message: FromVmm, fds: Vec<OwnedFd>) -> Next {
        match message {
            FromVmm::Reply { id, reply } => {
                if let Some(slot) = self.waiting.remove(&id) {
                    let _ = slot.send(reply.map_err(ControlError::Refused));
                }
            }
            FromVmm::Event(Event::Running(timings)) => {
                let _ = self.events.try_send(VmmEvent::Running(timings));
            }
            FromVmm::Event(Event::GuestConnect { port }) => {
                // Nobody reading, or too many: the guest sees a closed stream.
                if let Some(stream) = fds.into_iter().next().and_then(to_stream) {
                    let _ = self.events.try_send(VmmEvent::GuestConnect { port, stream });
                }
            }
            FromVmm::Event(Event::Exited(reason)) => {
                self.reason = Some(reason);
                return Next::End;
            }
        }
        Next::Continue
    }
}

fn to_stream(fd: OwnedFd) -> Option<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true).ok()?;
    UnixStream::from_std(stream).ok()
}

#[cfg(test)]
mod tests;
