//! `run` in the foreground: this process does for the container what an engine does
//! otherwise. It passes signals on, has the terminal's other end, and ends as the
//! container's process did.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use super::{Bundle, OciError};
use crate::streams::forward::Caught;
use crate::streams::terminal::RawTerminal;
use crate::sys::descriptors;
use crate::sys::pidfd::PidFd;

/// A container that this process waits for.
pub struct Foreground {
    process: PidFd,
    master: Option<OwnedFd>,
}

impl Foreground {
    /// When the process of `bundle` wants a terminal: both ends of a console socket,
    /// the monitor's first.
    ///
    /// # Errors
    /// When the bundle cannot be read.
    pub fn terminal(bundle: &Path) -> Result<Option<(UnixStream, UnixStream)>, OciError> {
        let bundle = Bundle::load(bundle)?;
        let wants = bundle.spec.process().as_ref().and_then(|process| process.terminal());
        if wants != Some(true) {
            return Ok(None);
        }
        UnixStream::pair().map(Some).map_err(OciError::io("a socket pair"))
    }

    /// Takes up our child `pid`, and the terminal that it sent.
    ///
    /// # Errors
    /// When it sent none.
    pub fn new(pid: i32, console: Option<UnixStream>) -> Result<Foreground, OciError> {
        let process =
            PidFd::open(pid).map_err(|errno| OciError::io("the monitor")(errno.into()))?;
        let master = match console {
            None => None,
            Some(socket) => {
                let mut name = [0; 256];
                let packet = descriptors::receive_packet(socket.as_fd(), &mut name)
                    .map_err(|errno| OciError::io("the console socket")(errno.into()))?;
                packet.fds.into_iter().next()
            }
        };
        Ok(Foreground { process, master })
    }

    /// Waits for its end; its exit code as shells count.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(self) -> Result<u8, OciError> {
        let event_loop = super::event_loop()?;
        let code = event_loop.block_on(self.attend());
        event_loop.shutdown_background();
        code
    }

    async fn attend(self) -> Result<u8, OciError> {
        let Foreground { process, master } = self;
        let mut signals = Caught::begin().map_err(OciError::io("signals"))?;
        let process = Arc::new(process);
        let watched =
            descriptors::watch_process(process.clone()).map_err(OciError::io("the monitor"))?;
        let copied = master.map(Terminal::begin).transpose()?;
        let forward = async {
            loop {
                let signal = signals.next().await;
                // An error: it ends this moment.
                let _ = process.signal(signal);
            }
        };
        let resize = async {
            match &copied {
                Some(terminal) => terminal.follow_size().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = watched.readable() => {}
            () = forward => {}
            () = resize => {}
        }
        let code =
            process.wait_code().map_err(|errno| OciError::io("the monitor")(errno.into()))?;
        if let Some(terminal) = copied {
            terminal.finish();
        }
        Ok(code)
    }
}

/// The container's terminal, copied to and from ours.
struct Terminal {
    master: OwnedFd,
    ours: Option<RawTerminal>,
    output: std::thread::JoinHandle<()>,
}

impl Terminal {
    fn begin(master: OwnedFd) -> Result<Terminal, OciError> {
        let failed = || OciError::io("the terminal");
        let copy = || master.try_clone().map(File::from).map_err(failed());
        let own = |number| descriptors::own_stdio(number).map_err(failed());
        // Without a terminal of ours, its output is copied all the same.
        let ours = RawTerminal::enter(own(0)?).ok();
        let (mut from, mut to) = (copy()?, File::from(own(1)?));
        let output = std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            // EIO: the other end was closed.
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
        let (mut from, mut to) = (File::from(own(0)?), copy()?);
        // Ends with this process: nobody can wake one that waits for a person.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
        Ok(Terminal { master, ours, output })
    }

    async fn follow_size(&self) {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut changes) = signal(SignalKind::window_change()) else {
            return std::future::pending().await;
        };
        loop {
            if let Some(size) = self.ours.as_ref().and_then(RawTerminal::size) {
                let _ = descriptors::set_window_size(self.master.as_fd(), size);
            }
            if changes.recv().await.is_none() {
                return std::future::pending().await;
            }
        }
    }

    fn finish(self) {
        // The monitor has closed its end, so that the last byte is on its way.
        let _ = self.output.join();
    }
}
