//! Programs of the host that do their work and end: run with bounds on time and output.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Most that a program may write to its standard output, in bytes, unless it is told otherwise.
pub const MAX_OUTPUT: u64 = 4 << 20;
/// How often an end is looked for once the output is closed.
const LOOK: Duration = Duration::from_millis(2);

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
}

/// Runs `command` with `input`. Its standard error goes to `log`. Whatever it has
/// started itself is killed with it when the time is up.
///
/// # Errors
/// When it cannot be started, takes longer than `limit`, or writes too much.
pub fn run(command: Command, input: &[u8], log: File, limit: Duration) -> io::Result<Ended> {
    run_up_to(MAX_OUTPUT, command, input, log, limit)
}

/// As [`run`], of a program that may write `most` bytes to its standard output.
///
/// # Errors
/// As [`run`].
pub fn run_up_to(
    most: u64,
    mut command: Command,
    input: &[u8],
    log: File,
    limit: Duration,
) -> io::Result<Ended> {
    let deadline = Instant::now() + limit;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
    let mut child = command.spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let input = input.to_vec();
    // One that does not read all of it says itself what is wrong.
    std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    let output = collect(stdout, most);
    let ended = wait(&mut child, &output, most, deadline);
    if ended.is_err() {
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        let _ = child.wait();
    }
    ended
}

fn collect(stream: Option<impl Read + Send + 'static>, most: u64) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = stream.map_or(Ok(0), |it| it.take(most + 1).read_to_end(&mut bytes));
        let _ = sender.send(result.map(|_| bytes));
    });
    receiver
}

fn wait(
    child: &mut Child,
    output: &Receiver<io::Result<Vec<u8>>>,
    most: u64,
    deadline: Instant,
) -> io::Result<Ended> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it did not end in time");
    let left = deadline.saturating_duration_since(Instant::now());
    let stdout = output.recv_timeout(left).map_err(|_| late())??;
    if stdout.len() as u64 > most {
        return Err(io::Error::other("it wrote too much"));
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ended { status, stdout });
        }
        if Instant::now() > deadline {
            return Err(late());
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &[u8], limit: Duration) -> io::Result<Ended> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, input, tempfile::tempfile()?, limit)
    }

    #[test]
    fn input_output_and_status() {
        let limit = Duration::from_secs(20);
        let ended = shell("cat; exit 3", b"through", limit).unwrap();
        assert_eq!((ended.stdout.as_slice(), ended.status.code()), (&b"through"[..], Some(3)));
        // One that does not read is no error.
        assert!(shell("exit 0", &[b'x'; 1 << 20], limit).unwrap().status.success());
    }

    #[test]
    fn neither_time_nor_output_is_without_bound() {
        let start = Instant::now();
        let error = shell("sleep 100 & sleep 100", b"", Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
        let error = shell("cat /dev/zero", b"", Duration::from_secs(20)).unwrap_err();
        assert!(error.to_string().contains("too much"), "{error}");
    }
}
