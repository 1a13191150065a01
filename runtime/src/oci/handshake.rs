//! What the verb `create` and the monitor that it starts say to each other, in
//! lines of JSON over a socket pair: see the drawing in the module above.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::sandbox::LaunchTimings;

/// Longest line.
const MAX_LINE: u64 = 256 << 10;

/// Longest text of a failure, in bytes.
const MAX_TEXT: usize = 32 << 10;

/// From the monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It has opened what the rules of its cgroup may forbid; the cgroup is to be made.
    Opened,
    /// It is in its cgroup and network namespace; hooks may look at it.
    Namespaces,
    /// The container's process waits for `start`, or runs (of an exec).
    Ready(Box<Built>),
    /// It could not be made.
    Failed(String),
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Built {
    /// How long it took.
    pub timings: LaunchTimings,
    /// Pid of the container's process in the guest.
    pub guest_pid: i32,
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel {
    reader: BufReader<UnixStream>,
}

impl Channel {
    /// Speaks over `socket`.
    pub fn new(socket: UnixStream) -> Channel {
        Channel { reader: BufReader::new(socket) }
    }

    /// Says something. A peer that is gone is no error: it will be noticed.
    pub fn say(&mut self, word: &Word) {
        // Part of a failure may be a guest's words, and nobody reads on until the end.
        let cut = match word {
            Word::Failed(text) if text.len() > MAX_TEXT => {
                Some(Word::Failed(text.chars().take(MAX_TEXT / 4).collect()))
            }
            _ => None,
        };
        let mut line = serde_json::to_vec(cut.as_ref().unwrap_or(word)).unwrap_or_default();
        line.push(b'\n');
        let _ = self.reader.get_mut().write_all(&line);
    }

    /// What the other end says; `None` at its end.
    pub fn hear(&mut self) -> Option<Word> {
        let mut line = String::new();
        (&mut self.reader).take(MAX_LINE).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Lets the monitor go on.
    pub fn go(&mut self) {
        let _ = self.reader.get_mut().write_all(b"!");
    }

    /// Waits for that; false when it will not come.
    pub fn await_go(&mut self) -> bool {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_and_the_end_is_seen() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut monitor, mut verb) = (Channel::new(a), Channel::new(b));
        monitor.say(&Word::Namespaces);
        assert_eq!(verb.hear(), Some(Word::Namespaces));
        verb.go();
        assert!(monitor.await_go());
        monitor.say(&Word::Failed("why".into()));
        drop(monitor);
        assert_eq!(verb.hear(), Some(Word::Failed("why".into())));
        assert_eq!(verb.hear(), None);
    }
}
