//! How a VMM process ended, told so that a person knows what to do.

use std::fmt;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use protocol::machine::ExitReason;

/// How a VMM process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmEnd {
    /// What it said itself.
    pub reason: Option<ExitReason>,
    /// How the process ended.
    pub status: Option<WaitStatus>,
    /// Last lines of its standard error.
    pub stderr: String,
}

impl VmmEnd {
    /// Whether the guest asked for it.
    pub fn is_power_off(&self) -> bool {
        matches!(self.reason, Some(ExitReason::PowerOff))
    }
}

impl fmt::Display for VmmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reason, self.status) {
            // It may quote the guest's console.
            (Some(reason), _) => f.write_str(&tame(&reason.to_string()))?,
            (None, Some(WaitStatus::Signaled(_, signal, _))) => {
                write!(f, "the VMM was killed by {signal}")?;
                match signal {
                    Signal::SIGKILL => f.write_str(
                        " (by hand, or by the host's OOM killer: see `dmesg` for the latter)",
                    )?,
                    Signal::SIGSYS => {
                        f.write_str(" (a system call that its seccomp filter forbids)")?;
                    }
                    _ => {}
                }
            }
            (None, Some(WaitStatus::Exited(_, code))) => {
                write!(f, "the VMM ended with status {code} without a reason")?;
            }
            (None, _) => f.write_str("the VMM ended without a reason")?,
        }
        f.write_str(&quoted("; it said:", &self.stderr))
    }
}

/// `text` as a quotation below `title`, or nothing when there is none. Bytes
/// that could move the reader's terminal are left out.
pub fn quoted(title: &str, text: &str) -> String {
    let text = tame(text);
    let body: String = text.trim_end().lines().map(|line| format!("\n  | {line}")).collect();
    if text.trim().is_empty() { String::new() } else { format!("{title}{body}") }
}

/// `text` of a guest or VMM without characters that could move the reader's
/// terminal; lines stay lines.
pub fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    fn end(reason: Option<ExitReason>, status: Option<WaitStatus>, stderr: &str) -> String {
        VmmEnd { reason, status, stderr: stderr.into() }.to_string()
    }

    #[test]
    fn the_reason_comes_first_and_then_what_was_said() {
        let pid = Pid::from_raw(1);
        let killed = WaitStatus::Signaled(pid, Signal::SIGKILL, false);
        assert!(end(None, Some(killed), "").contains("killed by SIGKILL"));
        let filtered = WaitStatus::Signaled(pid, Signal::SIGSYS, true);
        assert!(end(None, Some(filtered), "").contains("seccomp"));
        let exited = WaitStatus::Exited(pid, 126);
        let text = end(None, Some(exited), "cannot execute\u{1b}[2J\n");
        assert!(text.ends_with("status 126 without a reason; it said:\n  | cannot execute[2J"));
        let text = end(Some(ExitReason::PowerOff), Some(exited), "");
        assert_eq!(text, "the guest powered off");
        let panic = ExitReason::GuestPanic { console: "a\u{1b}[2Jb\nc".into() };
        assert!(end(Some(panic), None, "").ends_with("a[2Jb\nc"));
    }
}
