//! An engine's resolver at a loopback address of the namespace (docker's, at 127.0.0.11), for
//! a guest, whose own loopback it is not. Other addresses are not relayed.
//!
//! Whether there is one is what the container's resolv.conf tells: the engine rewrites that
//! file when networks come and go.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::network::{RESOLVE_HEADER, Resolve, parse_resolve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::Semaphore;

/// Where docker's resolver answers, the only one of a namespace. Others at loopback addresses
/// are the container's own.
const DOCKERS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Port of DNS.
const PORT: u16 = 53;
/// Conversations at a time; a guest's further ones are closed.
const ROOM: usize = 64;
/// How long one may last.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of resolv.conf is read.
const LONGEST: u64 = 64 << 10;

/// The relayed address that a resolv.conf(5) names. The container may have put
/// something else into the file's place, where a directory is shared with it: nothing that
/// leads elsewhere, or makes this thread wait, is read.
pub(super) fn named_in(path: &Path) -> Option<Ipv4Addr> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    named(&text)
}

fn named(text: &str) -> Option<Ipv4Addr> {
    let mut servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    servers.find(|server| *server == DOCKERS)
}

/// Serves a guest that asks.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    path: Arc<Path>,
    room: Arc<Semaphore>,
}

impl Resolver {
    /// For a container whose resolv.conf is at `path`.
    pub(crate) fn new(path: &Path) -> Resolver {
        Resolver { path: path.into(), room: Arc::new(Semaphore::new(ROOM)) }
    }

    /// Serves a connection of the guest's, in a task of its own.
    pub(crate) fn serve(&self, guest: UnixStream) {
        let Ok(place) = self.room.clone().try_acquire_owned() else { return };
        let path = self.path.clone();
        tokio::spawn(async move {
            if let Some(address) = named_in(&path) {
                // A failure is the end of the stream, and no answer.
                let _ = tokio::time::timeout(PATIENCE, converse(guest, address)).await;
            }
            drop(place);
        });
    }
}

async fn converse(mut guest: UnixStream, address: Ipv4Addr) -> std::io::Result<()> {
    let mut header = [0; RESOLVE_HEADER];
    guest.read_exact(&mut header).await?;
    match parse_resolve(header) {
        Some(Resolve::Datagram(length)) => {
            let mut bytes = vec![0; usize::from(length)];
            guest.read_exact(&mut bytes).await?;
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect((address, PORT)).await?;
            socket.send(&bytes).await?;
            bytes.resize(usize::from(u16::MAX), 0);
            let length = socket.recv(&mut bytes).await?;
            guest.write_all(&(length as u16).to_be_bytes()).await?;
            guest.write_all(&bytes[..length]).await
        }
        Some(Resolve::Stream) => {
            let mut server = TcpStream::connect((address, PORT)).await?;
            copy_bidirectional(&mut guest, &mut server).await.map(drop)
        }
        None => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dockers_resolver_is_the_namespaces() {
        let docker = "search lan\nnameserver 127.0.0.11\noptions ndots:0\n";
        assert_eq!(named(docker), Some(DOCKERS));
        assert_eq!(named("nameserver 10.0.0.1\nnameserver 127.0.0.11"), Some(DOCKERS));
        for none in
            ["", "nameserver", "nameserver ::1", "#nameserver 127.0.0.11", "nameserver 127.0.0.53"]
        {
            assert_eq!(named(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link, pipe] = ["file", "link", "pipe"].map(|name| directory.path().join(name));
        std::fs::write(&file, "nameserver 127.0.0.11").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(named_in(&file), Some(DOCKERS));
        assert_eq!((named_in(&link), named_in(&pipe)), (None, None));
        assert_eq!(named_in(directory.path()), None);
    }
}
