//! Frames between the guest's interface and passt: a thread each way. passt's socket is a
//! stream, in which each frame follows its length, as QEMU has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};

use super::judge::Judge;

/// Before each frame.
const LENGTH: usize = 4;
/// Largest frame: an Ethernet header and the largest packet.
pub(super) const MAX_FRAME: usize = 14 + 65535;
/// What is read from passt at once.
const CHUNK: usize = 256 << 10;

/// Both threads. Dropped, they end, and with them the interface and passt.
#[derive(Debug)]
pub(super) struct Relay {
    socket: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Relay {
    /// Begins. The threads are in the namespaces that the caller's is in.
    pub(super) fn begin(tap: OwnedFd, socket: UnixStream, judge: Judge) -> io::Result<Relay> {
        let (tap, judge) = (File::from(tap), Arc::new(Mutex::new(judge)));
        let mut relay = Relay { socket: socket.try_clone()?, threads: Vec::new() };
        let spawn = |name: &str, work: Box<dyn FnOnce() -> io::Result<()> + Send>| {
            let run = move || {
                if let Err(error) = work() {
                    tracing::warn!("the container has no network any more: {error}");
                }
            };
            std::thread::Builder::new().name(name.into()).spawn(run)
        };
        let (inward, ears) = ((socket.try_clone()?, tap.try_clone()?), judge.clone());
        let work = Box::new(move || to_guest(inward.0, &inward.1, &ears));
        relay.threads.push(spawn("passt-in", work)?);
        let work = Box::new(move || from_guest(&tap, &socket, &judge));
        relay.threads.push(spawn("passt-out", work)?);
        Ok(relay)
    }
}

fn lock(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

fn from_guest(tap: &File, socket: &UnixStream, judge: &Mutex<Judge>) -> io::Result<()> {
    let mut buffer = vec![0; LENGTH + MAX_FRAME];
    loop {
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut ready =
            [PollFd::new(tap.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), gone)];
        match poll(&mut ready, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if ready[1].revents().is_some_and(|events| events.intersects(gone)) {
            // The other thread says why.
            return Ok(());
        }
        let mut tap = tap;
        let length = match tap.read(&mut buffer[LENGTH..]) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let (before, frame) = buffer.split_at_mut(LENGTH);
        if lock(judge).passes(&frame[..length], Instant::now()) {
            before.copy_from_slice(&(length as u32).to_be_bytes());
            if send_all(socket, &buffer[..LENGTH + length]).is_err() {
                return Ok(());
            }
        }
    }
}

fn send_all(socket: &UnixStream, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn to_guest(mut socket: UnixStream, mut tap: &File, judge: &Mutex<Judge>) -> io::Result<()> {
    let mut frames = Frames::default();
    loop {
        if !frames.fill(&mut socket)? {
            // Whether that is as it should be, its owner knows.
            return Ok(());
        }
        while let Some(frame) = frames.next()? {
            lock(judge).received(frame, Instant::now());
            // A tap that takes no more, or is down, drops it as a wire would.
            let _ = tap.write(frame);
        }
    }
}

/// Frames of a stream.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    /// Where the first frame begins that was not given yet, and the end of what was read.
    at: usize,
    end: usize,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { bytes: vec![0; LENGTH + MAX_FRAME + CHUNK], at: 0, end: 0 }
    }
}

impl Frames {
    /// Reads once; false at the end. All whole frames were given.
    pub(super) fn fill(&mut self, stream: &mut impl Read) -> io::Result<bool> {
        self.bytes.copy_within(self.at..self.end, 0);
        (self.at, self.end) = (0, self.end - self.at);
        loop {
            match stream.read(&mut self.bytes[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(read) => {
                    self.end += read;
                    return Ok(read > 0);
                }
            }
        }
    }

    /// The next one that is whole.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let have = &self.bytes[self.at..self.end];
        let Some(length) = have.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other(format!("passt sent a frame of {length} bytes")));
        }
        let frame = have.get(LENGTH..LENGTH + length);
        if frame.is_some() {
            self.at += LENGTH + length;
        }
        Ok(frame)
    }
}

/// Waits until passt answers a question of ARP: it serves then. False when it ends before.
pub(super) fn answers(socket: &UnixStream, question: &[u8], limit: Duration) -> io::Result<bool> {
    let ask = [&(question.len() as u32).to_be_bytes(), question].concat();
    if send_all(socket, &ask).is_err() {
        return Ok(false);
    }
    socket.set_read_timeout(Some(limit))?;
    let (deadline, mut frames) = (Instant::now() + limit, Frames::default());
    while Instant::now() < deadline {
        match frames.fill(&mut &*socket) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
        while let Some(frame) = frames.next()? {
            // An answer of ARP.
            if frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 2]) {
                socket.set_read_timeout(None)?;
                return Ok(true);
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_stream_however_it_comes() {
        let mut stream = Vec::new();
        for length in [14usize, 0, 60, MAX_FRAME] {
            stream.extend((length as u32).to_be_bytes());
            stream.extend(vec![length as u8; length]);
        }
        for chunk in [1, 3, 100, CHUNK] {
            let mut frames = Frames::default();
            let mut lengths = Vec::new();
            for mut part in stream.chunks(chunk) {
                assert!(frames.fill(&mut part).unwrap());
                while let Some(frame) = frames.next().unwrap() {
                    lengths.push(frame.len());
                }
            }
            assert_eq!(lengths, [14, 0, 60, MAX_FRAME], "by {chunk}");
        }
        let mut frames = Frames::default();
        assert!(frames.fill(&mut &[0, 1, 0, 14][..]).unwrap());
        assert!(frames.next().is_err(), "too long");
        assert!(!frames.fill(&mut &[][..]).unwrap());
    }

    #[test]
    fn one_that_ends_does_not_answer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(!answers(&ours, &[0; 42], Duration::from_secs(5)).unwrap());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut reply = vec![0; 46];
        reply[3] = 42;
        reply[LENGTH + 12..LENGTH + 14].copy_from_slice(&[8, 6]);
        reply[LENGTH + 21] = 2;
        theirs.write_all(&reply).unwrap();
        assert!(answers(&ours, &[0; 42], Duration::from_secs(5)).unwrap());
        let late = answers(&ours, &[0; 42], Duration::from_millis(20)).unwrap_err();
        assert!([io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&late.kind()));
    }
}
