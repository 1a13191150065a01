//! Programs run with a time limit.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// Longest that any command of a case may take. The test host is emulated: a
/// start takes seconds there that takes a tenth of one elsewhere. `BULKHEAD_LIMIT` is
/// another number of seconds, for cases that are asked to do more than usual.
pub fn limit() -> Duration {
    let seconds = std::env::var("BULKHEAD_LIMIT").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(180))
}

/// Seconds that a guest may take to answer, for the same reason: ten that start
/// at once there need a minute.
const BOOT_TIMEOUT: &str = "150";

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code, or 128 + signal.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
    /// The command line, for messages.
    pub command: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the case unless the status is `status`.
    #[track_caller]
    pub fn expect(self, status: i32) -> Finished {
        assert_eq!(
            self.status,
            status,
            "status of `{}`; stdout: {}; stderr: {}",
            self.command,
            self.text(),
            self.stderr
        );
        self
    }

    /// Fails the case unless it succeeded; gives the trimmed standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        self.expect(0).text().trim_end().to_owned()
    }

    /// Fails the case unless the program failed with `status` and one message on
    /// standard error that contains all of `words`.
    #[track_caller]
    pub fn fails_saying(self, status: i32, words: &[&str]) -> Finished {
        let finished = self.expect(status);
        let messages = finished.stderr.matches("bulkhead: error: ").count();
        assert_eq!(messages, 1, "one message: {}", finished.stderr);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "`{}` should say {word:?}; it said: {}",
                finished.command,
                finished.stderr
            );
        }
        finished
    }
}

/// `bulkhead` with `arguments`.
#[track_caller]
pub fn bulkhead(arguments: &[&str]) -> Finished {
    let mut command = Command::new("bulkhead");
    command.args(arguments);
    run(command)
}

/// Standard output of `SCRIPT` run by the shell of a new small container.
#[track_caller]
pub fn guest(options: &[&str], script: &str) -> Finished {
    let command = [crate::small(), "sh", "-c", script];
    bulkhead(&[&["run", "--rm"], options, &command].concat())
}

/// A shell script on the host.
#[track_caller]
pub fn script(text: &str) -> Finished {
    let mut command = Command::new("bash");
    command.args(["-c", text]);
    run(command)
}

/// Runs `command` without standard input.
#[track_caller]
pub fn run(command: Command) -> Finished {
    feed(command, Box::new(std::io::empty()))
}

/// Runs `command` with `input` as its standard input.
///
/// # Panics
/// When it cannot be started or takes longer than [`limit`].
#[track_caller]
pub fn feed(mut command: Command, mut input: Box<dyn Read + Send>) -> Finished {
    let start = Instant::now();
    let name = format!("{command:?}").replace('"', "");
    let variable = "BULKHEAD_BOOT_TIMEOUT";
    if command.get_envs().all(|(name, _)| name != variable) {
        command.env(variable, BOOT_TIMEOUT);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    // A program may end before it has read all: not the feeder's concern.
    thread::spawn(move || drop(std::io::copy(&mut input, &mut stdin).and_then(|_| stdin.flush())));
    let stdout = collect(child.stdout.take().expect("piped"));
    let stderr = collect(child.stderr.take().expect("piped"));
    let status = wait(&mut child, start + limit(), &name);
    let gather = |receiver: std::sync::mpsc::Receiver<Vec<u8>>, what: &str| {
        receiver
            .recv_timeout(Duration::from_secs(30))
            .unwrap_or_else(|_| panic!("{name} has ended but somebody still holds its {what} open"))
    };
    Finished {
        status,
        stdout: gather(stdout, "standard output"),
        stderr: String::from_utf8_lossy(&gather(stderr, "standard error")).into_owned(),
        took: start.elapsed(),
        command: name,
    }
}

/// Waits for `child` until `deadline`; its status as shells count it.
///
/// # Panics
/// When it is still running then; it is killed first.
pub fn wait(child: &mut Child, deadline: Instant, name: &str) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} hangs");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// Compiles `source`, of `tests/guests/`, to a static program, which needs no libraries of an
/// image's.
#[track_caller]
pub fn compile(source: &str, to: &Path) {
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o"]).arg(to);
    feed(compiler, Box::new(std::io::Cursor::new(source.to_owned()))).ok();
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`limit`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit();
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {:?}", limit());
        thread::sleep(Duration::from_millis(50));
    }
}
