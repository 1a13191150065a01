//! One direction of one stream: a thread that copies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use super::Output;

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;
/// How often a pump's progress is looked at while its end is awaited.
const LOOK: Duration = Duration::from_millis(50);

/// How long a stopped thread may take to end.
const JOIN: Duration = Duration::from_millis(500);

/// Most bytes that come after the process's end: what pipes and sockets hold is far
/// less, and a guest could go on for ever.
const LEFT_OVER: u64 = 64 << 20;

/// How long the guest may take to send them: one byte now and then would be for ever.
/// The time of the host's reader does not count.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Progress {
    moved: AtomicU64,
    /// The thread waits for the host's reader.
    writing: AtomicBool,
}

/// A copying thread. Dropped, it is stopped.
pub(super) struct Pump {
    pub(super) name: &'static str,
    stop: Arc<EventFd>,
    socket: UnixStream,
    progress: Arc<Progress>,
    done: oneshot::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pump {
    /// From a descriptor of the host to the guest.
    pub(super) fn input(from: OwnedFd, to: UnixStream) -> io::Result<Pump> {
        Pump::spawn("stdin", to, move |stop, mut socket, progress| {
            copy_input(&File::from(from), &mut socket, stop, progress);
        })
    }

    /// From the guest to the host.
    pub(super) fn output(name: &'static str, from: UnixStream, to: Output) -> io::Result<Pump> {
        Pump::spawn(name, from, move |_, mut socket, progress| {
            copy_output(&mut socket, to, progress);
        })
    }

    /// Between a connected socket of the host and a stream of the guest that goes both
    /// ways.
    pub(super) fn both_ways(host: OwnedFd, guest: UnixStream) -> io::Result<[Pump; 2]> {
        let input = Pump::input(host.try_clone()?, guest.try_clone()?)?;
        let output = Pump::spawn("a socket", guest, move |_, mut socket, progress| {
            let copy = host.try_clone().ok();
            copy_output(&mut socket, Output { fd: Some(host), log: None }, progress);
            // The other half is the input's.
            if let Some(copy) = copy {
                use std::os::fd::AsRawFd;
                let _ =
                    nix::sys::socket::shutdown(copy.as_raw_fd(), nix::sys::socket::Shutdown::Write);
            }
        })?;
        Ok([input, output])
    }

    /// Stops it without waiting for its thread.
    pub(super) fn abandon(mut self) {
        self.thread = None;
    }

    /// Whether it has come to its end.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    fn spawn<F>(name: &'static str, socket: UnixStream, copy: F) -> io::Result<Pump>
    where
        F: FnOnce(&EventFd, UnixStream, &Progress) + Send + 'static,
    {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let progress = Arc::new(Progress::default());
        let (finished, done) = oneshot::channel();
        let (its_stop, its_progress) = (stop.clone(), progress.clone());
        let its_socket = socket.try_clone()?;
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            copy(&its_stop, its_socket, &its_progress);
            let _ = finished.send(());
        })?;
        Ok(Pump { name, stop, socket, progress, done, thread: Some(thread) })
    }

    /// Waits for the end of an output, for as long as it moves; false when it
    /// does not end.
    pub(super) async fn drain(&mut self, grace: Duration) -> bool {
        let mut seen = self.progress.moved.load(Ordering::Relaxed);
        let most = seen.saturating_add(LEFT_OVER);
        let mut guests = Duration::ZERO;
        let mut since = Instant::now();
        while tokio::time::timeout(LOOK, &mut self.done).await.is_err() {
            let moved = self.progress.moved.load(Ordering::Relaxed);
            let writing = self.progress.writing.load(Ordering::Relaxed);
            if !writing {
                guests += LOOK;
            }
            if moved > most || guests > LONGEST {
                return false;
            }
            if moved != seen || writing {
                (seen, since) = (moved, Instant::now());
            } else if since.elapsed() > grace {
                return false;
            }
        }
        true
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        // Wakes a thread that waits for the guest.
        let _ = self.socket.shutdown(Shutdown::Both);
        // One that waits for the host's reader or writer cannot be woken; it
        // ends with our process, and owns nothing that anybody waits for.
        let Some(thread) = self.thread.take() else { return };
        let deadline = Instant::now() + JOIN;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

fn copy_input(from: &File, socket: &mut UnixStream, stop: &EventFd, progress: &Progress) {
    let mut buffer = vec![0; CHUNK];
    while wait_input(from, socket, stop) {
        match (&mut &*from).read(&mut buffer) {
            Ok(0) => {
                let _ = socket.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) => {
                // The process closed its stdin, or ended: nobody wants the rest.
                if socket.write_all(&buffer[..length]).is_err() {
                    return;
                }
                progress.moved.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if is_transient(&error) => {}
            // EIO of a terminal that hung up, for one: the end of input.
            Err(_) => {
                let _ = socket.shutdown(Shutdown::Write);
                return;
            }
        }
    }
}

/// Waits for input; false when the pump must stop or the guest has gone.
fn wait_input(from: &File, socket: &UnixStream, stop: &EventFd) -> bool {
    loop {
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            // No event asked for: a hang-up and an error are always told.
            PollFd::new(socket.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return false,
            Ok(_) => {}
        }
        let ready = |fd: &PollFd| fd.any().unwrap_or(true);
        if ready(&fds[1]) || ready(&fds[2]) {
            return false;
        }
        if ready(&fds[0]) {
            return true;
        }
    }
}

fn copy_output(socket: &mut UnixStream, mut to: Output, progress: &Progress) {
    let mut buffer = vec![0; CHUNK];
    let mut file = to.fd.take().map(File::from);
    let mut log_failed = false;
    loop {
        let length = match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if let Some(host) = &mut file {
            progress.writing.store(true, Ordering::Relaxed);
            let written = write_all(host, &buffer[..length]);
            progress.writing.store(false, Ordering::Relaxed);
            if written.is_err() {
                file = None;
                if to.log.is_none() {
                    // The process shall get EPIPE.
                    let _ = socket.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
        if let Some(log) = &mut to.log
            && let Err(error) = log.write(&buffer[..length])
            // Once: the disk that is full may be where warnings go as well.
            && !std::mem::replace(&mut log_failed, true)
        {
            tracing::warn!("cannot write the container's log, parts of it are lost: {error}");
        }
        progress.moved.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// Writes all, also to a descriptor that somebody made non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::NONE);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
