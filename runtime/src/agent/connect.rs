//! Reaching a port of the guest through the sandbox's Unix socket.

use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::vsock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Name of the socket in the sandbox's directory.
pub const SOCKET: &str = "vsock.sock";

/// Longest wait for the VMM and the guest's kernel to answer.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Why a guest port cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The sandbox is not there any more, or not yet.
    #[error("cannot connect to the machine's socket {}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection ended without a grant.
    #[error("the machine refused the connection to its port {0}")]
    Refused(u32),
    /// No grant in time.
    #[error("the machine did not answer a connection to its port {0} within 30 s")]
    TimedOut(u32),
}

/// Opens a byte stream to `port` of the guest whose sandbox lies in `sandbox`.
///
/// # Errors
/// As [`ConnectError`].
pub async fn connect_port(sandbox: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    let path = sandbox.join(SOCKET);
    let mut stream = open(sandbox).await.map_err(|source| ConnectError::Socket { path, source })?;
    match tokio::time::timeout(HANDSHAKE, handshake(&mut stream, port)).await {
        Err(_) => Err(ConnectError::TimedOut(port)),
        Ok(Ok(true)) => Ok(stream),
        Ok(_) => Err(ConnectError::Refused(port)),
    }
}

/// Connects by way of the directory's descriptor: the limit of 108 bytes for a
/// socket's path does not hold then.
async fn open(sandbox: &Path) -> std::io::Result<UnixStream> {
    let mut options = std::fs::File::options();
    let directory = options.read(true).custom_flags(libc::O_DIRECTORY).open(sandbox)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())).await
}

/// Speaks the handshake. Reads byte by byte, since what follows the line
/// belongs to the stream.
async fn handshake(stream: &mut UnixStream, port: u32) -> std::io::Result<bool> {
    stream.write_all(vsock::connect_line(port).as_bytes()).await?;
    let mut line = Vec::with_capacity(vsock::MAX_LINE);
    while line.len() < vsock::MAX_LINE {
        match stream.read_u8().await? {
            b'\n' => return Ok(vsock::is_ok(&line)),
            byte => line.push(byte),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;
    use tokio::net::UnixListener;

    async fn peer_says(reply: &'static [u8]) -> Result<Vec<u8>, ConnectError> {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let peer = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            let (read, mut write) = stream.split();
            tokio::io::BufReader::new(read).read_line(&mut line).await.unwrap();
            assert_eq!(vsock::parse_connect(line.trim_end().as_bytes()), Some(1025));
            write.write_all(reply).await.unwrap();
        });
        let mut stream = connect_port(dir.path(), 1025).await?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        peer.await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn bytes_after_the_grant_belong_to_the_stream() {
        assert_eq!(peer_says(b"OK 1\nfirst\n").await.unwrap(), b"first\n");
    }

    #[tokio::test]
    async fn anything_else_is_a_refusal() {
        for reply in [&b""[..], b"NO\n", b"OK without an end ................................"] {
            assert!(matches!(peer_says(reply).await, Err(ConnectError::Refused(1025))));
        }
    }

    #[tokio::test]
    async fn an_absent_sandbox_is_named() {
        let error = connect_port(Path::new("/no/such"), 1).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/vsock.sock"));
    }
}
