//! The machine's only voice before there is a connection: the kernel's log.

use std::io::Write;

/// Writes one line at a level that the console prints (`quiet` shows 0..=3).
/// Where there is no log (early, or in tests) it is lost.
pub fn log(text: &str) {
    let line = format!("<2>bulkhead-agent: {}\n", text.replace('\n', " | "));
    if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record.
        let _ = kmsg.write_all(line.as_bytes());
    }
}
