//! Starting a supervisor in the background, and learning whether it could.
//!
//! ```text
//! caller                              supervisor (same program, own session)
//!   | spawn, stdout = pipe ------------> |
//!   | <--- one line of JSON -----------  | started, or the error
//!   |      end of file                   | stdout becomes /dev/null
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::ContainerError;

/// Longest line that is read.
const MAX_LINE: u64 = 64 << 10;

/// The line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Started,
    Failed { message: String, code: u8 },
}

/// Runs this program with `args` in the background and waits for its report.
/// What it writes to stderr later goes to `log`.
///
/// # Errors
/// What it reports, or that it died.
pub fn spawn(args: &[&str], log: &Path) -> Result<(), ContainerError> {
    let mut options = File::options();
    let stderr =
        options.create(true).append(true).mode(0o600).open(log).map_err(ContainerError::io(log))?;
    // The file that runs, even if another has taken its place meanwhile.
    let program = "/proc/self/exe";
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(ContainerError::io(program))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        use std::io::Read;
        // What is no text is no report, which is told below.
        let _ = BufReader::new(stdout.take(MAX_LINE)).read_line(&mut line);
    }
    match serde_json::from_str(&line) {
        Ok(Report::Started) => Ok(()),
        Ok(Report::Failed { message, code }) => {
            let _ = child.wait();
            Err(ContainerError::Remote { message, code })
        }
        Err(_) => {
            let how = child.wait().map(|status| status.to_string()).unwrap_or_default();
            let message =
                format!("the supervisor died while starting ({how}); see {}", log.display());
            Err(ContainerError::Remote { message, code: 125 })
        }
    }
}

/// The supervisor's end: leaves the caller's session.
#[derive(Debug)]
pub struct Reporter(());

impl Reporter {
    /// Becomes a background process. Call it before anything else.
    pub fn detach() -> Reporter {
        // What the caller had open (a lock, a pipe of its CI) must not stay open
        // for as long as the container lives.
        crate::sys::descriptors::close_from(3);
        // EPERM: it leads a session already.
        let _ = nix::unistd::setsid();
        // Executed by /proc/self/exe it would be called "exe".
        let _ = nix::sys::prctl::set_name(c"bulkhead");
        // No directory shall be busy because of us.
        let _ = std::env::set_current_dir("/");
        Reporter(())
    }

    /// The container runs.
    pub fn started(self) {
        send(&Report::Started);
    }

    /// It does not.
    pub fn failed(self, message: String, code: u8) {
        send(&Report::Failed { message, code });
    }
}

fn send(report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    let mut stdout = std::io::stdout();
    // A caller that is gone does not stop the container.
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}
