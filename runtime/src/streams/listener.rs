//! A listening socket of the host whose connections go to a process of the guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::agent::Stream;

use super::Opener;
use super::pump::Pump;
use crate::sys::descriptors::accept;

/// Most connections at a time; the next waits in the socket's backlog.
const CONNECTIONS: usize = 512;
/// Between two looks for a place, or after another process was faster.
const PAUSE: Duration = Duration::from_millis(20);

type Connections = Arc<Mutex<Vec<[Pump; 2]>>>;

/// A thread that accepts. Dropped, it is stopped.
pub(super) struct Listener {
    stop: Arc<EventFd>,
    connections: Connections,
}

impl Listener {
    /// Must be called within the event loop.
    pub(super) fn begin(opener: Opener, stream: Stream, socket: OwnedFd) -> io::Result<Listener> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let connections = Connections::default();
        let (its_stop, its_connections) = (stop.clone(), connections.clone());
        let event_loop = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("listener".into()).spawn(move || {
            while wait(&socket, &its_stop) {
                if !places(&its_connections) {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                let connection = match accept(socket.as_fd()) {
                    Ok(connection) => connection,
                    // It was shut down: poll finds it readable for ever.
                    Err(Errno::EINVAL) => break,
                    // Another process was faster, or descriptors are short.
                    Err(_) => {
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                };
                let begun = event_loop
                    .block_on(opener.open(stream))
                    .map_err(|error| error.to_string())
                    .and_then(|guest| {
                        Pump::both_ways(connection, guest).map_err(|error| error.to_string())
                    });
                match begun {
                    Ok(pumps) => lock(&its_connections).push(pumps),
                    // The client sees a connection that was closed.
                    Err(error) => tracing::warn!("a connection did not reach the process: {error}"),
                }
            }
        })?;
        Ok(Listener { stop, connections })
    }

    /// Stops it; what is left of its connections.
    pub(super) fn end(self) -> Vec<[Pump; 2]> {
        let _ = self.stop.write(1);
        std::mem::take(&mut *lock(&self.connections))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
    }
}

fn lock(connections: &Connections) -> std::sync::MutexGuard<'_, Vec<[Pump; 2]>> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what has ended; whether there is a place for one more.
fn places(connections: &Connections) -> bool {
    let mut connections = lock(connections);
    connections.retain(|pumps| !pumps.iter().all(Pump::is_finished));
    connections.len() < CONNECTIONS
}

fn wait(socket: &OwnedFd, stop: &EventFd) -> bool {
    loop {
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return false,
            Ok(_) => return !fds[1].any().unwrap_or(true),
        }
    }
}
