//! The line `CONNECT <port>\n` that a host process begins with
//! ([`protocol::vsock`]).

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};
use protocol::vsock::{MAX_LINE, parse_connect};

/// A host connection that has not said where it wants to go.
pub struct Greeting {
    /// The host's end.
    pub stream: UnixStream,
    line: Vec<u8>,
}

/// What became of a greeting.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// The newline has not come yet.
    More,
    /// The whole line was read and nothing after it.
    Port(u32),
    /// Nonsense, or the host is gone.
    Bad,
}

impl Greeting {
    /// Begins to read the line.
    pub fn new(stream: UnixStream) -> Greeting {
        Greeting { stream, line: Vec::new() }
    }

    /// Reads what is there, up to the newline and not a byte further: what
    /// follows is data for the guest.
    pub fn advance(&mut self) -> Progress {
        let fd = self.stream.as_raw_fd();
        loop {
            let mut seen = [0; MAX_LINE];
            let room = MAX_LINE - self.line.len();
            let count = match recv(fd, &mut seen[..room], MsgFlags::MSG_PEEK) {
                Ok(0) => return Progress::Bad,
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => return Progress::More,
                Err(_) => return Progress::Bad,
            };
            let end = seen[..count].iter().position(|&byte| byte == b'\n');
            let take = end.map_or(count, |at| at + 1);
            // These bytes are there: it was just peeked, and nobody else reads.
            if recv(fd, &mut seen[..take], MsgFlags::empty()) != Ok(take) {
                return Progress::Bad;
            }
            if let Some(end) = end {
                self.line.extend_from_slice(&seen[..end]);
                return parse_connect(&self.line).map_or(Progress::Bad, Progress::Port);
            }
            self.line.extend_from_slice(&seen[..take]);
            if self.line.len() >= MAX_LINE {
                return Progress::Bad;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (UnixStream, Greeting) {
        let (host, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (host, Greeting::new(ours))
    }

    #[test]
    fn the_line_may_come_in_pieces_and_data_stays() {
        let (mut host, mut greeting) = pair();
        assert_eq!(greeting.advance(), Progress::More);
        for byte in b"CONNECT 10" {
            host.write_all(&[*byte]).unwrap();
            assert_eq!(greeting.advance(), Progress::More);
        }
        host.write_all(b"24\nrest").unwrap();
        assert_eq!(greeting.advance(), Progress::Port(1024));
        let mut rest = [0; 10];
        assert_eq!(greeting.stream.read(&mut rest).unwrap(), 4);
        assert_eq!(&rest[..4], b"rest");
    }

    #[test]
    fn nonsense_is_bad() {
        for bad in [&b"GET / HTTP/1.1\n"[..], &[b'x'; 200], b"\n"] {
            let (mut host, mut greeting) = pair();
            host.write_all(bad).unwrap();
            assert_eq!(greeting.advance(), Progress::Bad);
        }
        let (host, mut greeting) = pair();
        drop(host);
        assert_eq!(greeting.advance(), Progress::Bad);
    }
}
