//! A program under a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use nix::pty::{Winsize, openpty};

use crate::program::{eventually, limit, wait};

/// A running program and the master side of its terminal.
pub struct Terminal {
    child: Child,
    master: File,
    output: Arc<Mutex<Vec<u8>>>,
}

nix::ioctl_write_ptr_bad!(
    /// TIOCSWINSZ.
    set_size,
    libc::TIOCSWINSZ,
    Winsize
);

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts `command` with a controlling terminal of `rows` by `columns`.
    #[allow(unsafe_code)]
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
        use std::os::unix::process::CommandExt;
        let pty = openpty(&size(rows, columns), None).expect("a pseudo-terminal");
        let slave = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        command.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(pty.slave);
        // SAFETY: setsid and ioctl are async-signal-safe system calls.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = command.spawn().expect("the program starts");
        // Its copies of the slave side must not keep the terminal open.
        drop(command);
        let master = File::from(pty.master);
        let output = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (master.try_clone().expect("a descriptor"), output.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock().expect("no panic").extend_from_slice(&buffer[..count]);
            }
        });
        Terminal { child, master, output }
    }

    /// Types `text`.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal is open");
    }

    /// Changes the size of the window.
    #[allow(unsafe_code)]
    pub fn resize(&self, rows: u16, columns: u16) {
        use std::os::fd::AsRawFd;
        // SAFETY: the structure lives over the call.
        unsafe { set_size(self.master.as_raw_fd(), &size(rows, columns)) }.expect("a terminal");
    }

    /// What was printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("no panic")).into_owned()
    }

    /// Waits until `text` was printed.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        let deadline = Instant::now() + limit();
        while !self.output().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in: {}", self.output());
            thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Waits for the end; the status as shells count it.
    pub fn end(mut self) -> (i32, String) {
        let status =
            wait(&mut self.child, Instant::now() + limit(), "the program under a terminal");
        let output = self.output.clone();
        let mut before = 0;
        eventually("the terminal's last output", || {
            let now = output.lock().expect("no panic").len();
            std::mem::replace(&mut before, now) == now
        });
        (status, self.output())
    }
}
