//! Carries the host's streams to this process's own, each in a thread of its
//! own, so that a slow reader of one does not hold up the other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use anyhow::Result;

use super::machine::Streams;

/// What the host tells us.
pub enum Event {
    /// The command runs.
    Started,
    /// The command ended with this status.
    Exited(u8),
    /// The host could not be made ready.
    Failed(String),
    /// The control stream is at its end: QEMU is gone or about to go.
    Closed,
}

/// The threads at work.
pub struct Relay {
    /// News from the host.
    pub events: Receiver<Event>,
    outputs: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Waits until all output has been passed on; the host must have ended.
    pub fn drain(self) {
        for thread in self.outputs {
            let _ = thread.join();
        }
    }
}

/// Starts carrying.
pub fn start(streams: Streams, forward_stdin: bool) -> Result<Relay> {
    let (sender, events) = mpsc::channel();
    let Streams { stdin, stdout, stderr, control } = streams;
    thread::Builder::new().name("control".into()).spawn(move || follow(control, &sender))?;
    let outputs = vec![
        thread::Builder::new().name("stdout".into()).spawn(move || carry(stdout, io::stdout()))?,
        thread::Builder::new().name("stderr".into()).spawn(move || carry(stderr, io::stderr()))?,
    ];
    thread::Builder::new().name("stdin".into()).spawn(move || feed(stdin, forward_stdin))?;
    Ok(Relay { events, outputs })
}

fn follow(control: UnixStream, sender: &Sender<Event>) {
    for line in BufReader::new(control).lines().map_while(Result::ok) {
        let event = match line.split_once(' ') {
            None if line == "start" => Event::Started,
            Some(("exit", status)) => match status.parse() {
                Ok(status) => Event::Exited(status),
                Err(_) => Event::Failed(format!("unreadable exit status {status:?}")),
            },
            Some(("fail", reason)) => Event::Failed(reason.to_owned()),
            _ => Event::Failed(format!("unknown message {line:?}")),
        };
        if sender.send(event).is_err() {
            return;
        }
    }
    let _ = sender.send(Event::Closed);
}

/// Copies until the end, and goes on reading when nobody wants the output any
/// more, so that the host does not stand still.
fn carry(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    let mut wanted = true;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if wanted {
            wanted = to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_ok();
        }
    }
}

fn feed(mut to: UnixStream, forward: bool) {
    if forward {
        let _ = io::copy(&mut io::stdin().lock(), &mut to);
        let _ = to.shutdown(Shutdown::Write);
    }
    // Held open otherwise: the port must not look unplugged.
    loop {
        thread::park();
    }
}
