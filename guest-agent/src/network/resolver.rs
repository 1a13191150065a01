//! An engine's resolver, which answers at a loopback address of the host's side (docker's, at
//! 127.0.0.11): the same address and port of the guest, relayed to the host.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use protocol::network::{Resolve, resolve_header};
use protocol::vsock::{HOST_CID, RESOLVER_PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_local};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::kmsg;

/// Port of DNS.
const PORT: u16 = 53;
/// Questions and connections under way; further ones are dropped, or wait.
const ROOM: usize = 64;
/// How long a question may be under way.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between an error of the socket and the next question.
const BREATH: Duration = Duration::from_millis(5);
/// Between two attempts to accept while descriptors are short.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Resolver {
    /// Where.
    address: Ipv4Addr,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Resolver {
    /// Serves at `address`, if at any: by the former one, where that is there. A container
    /// can have the port itself, and does without then.
    pub(super) fn at(address: Option<Ipv4Addr>, former: Option<Resolver>) -> Option<Resolver> {
        let address = address?;
        let kept = former.filter(|former| former.address == address);
        kept.or_else(|| match Resolver::begin(address) {
            Ok(begun) => Some(begun),
            Err(error) => {
                kmsg::log(&format!("no resolver at {address}, port {PORT}: {error}"));
                None
            }
        })
    }

    fn begin(address: Ipv4Addr) -> std::io::Result<Resolver> {
        let at = SocketAddr::from((address, PORT));
        let datagrams = std::net::UdpSocket::bind(at)?;
        let connections = std::net::TcpListener::bind(at)?;
        datagrams.set_nonblocking(true)?;
        connections.set_nonblocking(true)?;
        let room = Arc::new(Semaphore::new(ROOM));
        let tasks = [
            spawn_local(answer(UdpSocket::from_std(datagrams)?, room.clone())),
            spawn_local(accept(TcpListener::from_std(connections)?, room)),
        ];
        Ok(Resolver { address, tasks })
    }
}

async fn answer(socket: UdpSocket, room: Arc<Semaphore>) {
    let socket = Rc::new(socket);
    let mut question = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question).await else {
            // Of a former answer that nobody wanted any more, or without end.
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (socket, question) = (socket.clone(), question[..length].to_vec());
        spawn_local(async move {
            // A question without an answer is what DNS expects of failures.
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, ask(&question)).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
}

async fn ask(question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut host = dial().await?;
    host.write_all(&resolve_header(Resolve::Datagram(question.len() as u16))).await?;
    host.write_all(question).await?;
    let length = host.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    host.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn accept(listener: TcpListener, room: Arc<Semaphore>) {
    loop {
        let place = room.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((client, _)) => {
                spawn_local(async move {
                    // Its errors are an end of stream to both sides.
                    let _ = tokio::time::timeout(PATIENCE, relay(client)).await;
                    drop(place);
                });
            }
            Err(error) => {
                kmsg::log(&format!("accepting a question to the resolver: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn relay(mut client: TcpStream) -> std::io::Result<()> {
    let mut host = dial().await?;
    host.write_all(&resolve_header(Resolve::Stream)).await?;
    copy_bidirectional(&mut client, &mut host).await.map(drop)
}

async fn dial() -> std::io::Result<VsockStream> {
    VsockStream::connect(VsockAddr::new(HOST_CID as u32, RESOLVER_PORT)).await
}
