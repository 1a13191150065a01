//! Words on standard error.

use std::io::Write;

/// Writes a line to standard error. Where nobody reads it, or it is a file on a disk that
/// is full, the line is lost and nothing else: `eprintln!` would panic, and a container end
/// with its supervisor.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
