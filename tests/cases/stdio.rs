//! Standard input, output and error.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::program::{eventually, feed, script, wait};
use bulkhead_tests::turn::shared;
use bulkhead_tests::{bulkhead, guest, small};

/// `left` bytes, no two blocks alike.
struct Noise {
    block: Vec<u8>,
    number: u64,
    left: usize,
}

impl Noise {
    fn new(left: usize) -> Noise {
        let block = (0..64u32 << 10).map(|index| (index.wrapping_mul(0x9e37_79b1) >> 13) as u8);
        Noise { block: block.collect(), number: 0, left }
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.left).min(self.block.len());
        self.number += 1;
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        buffer[..count].copy_from_slice(&self.block[..count]);
        self.left -= count;
        Ok(count)
    }
}

fn piped(options: &[&str], command: &[&str]) -> Command {
    let mut bulkhead = Command::new("bulkhead");
    bulkhead.args(["run", "--rm"]).args(options).arg(small()).args(command);
    bulkhead
}

/// `BULKHEAD_STREAM_MIB` is its size.
#[test]
fn a_tar_archive_arrives_as_it_was_sent() {
    let _turn = shared();
    let mib = std::env::var("BULKHEAD_STREAM_MIB").ok().and_then(|text| text.parse().ok());
    // A tar archive of one file.
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("noise.tar");
    let size: u64 = mib.unwrap_or(16) << 20;
    let mut header = tar::Header::new_ustar();
    header.set_path("noise").unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    let mut builder = tar::Builder::new(File::create(&archive).unwrap());
    builder.append(&header, Noise::new(size as usize)).unwrap();
    builder.into_inner().unwrap();
    let here = script(&format!("sha256sum < {}", archive.display())).ok();
    let input = Box::new(File::open(&archive).unwrap());
    let there = feed(piped(&["-i"], &["sh", "-c", "sha256sum; exit 3"]), input);
    assert_eq!(there.expect(3).text().trim_end(), here);
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
    let size = 16_000_000;
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
    assert!(child.try_wait().unwrap().is_none(), "it cannot have written 16 MB into a full pipe");
    let mut stdout = child.stdout.take().unwrap();
    let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
    while let count @ 1.. = stdout.read(&mut buffer).unwrap() {
        total += count;
    }
    assert_eq!(total, size);
    let deadline = Instant::now() + Duration::from_secs(60);
    assert_eq!(wait(&mut child, deadline, "run"), 6);
}
