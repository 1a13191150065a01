//! The kernel's log: the machine's only voice before there is a connection, and the
//! only one that knows why a process had to die.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Writes one line at a level that the console prints (`quiet` shows 0..=3).
/// Where there is no log (early, or in tests) it is lost.
pub fn log(text: &str) {
    let line = format!("<2>bulkhead-agent: {}\n", text.replace('\n', " | "));
    if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record.
        let _ = kmsg.write_all(line.as_bytes());
    }
}

/// Most records that are read at once.
const RECORDS: usize = 100_000;

/// What the kernel said when it last killed a process for want of memory, see
/// mm/oom_kill.c and mm/memcontrol.c: how much was used by whom.
pub fn about_oom() -> String {
    let mut options = std::fs::OpenOptions::new();
    let Ok(mut log) = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg") else {
        return "the kernel's log cannot be read".into();
    };
    let mut about = Vec::new();
    let mut record = [0; 8192];
    for _ in 0..RECORDS {
        match log.read(&mut record) {
            Ok(length) => collect_oom(&mut about, &String::from_utf8_lossy(&record[..length])),
            // Records that were overwritten before they were read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(_) => break,
        }
    }
    if about.is_empty() { "the kernel said nothing about it".into() } else { about.join("; ") }
}

/// Takes up what `record` (see Documentation/ABI/testing/dev-kmsg) says about an
/// OOM kill; a new one begins with "... invoked oom-killer".
fn collect_oom(about: &mut Vec<String>, record: &str) {
    let Some((_, text)) = record.split_once(';') else { return };
    let line = text.lines().next().unwrap_or_default();
    if line.contains("invoked oom-killer") {
        about.clear();
    } else if !line.starts_with("memory: usage")
        && !line.starts_with("Memory cgroup out of memory")
        && !line.starts_with("Out of memory")
    {
        return;
    }
    about.push(line.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_kill_is_told() {
        let mut about = Vec::new();
        for text in [
            "a invoked oom-killer: x",
            "memory: usage 1kB",
            "noise",
            "b invoked oom-killer",
            "Out of memory: Killed process 7 (b)",
        ] {
            collect_oom(&mut about, &format!("6,1,2,-;{text}\n SUBSYSTEM=x\n"));
        }
        assert_eq!(about, ["b invoked oom-killer", "Out of memory: Killed process 7 (b)"]);
        collect_oom(&mut about, "no record");
        assert_eq!(about.len(), 2);
    }
}
