//! A container's output in docker's json-file format: one object per line,
//! `{"log":"text\n","stream":"stdout","time":"..."}`.
//!
//! Bytes that are no UTF-8 become U+FFFD, as docker's do. A line longer than
//! [`MAX_LINE`] is cut into several entries of which only the last ends in `\n`.
//! What a full disk does not take is lost, as docker's is; the next entry that it takes
//! says how much.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Longest text of one entry in bytes.
pub const MAX_LINE: usize = 16 << 10;

/// How each entry begins: [`Entry`]'s first field.
const BEGIN: &[u8] = b"{\"log\":";

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
    /// Bytes that were lost since the last entry.
    lost: u64,
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
        Ok(LogWriter { file, stream, partial: Vec::new(), lost: 0 })
    }

    /// Takes bytes of the stream.
    ///
    /// # Errors
    /// When the file could not be written: entries were lost. It may be tried again.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut result = Ok(());
        while !bytes.is_empty() {
            let room = MAX_LINE - self.partial.len();
            let window = &bytes[..bytes.len().min(room)];
            let newline = window.iter().position(|&byte| byte == b'\n');
            let take = newline.map_or(window.len(), |at| at + 1);
            self.partial.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if newline.is_some() || self.partial.len() == MAX_LINE {
                result = self.flush().and(result);
            }
        }
        result
    }

    /// Writes out what is left of an unfinished line.
    ///
    /// # Errors
    /// As [`LogWriter::write`].
    pub fn flush(&mut self) -> io::Result<()> {
        if self.partial.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        if self.lost > 0 {
            self.entry(&format!("[bulkhead: {} bytes are missing here]\n", self.lost), &mut lines)?;
        }
        self.entry(&String::from_utf8_lossy(&self.partial), &mut lines)?;
        let written = self.file.write_all(&lines);
        self.lost = if written.is_ok() { 0 } else { self.lost + self.partial.len() as u64 };
        self.partial.clear();
        written
    }

    fn entry(&self, text: &str, lines: &mut Vec<u8>) -> io::Result<()> {
        let entry = Entry { log: text.into(), stream: self.stream.into(), time: Timestamp::now() };
        serde_json::to_writer(&mut *lines, &entry)?;
        lines.push(b'\n');
        Ok(())
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

    /// The next whole entry; `None` at the present end. What was cut short, by a crash or
    /// a full disk, is skipped.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.reader.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                return Ok(None);
            }
            // Within an entry quotes are escaped: this can only begin another one.
            let begin = self.line.windows(BEGIN.len()).rposition(|window| window == BEGIN);
            let entry = serde_json::from_slice(&self.line[begin.unwrap_or(0)..]).ok();
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

    #[test]
    fn an_entry_behind_half_of_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, r#"{"log":"half of it {\"log\": and"#).unwrap();
        LogWriter::open(&path, "stdout").unwrap().write(b"{\"log\":\"whole\"}\n").unwrap();
        let texts: Vec<_> = read_all(&path).into_iter().map(|entry| entry.log).collect();
        assert_eq!(texts, ["{\"log\":\"whole\"}\n"]);
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = LogWriter::open(Path::new("/dev/full"), "stdout").unwrap();
        let error = writer.write(b"12345678\n123\nun").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // Somebody made room.
        writer.file = File::create(&path).unwrap();
        writer.write(b"finished\nmore\n").unwrap();
        let texts: Vec<_> = read_all(&path).into_iter().map(|entry| entry.log).collect();
        assert_eq!(texts, ["[bulkhead: 13 bytes are missing here]\n", "unfinished\n", "more\n"]);
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
