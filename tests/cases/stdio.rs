//! Standard input, output and error.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::program::{eventually, feed, script, wait};
use bulkhead_tests::turn::shared;
use bulkhead_tests::{bulkhead, guest, small};
use sha2::{Digest, Sha256};

/// `left` bytes that do not repeat.
struct Noise {
    state: u64,
    left: usize,
}

impl Noise {
    fn new(left: usize) -> Noise {
        Noise { state: 0x9e37_79b9_7f4a_7c15, left }
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.left).min(64 << 10);
        for chunk in buffer[..count].chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            chunk.copy_from_slice(&self.state.to_le_bytes()[..chunk.len()]);
        }
        self.left -= count;
        Ok(count)
    }
}

fn sha256(mut reader: impl Read) -> String {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    while let count @ 1.. = reader.read(&mut buffer).unwrap() {
        hash.update(&buffer[..count]);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn piped(options: &[&str], command: &[&str]) -> Command {
    let mut bulkhead = Command::new("bulkhead");
    bulkhead.args(["run", "--rm"]).args(options).arg(small()).args(command);
    bulkhead
}

#[test]
fn a_hundred_megabytes_arrive_as_they_were_sent() {
    let _turn = shared();
    // A tar archive of one file: header, content, end.
    let size = 100 << 20;
    let mut header = tar::Header::new_ustar();
    header.set_path("noise").unwrap();
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let archive = || {
        let header: &[u8] = header.as_bytes();
        std::io::Cursor::new(header.to_vec())
            .chain(Noise::new(size))
            .chain(std::io::repeat(0).take(1024))
    };
    let ended = feed(piped(&["-i"], &["sh", "-c", "sha256sum; exit 3"]), Box::new(archive()));
    let text = ended.expect(3).text();
    assert_eq!(text.trim_end(), format!("{}  -", sha256(archive())));
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let _turn = shared();
    let ended = guest(&[], "echo out; echo err >&2; echo out2; exit 4").expect(4);
    assert_eq!(ended.text(), "out\nout2\n");
    assert_eq!(ended.stderr, "err\n");
}

#[test]
fn stdin_ends_where_ours_ends() {
    let _turn = shared();
    let input = || Box::new(std::io::Cursor::new(b"a line without an end".to_vec()));
    let text = feed(piped(&["-i"], &["sh", "-c", "cat; echo .eof"]), input()).ok();
    assert_eq!(text, "a line without an end.eof");
    // Without -i the process reads nothing, and ours stays unread.
    let text = feed(piped(&[], &["sh", "-c", "cat; echo .eof"]), input()).ok();
    assert_eq!(text, ".eof");
}

#[test]
fn the_rest_of_stdin_stays_with_its_writer() {
    let _turn = shared();
    // The process ends long before its input: so do we.
    let start = Instant::now();
    let endless = Box::new(std::io::repeat(b'x'));
    feed(piped(&["-i"], &["sh", "-c", "head -c 10; exit 5"]), endless).expect(5);
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_reader_that_goes_away_is_noticed() {
    let _turn = shared();
    let text = script(&format!(
        "bulkhead run --rm {} yes 2>/dev/null | head -n 1; echo ${{PIPESTATUS[0]}}",
        small()
    ))
    .ok();
    let (first, status) = text.split_once('\n').unwrap();
    assert_eq!(first, "y");
    assert_ne!(status, "0", "`yes` must learn that nobody reads");
}

#[test]
fn a_slow_reader_holds_up_nobody() {
    let _turn = shared();
    let size = 50_000_000;
    let name = format!("slow-{}", std::process::id());
    let script = format!("head -c {size} /dev/zero; exit 6");
    let mut child = piped(&["--name", &name], &["sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the container runs", || bulkhead(&["exec", &name, "true"]).status == 0);
    // Nobody has read a byte, and the agent answers all the same.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(bulkhead(&["exec", &name, "echo", "here"]).ok(), "here");
    assert!(child.try_wait().unwrap().is_none(), "it cannot have written 50 MB into a full pipe");
    let mut stdout = child.stdout.take().unwrap();
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    while let count @ 1.. = stdout.read(&mut buffer).unwrap() {
        assert!(buffer[..count].iter().all(|byte| *byte == 0));
        total += count;
    }
    assert_eq!(total, size);
    let deadline = Instant::now() + Duration::from_secs(60);
    assert_eq!(wait(&mut child, deadline, "run"), 6);
}
