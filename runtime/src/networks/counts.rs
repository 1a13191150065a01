//! What the VMM, or who stands before passt, has refused of a guest's frames, and what passed.
//! Only the supervisor can ask them; who else wants to know connects to a socket of the
//! supervisor's, and reads until its end.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use protocol::machine::{QueueCounters, Reply, Request};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::passt::Counters;
use super::{Attached, Refused};
use crate::files::FileError;
use crate::sandbox::vmm::Requests;

/// Longest that the VMM, and then the supervisor, may take.
const LIMIT: Duration = Duration::from_secs(5);
/// More than the answer ever is.
const MAX_ANSWER: u64 = 4096;

const SOCKET: &str = "counts.sock";

/// By descriptor: a socket's path is limited to 108 bytes.
fn socket_in(sandbox: &File) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", sandbox.as_raw_fd())
}

/// Frames of one direction that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// How many.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Flow {
    fn of(queues: impl Iterator<Item = QueueCounters>) -> Flow {
        queues.fold(Flow::default(), |sum, queue| Flow {
            frames: sum.frames + queue.packets,
            bytes: sum.bytes + queue.bytes,
        })
    }
}

/// What passed since the machine's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// By the container.
    pub received: Flow,
    /// By the container.
    pub sent: Flow,
}

/// What the supervisor tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    #[serde(flatten)]
    pub(super) refused: Refused,
    /// Nothing, where the VMM does not answer.
    pub(super) traffic: Option<Traffic>,
}

/// Who can be asked.
#[derive(Debug, Clone)]
pub struct Counts {
    vmm: Requests,
    passt: Option<Arc<Counters>>,
}

impl Counts {
    /// The VMM of a container that is in this network, and what stands before its passt.
    pub(crate) fn of(vmm: Requests, attached: &Attached) -> Counts {
        Counts { vmm, passt: attached.passt.as_ref().map(|passt| passt.counters.clone()) }
    }

    /// What they have refused so far. Of a VMM that does not answer nothing is known.
    pub async fn refused(&self) -> Refused {
        self.now().await.refused
    }

    async fn now(&self) -> Told {
        let before_passt = self.passt.as_ref().map(|counters| counters.now());
        let Told { refused, traffic } = self.by_vmm().await;
        Told { refused: refused.and(before_passt.unwrap_or_default()), traffic }
    }

    async fn by_vmm(&self) -> Told {
        let asked = self.vmm.request(Request::NetCounters, Vec::new());
        let Ok(Ok(Reply::NetCounters(all))) = tokio::time::timeout(LIMIT, asked).await else {
            return Told::default();
        };
        let pairs = || all.iter().flat_map(|net| &net.pairs);
        let sent = || pairs().map(|pair| pair.from_guest);
        let received = pairs().map(|pair| pair.to_guest);
        let traffic = Traffic { received: Flow::of(received), sent: Flow::of(sent()) };
        let refused = Refused {
            guard: Some(sent().map(|queue| queue.guard).sum()),
            malformed: Some(sent().map(|queue| queue.malformed).sum()),
            ..Refused::default()
        };
        Told { refused, traffic: Some(traffic) }
    }

    /// Tells whoever connects to a socket in the sandbox's directory, until it is dropped.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn tell(self, sandbox: &Path) -> Result<Telling, FileError> {
        let bind = || UnixListener::bind(socket_in(&File::open(sandbox)?));
        let listener = bind().map_err(FileError::access(sandbox.join(SOCKET)))?;
        Ok(Telling(tokio::spawn(async move {
            // One after the other: each has a bound.
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = serde_json::to_vec(&self.now().await).unwrap_or_default();
                // Who has gone has no more questions.
                let _ = tokio::time::timeout(LIMIT, stream.write_all(&answer)).await;
            }
        })))
    }
}

/// The supervisor's socket.
#[derive(Debug)]
pub struct Telling(JoinHandle<()>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Never waits: a supervisor that is stopped takes no questions.
fn connect(sandbox: &File) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(socket_in(sandbox).as_str())?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(|_| Errno::last())?;
    Ok(stream)
}

/// What the supervisor of a sandbox says, if there is one.
pub(super) fn ask(sandbox: &Path) -> Option<Told> {
    let stream = connect(&File::open(sandbox).ok()?).ok()?;
    stream.set_read_timeout(Some(2 * LIMIT)).ok()?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).ok()?;
    serde_json::from_slice(&answer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_supervisor_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ask(dir.path()), None);
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let answer = |bytes: &'static [u8]| {
            let listener = listener.try_clone().unwrap();
            let serve = std::thread::spawn(move || {
                use std::io::Write;
                listener.accept().unwrap().0.write_all(bytes)
            });
            let answer = ask(dir.path());
            let _ = serve.join();
            answer
        };
        assert_eq!(answer(b"no JSON"), None);
        assert_eq!(answer(b""), None);
        // Of a supervisor that tells less, and of one that tells more.
        let known = answer(br#"{"guard":7,"malformed":null,"host":1}"#).unwrap();
        let refused = &known.refused;
        assert_eq!((refused.guard, refused.malformed, refused.host), (Some(7), None, 1));
        assert_eq!(known.traffic, None);
        let known = answer(br#"{"traffic":{"sent":{"bytes":5}},"later":1}"#).unwrap();
        assert_eq!(known.traffic.unwrap().sent, Flow { frames: 0, bytes: 5 });
        assert_eq!(known.refused, Refused::default());
    }
}
