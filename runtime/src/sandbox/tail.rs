//! The last bytes of what another process writes to a pipe.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use nix::fcntl::OFlag;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;

/// What the first line of the guest's user space ends with.
const FIRST_LINE: &[u8] = protocol::agent::FIRST_LINE.as_bytes();
/// How many bytes are kept.
const KEPT: usize = 8 << 10;

/// Reads a pipe to its end and remembers the last bytes.
#[derive(Debug)]
pub(super) struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    first: Arc<OnceLock<Instant>>,
    task: JoinHandle<()>,
}

impl Tail {
    /// The reading end, and the end to write to.
    pub(super) fn pipe() -> std::io::Result<(Tail, OwnedFd)> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut receiver = Receiver::from_owned_fd(read)?;
        let bytes = Arc::new(Mutex::new(VecDeque::new()));
        let kept = bytes.clone();
        let first = Arc::new(OnceLock::new());
        let came = first.clone();
        let task = tokio::spawn(async move {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = receiver.read(&mut chunk).await {
                let now = Instant::now();
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&chunk[..length]);
                // What the kernel complains of before is not that line.
                let fresh = (length + FIRST_LINE.len()).min(kept.len());
                if came.get().is_none() && contains(&mut kept, fresh) {
                    let _ = came.set(now);
                }
                let excess = kept.len().saturating_sub(KEPT);
                kept.drain(..excess);
            }
        });
        Ok((Tail { bytes, first, task }, write))
    }

    /// What was read last.
    pub(super) fn text(&self) -> String {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(bytes.make_contiguous()).into_owned()
    }

    /// When the first line of the guest's user space came.
    pub(super) fn first(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    /// Waits for the end of the pipe, at most `limit`.
    pub(super) async fn finish(&mut self, limit: std::time::Duration) -> String {
        let _ = tokio::time::timeout(limit, &mut self.task).await;
        self.text()
    }
}

/// Whether the last `fresh` bytes hold the first line.
fn contains(kept: &mut VecDeque<u8>, fresh: usize) -> bool {
    let bytes = kept.make_contiguous();
    bytes[bytes.len() - fresh..].windows(FIRST_LINE.len()).any(|window| window == FIRST_LINE)
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn the_first_line_is_user_spaces() {
        let (mut tail, write) = Tail::pipe().unwrap();
        let mut write = std::fs::File::from(write);
        for piece in ["[0.1] Spectre\n[0.2] bulkhead-agent: fir", "st lin"] {
            write.write_all(piece.as_bytes()).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            assert_eq!(tail.first(), None);
        }
        write.write_all(b"e\n").unwrap();
        drop(write);
        tail.finish(std::time::Duration::from_secs(10)).await;
        assert!(tail.first().is_some());
    }

    #[tokio::test]
    async fn the_last_bytes_are_kept() {
        let (mut tail, write) = Tail::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let mut write = std::fs::File::from(write);
            write.write_all(&vec![b'x'; 100_000]).unwrap();
            write.write_all(b"the end").unwrap();
        });
        let text = tail.finish(std::time::Duration::from_secs(10)).await;
        writer.join().unwrap();
        assert_eq!(text.len(), KEPT);
        assert!(text.ends_with("xthe end"));
    }
}
