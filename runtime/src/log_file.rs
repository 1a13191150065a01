//! A container's output in docker's json-file format: one object per line,
//! `{"log":"text\n","stream":"stdout","time":"..."}`.
//!
//! Bytes that are no UTF-8 become U+FFFD, as docker's do. A line longer than
//! [`MAX_LINE`] is cut into several entries of which only the last ends in `\n`.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Longest text of one entry in bytes.
pub const MAX_LINE: usize = 16 << 10;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The text, with its newline unless the line was cut.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was read.
    pub time: Timestamp,
}

/// Cuts the bytes of one stream into entries.
pub struct LogWriter {
    file: File,
    stream: &'static str,
    partial: Vec<u8>,
}

impl LogWriter {
    /// Appends to the log at `path`. Writers of several streams may share a
    /// file: each entry is one write to a descriptor in append mode.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, stream: &'static str) -> io::Result<LogWriter> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        Ok(LogWriter { file, stream, partial: Vec::new() })
    }

    /// Takes bytes of the stream.
    ///
    /// # Errors
    /// When the file cannot be written; what was given is then lost.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            let newline = window.iter().position(|&byte| byte == b'\n');
            let take = newline.map_or(window.len(), |at| at + 1);
            self.partial.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if newline.is_some() || self.partial.len() == MAX_LINE {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes out what is left of an unfinished line.
    ///
    /// # Errors
    /// As [`LogWriter::write`].
    pub fn flush(&mut self) -> io::Result<()> {
        if self.partial.is_empty() {
            return Ok(());
        }
        let entry = Entry {
            log: String::from_utf8_lossy(&self.partial).into_owned(),
            stream: self.stream.into(),
            time: Timestamp::now(),
        };
        self.partial.clear();
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// Reads entries; may be called again after its end, when more was written.
pub struct LogReader<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> LogReader<R> {
    /// Reads from `reader`.
    pub fn new(reader: R) -> LogReader<R> {
        LogReader { reader, line: Vec::new() }
    }

    /// The next whole entry; `None` at the present end. A line that is none
    /// (cut short by a crash) is skipped.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                return Ok(None);
            }
            let entry = serde_json::from_slice(&self.line).ok();
            self.line.clear();
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(path: &Path) -> Vec<Entry> {
        let mut reader = LogReader::new(io::BufReader::new(File::open(path).unwrap()));
        std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
    }

    #[test]
    fn lines_become_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = LogWriter::open(&path, "stderr").unwrap();
        for part in [&b"one\ntw"[..], b"o\n", b"\xff!", b""] {
            writer.write(part).unwrap();
        }
        drop(writer);
        let entries = read_all(&path);
        let texts: Vec<_> = entries.iter().map(|entry| entry.log.as_str()).collect();
        assert_eq!(texts, ["one\n", "two\n", "\u{fffd}!"]);
        assert!(entries.iter().all(|entry| entry.stream == "stderr"));
    }

    #[test]
    fn a_torn_line_is_skipped_and_the_end_may_move() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "{\"log\":\"x\n").unwrap();
        let mut reader = LogReader::new(io::BufReader::new(File::open(&path).unwrap()));
        assert_eq!(reader.next_entry().unwrap(), None);
        LogWriter::open(&path, "stdout").unwrap().write(b"later\n").unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().log, "later\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_text_is_lost(parts in prop::collection::vec("[a-z\n]{0,40000}", 0..4)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut writer = LogWriter::open(&path, "stdout").unwrap();
            for part in &parts {
                writer.write(part.as_bytes()).unwrap();
            }
            drop(writer);
            let text: String = read_all(&path).into_iter().map(|entry| entry.log).collect();
            prop_assert_eq!(text, parts.concat());
        }
    }
}
