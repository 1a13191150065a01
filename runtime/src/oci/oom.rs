//! A kill by the guest's OOM killer, told in the way in which engines hear of one.
//!
//! conmon and containerd's runc shim watch `memory.events` of the container's cgroup on the
//! host. The guest's kills are not counted there, so that one of the host's is made: of a
//! process that is there for nothing else, when all others of the container have ended but
//! this one. With cgroup v1 a smaller limit kills nobody (it is refused), and nothing is told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::OciError;

/// The hidden verb by which this program becomes the [`victim`].
pub const VICTIM: &str = "oom-victim";

/// Has the host's kernel kill a victim in the cgroup `path`, in which this process is.
///
/// # Errors
/// Names the file.
pub(super) fn tell(path: &Path) -> Result<(), OciError> {
    let file = path.join("memory.max");
    if !file.exists() {
        return Ok(());
    }
    let program = "/proc/self/exe";
    let mut command = Command::new(program);
    command.arg(VICTIM).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut victim = command.spawn().map_err(OciError::io(program))?;
    let mut ready = [0; 1];
    let spared = victim
        .stdout
        .take()
        .map_or(Ok(()), |mut stdout| stdout.read_exact(&mut ready))
        .map_err(OciError::io(program))
        .and_then(|()| squeeze(&file));
    // Its input ends with this; whether it was killed or not, it ends.
    drop(victim.stdin.take());
    let status = victim.wait().map_err(OciError::io(program))?;
    spared?;
    if status.signal() != Some(libc::SIGKILL) {
        tracing::warn!("the guest's OOM kill could not be told by {}", file.display());
    }
    Ok(())
}

/// Takes all memory away for a moment. A write of less than is in use ends once nobody is
/// left to kill, which this process sees to be (mm/memcontrol.c, `memory_max_write`).
fn squeeze(file: &Path) -> Result<(), OciError> {
    let own = Path::new("/proc/self/oom_score_adj");
    std::fs::write(own, "-1000").map_err(OciError::io(own))?;
    let before = std::fs::read_to_string(file).map_err(OciError::io(file))?;
    // Opened before: that takes memory.
    let mut open = File::options().write(true).open(file).map_err(OciError::io(file))?;
    let squeezed = open.write_all(b"0");
    open.write_all(before.trim_end().as_bytes()).map_err(OciError::io(file))?;
    squeezed.map_err(OciError::io(file))
}

/// Waits to be killed, or for the end of its input.
///
/// # Errors
/// When it cannot offer itself.
pub fn victim() -> std::io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    let mut stdout = std::io::stdout();
    stdout.write_all(b"!")?;
    stdout.flush()?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}
