//! What the VMM, or who stands before passt, has refused of a guest's frames. Only the
//! supervisor can ask them; who else
//! wants to know connects to a socket of the supervisor's, and reads until its end.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protocol::machine::{Reply, Request};
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

fn socket(sandbox: &Path) -> PathBuf {
    sandbox.join("counts.sock")
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
    pub async fn now(&self) -> Refused {
        let before_passt = self.passt.as_ref().map(|counters| counters.now());
        self.by_vmm().await.and(before_passt.unwrap_or_default())
    }

    async fn by_vmm(&self) -> Refused {
        let asked = self.vmm.request(Request::NetCounters, Vec::new());
        let Ok(Ok(Reply::NetCounters(all))) = tokio::time::timeout(LIMIT, asked).await else {
            return Refused::default();
        };
        let sent = || all.iter().flat_map(|net| &net.pairs).map(|pair| pair.from_guest);
        Refused {
            guard: Some(sent().map(|queue| queue.guard).sum()),
            malformed: Some(sent().map(|queue| queue.malformed).sum()),
            ..Refused::default()
        }
    }

    /// Tells whoever connects to a socket in the sandbox's directory, until it is dropped.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn tell(self, sandbox: &Path) -> Result<Telling, FileError> {
        let path = socket(sandbox);
        let listener = UnixListener::bind(&path).map_err(FileError::access(path))?;
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

/// What the supervisor of a sandbox says, if there is one.
pub(super) fn ask(sandbox: &Path) -> Option<Refused> {
    let stream = UnixStream::connect(socket(sandbox)).ok()?;
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
        let listener = std::os::unix::net::UnixListener::bind(socket(dir.path())).unwrap();
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
        let known = answer(br#"{"guard":7,"malformed":null,"host":1}"#).unwrap();
        assert_eq!((known.guard, known.malformed, known.host), (Some(7), None, 1));
    }
}
