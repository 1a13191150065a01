//! The early console: as much of a 16550 as `earlyprintk=ttyS0,keep` needs.
//!
//! It always has room for a byte and never has one to read, and raises no
//! interrupt. The last [`TAIL_BYTES`] of text are kept for the message about a
//! panic. All text may go to a descriptor as well; that never blocks a vCPU and
//! is bounded in rate: what does not fit is dropped and counted.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::bus::BusDevice;

/// First I/O port of ttyS0.
pub const CONSOLE_PORT: u16 = 0x3f8;
/// Number of its ports.
pub const CONSOLE_PORTS: u64 = 8;
/// Text that is kept.
pub const TAIL_BYTES: usize = 4096;
/// Longest piece of a line that is held back until its end comes.
const LINE_BYTES: usize = 256;
/// Output to the descriptor: what may come at once, and per second.
const BURST_BYTES: f64 = 256.0 * 1024.0;
const BYTES_PER_SECOND: f64 = 16.0 * 1024.0;

// Registers of the 16550, by offset.
const DATA: u64 = 0;
const LINE_CONTROL: u64 = 3;
const LINE_STATUS: u64 = 5;
const SCRATCH: u64 = 7;
/// Line control: offsets 0 and 1 are the divisor latch.
const LCR_DLAB: u8 = 0x80;
/// Line status: transmitter holding register and transmitter empty.
const LSR_IDLE: u8 = 0x60;

/// The early console.
pub struct Console(Mutex<Inner>);

struct Inner {
    line_control: u8,
    scratch: u8,
    tail: VecDeque<u8>,
    output: Option<Output>,
}

impl Console {
    /// A console that copies its text to `output`, if given, whose open file
    /// description is made non-blocking.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn new(output: Option<OwnedFd>) -> nix::Result<Console> {
        let output = output.map(Output::new).transpose()?;
        let tail = VecDeque::with_capacity(TAIL_BYTES);
        Ok(Console(Mutex::new(Inner { line_control: 0, scratch: 0, tail, output })))
    }

    /// The last text, safe to print: invalid UTF-8 replaced, control characters
    /// other than the line feed escaped.
    pub fn tail(&self) -> String {
        let mut inner = self.lock();
        let mut text = String::with_capacity(inner.tail.len());
        for character in String::from_utf8_lossy(inner.tail.make_contiguous()).chars() {
            match character {
                '\r' => {}
                '\n' => text.push('\n'),
                control if control.is_control() => text.extend(control.escape_default()),
                other => text.push(other),
            }
        }
        text
    }

    /// Writes out a line that has not ended yet.
    pub fn flush(&self) {
        if let Some(output) = &mut self.lock().output {
            output.flush();
        }
    }

    /// Bytes that were not written to the descriptor.
    pub fn dropped(&self) -> u64 {
        self.lock().output.as_ref().map_or(0, |output| output.dropped)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while locked")
    }
}

impl BusDevice for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let [byte] = data else { return };
        let inner = self.lock();
        *byte = match offset {
            2 => 0x01, // no interrupt pending
            LINE_CONTROL => inner.line_control,
            LINE_STATUS => LSR_IDLE,
            6 => 0xb0, // carrier, data set ready, clear to send
            SCRATCH => inner.scratch,
            _ => 0,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        match (offset, data) {
            (DATA, _) if inner.line_control & LCR_DLAB == 0 => {
                data.iter().for_each(|&byte| inner.put(byte));
            }
            (LINE_CONTROL, &[value]) => inner.line_control = value,
            (SCRATCH, &[value]) => inner.scratch = value,
            _ => {}
        }
    }
}

impl Inner {
    fn put(&mut self, byte: u8) {
        if self.tail.len() == TAIL_BYTES {
            self.tail.pop_front();
        }
        self.tail.push_back(byte);
        if let Some(output) = &mut self.output {
            output.put(byte);
        }
    }
}

/// A descriptor that takes text by the line, at a bounded rate.
struct Output {
    file: File,
    line: Vec<u8>,
    allowance: f64,
    refilled: Instant,
    dropped: u64,
}

impl Output {
    fn new(fd: OwnedFd) -> nix::Result<Output> {
        let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Output {
            file: fd.into(),
            line: Vec::with_capacity(LINE_BYTES),
            allowance: BURST_BYTES,
            refilled: Instant::now(),
            dropped: 0,
        })
    }

    fn put(&mut self, byte: u8) {
        self.line.push(byte);
        if byte == b'\n' || self.line.len() >= LINE_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let now = Instant::now();
        let earned = now.duration_since(self.refilled).as_secs_f64() * BYTES_PER_SECOND;
        self.allowance = (self.allowance + earned).min(BURST_BYTES);
        self.refilled = now;
        let wanted = self.line.len();
        let written = if wanted as f64 <= self.allowance {
            self.file.write(&self.line).unwrap_or(0)
        } else {
            0
        };
        self.allowance -= written as f64;
        self.dropped += (wanted - written) as u64;
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn print(console: &Console, text: &[u8]) {
        text.iter().for_each(|&byte| console.write(DATA, &[byte]));
    }

    #[test]
    fn the_tail_is_bounded_and_printable() {
        let console = Console::new(None).unwrap();
        for number in 0..2000 {
            print(&console, format!("line {number}\r\n").as_bytes());
        }
        print(&console, b"\x1b[31mpanic\xff");
        let tail = console.tail();
        assert!(tail.ends_with("line 1999\n\\u{1b}[31mpanic\u{fffd}"), "{tail}");
        assert!(tail.len() <= TAIL_BYTES && !tail.contains("line 1\n"));
    }

    #[test]
    fn the_divisor_is_not_text() {
        let console = Console::new(None).unwrap();
        console.write(LINE_CONTROL, &[0x83]);
        console.write(DATA, &[12]);
        console.write(LINE_CONTROL, &[0x03]);
        print(&console, b"x");
        assert_eq!(console.tail(), "x");
        let mut status = [0];
        console.read(LINE_STATUS, &mut status);
        assert_eq!(status[0] & 0x20, 0x20, "ready for the next byte");
    }

    #[test]
    fn lines_reach_the_descriptor() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let console = Console::new(Some(writer)).unwrap();
        print(&console, b"hello\nwor");
        console.flush();
        drop(console);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\nwor");
    }

    #[test]
    fn a_full_pipe_does_not_block() {
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let console = Console::new(Some(writer)).unwrap();
        let line = [[b'x'; 255].as_slice(), b"\n"].concat();
        for _ in 0..2048 {
            print(&console, &line);
        }
        assert!(console.dropped() >= (2048 * 256) - (64 << 10) - 4096);
    }

    #[test]
    fn the_rate_is_bounded() {
        let console = Console::new(Some(tempfile::tempfile().unwrap().into())).unwrap();
        let line = [[b'x'; 255].as_slice(), b"\n"].concat();
        for _ in 0..4096 {
            print(&console, &line);
        }
        assert!(console.dropped() > 256 << 10);
    }
}
