//! An engine's resolver at a loopback address of the namespace (docker's, at 127.0.0.11), for
//! a guest, whose own loopback it is not.
//!
//! Which one is what the container's resolv.conf names: the engine rewrites that file when
//! networks come and go.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::network::{RESOLVE_HEADER, Resolve, parse_resolve};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::Semaphore;

/// Port of DNS.
const PORT: u16 = 53;
/// Conversations at a time; a guest's further ones are closed.
const ROOM: usize = 64;
/// How long one may last.
const PATIENCE: Duration = Duration::from_secs(15);
/// How much of resolv.conf is read.
const LONGEST: u64 = 64 << 10;

/// The first loopback address that a resolv.conf(5) names.
pub(super) fn named_in(path: &Path) -> Option<Ipv4Addr> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    named(&text)
}

fn named(text: &str) -> Option<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.parse().ok()).flatten()
    });
    servers
        .filter_map(|server| if let IpAddr::V4(server) = server { Some(server) } else { None })
        .find(Ipv4Addr::is_loopback)
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
    fn only_a_loopback_address_is_the_namespaces() {
        let docker = "search lan\nnameserver 127.0.0.11\noptions ndots:0\n";
        assert_eq!(named(docker), Some(Ipv4Addr::new(127, 0, 0, 11)));
        assert_eq!(named("nameserver 10.0.0.1\nnameserver 127.0.0.53"), "127.0.0.53".parse().ok());
        for none in
            ["", "nameserver", "nameserver ::1", "#nameserver 127.0.0.1", "nameserver 9.9.9.9"]
        {
            assert_eq!(named(none), None, "{none}");
        }
    }
}
