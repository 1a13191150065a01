//! Pumps against pipes of the host and a guest played by a thread.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Blocking;

use super::pump::Pump;
use super::*;

fn pipe() -> (File, File) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (read.into(), write.into())
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

const GRACE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn input_arrives_whole_and_ends() {
    let (read, mut write) = pipe();
    let (ours, mut guest) = Blocking::pair().unwrap();
    let _pump = Pump::input(read.into(), ours).unwrap();
    let data = noise(3_000_000);
    let sent = data.clone();
    let writer = std::thread::spawn(move || write.write_all(&sent).unwrap());
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        guest.read_to_end(&mut got).unwrap();
        got
    });
    writer.join().unwrap();
    assert!(reader.join().unwrap() == data);
}

#[tokio::test]
async fn output_arrives_whole_at_a_slow_reader() {
    let (mut read, write) = pipe();
    let (ours, mut guest) = Blocking::pair().unwrap();
    let output = Output { fd: Some(write.into()), log: None };
    let mut pump = Pump::output("stdout", ours, output).unwrap();
    let data = noise(1_000_000);
    let sent = data.clone();
    let writer = std::thread::spawn(move || guest.write_all(&sent).unwrap());
    let reader = std::thread::spawn(move || {
        // Longer than the grace: waiting for the host's reader has no limit.
        std::thread::sleep(GRACE * 3);
        let mut got = Vec::new();
        read.read_to_end(&mut got).unwrap();
        got
    });
    assert!(pump.drain(GRACE).await);
    drop(pump);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == data);
}

#[tokio::test]
async fn a_closed_reader_closes_the_stream() {
    let (read, write) = pipe();
    drop(read);
    let (ours, mut guest) = Blocking::pair().unwrap();
    let output = Output { fd: Some(write.into()), log: None };
    let mut pump = Pump::output("stdout", ours, output).unwrap();
    guest.write_all(b"lost").unwrap();
    pump.drain(GRACE).await;
    let mut rest = Vec::new();
    assert_eq!(guest.read_to_end(&mut rest).unwrap_or(0), 0);
    assert!(guest.write_all(b"more").is_err());
}

#[tokio::test]
async fn a_stream_that_somebody_else_holds_open_is_given_up() {
    let (_read, write) = pipe();
    let (ours, guest) = Blocking::pair().unwrap();
    let output = Output { fd: Some(write.into()), log: None };
    let mut pump = Pump::output("stdout", ours, output).unwrap();
    let begin = std::time::Instant::now();
    assert!(!pump.drain(GRACE).await);
    drop(pump);
    assert!(begin.elapsed() < GRACE * 20);
    drop(guest);
}

#[tokio::test]
async fn an_input_that_never_ends_is_stopped() {
    let (read, write) = pipe();
    let (ours, guest) = Blocking::pair().unwrap();
    let pump = Pump::input(read.into(), ours).unwrap();
    drop(pump);
    drop((guest, write));
}

#[tokio::test]
async fn the_log_goes_on_without_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (read, write) = pipe();
    drop(read);
    let (ours, mut guest) = Blocking::pair().unwrap();
    let log = Some(LogWriter::open(&path, "stdout").unwrap());
    let mut pump = Pump::output("stdout", ours, Output { fd: Some(write.into()), log }).unwrap();
    guest.write_all(b"one\ntwo\n").unwrap();
    drop(guest);
    pump.drain(GRACE).await;
    drop(pump);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[tokio::test]
async fn attaching_speaks_the_handshakes() {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"CONNECT 1025\n");
        stream.write_all(b"OK 5\n").await.unwrap();
        let mut header = [0; 4];
        stream.read_exact(&mut header).await.unwrap();
        let mut payload = vec![0; frame::payload_len(header).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        let hello: StreamHello = frame::decode(&payload).unwrap();
        assert_eq!(hello.stream, Stream::Stdout);
        stream.write_all(&frame::encode(&StreamReply::Ok(())).unwrap()).await.unwrap();
        stream.write_all(b"output").await.unwrap();
    });
    let (mut read, write) = pipe();
    let host =
        HostStdio { stdout: Output { fd: Some(write.into()), log: None }, ..HostStdio::default() };
    let process = ProcessId { container: "c".into(), exec: None };
    let streams = Streams::attach(dir.path(), &process, host).await.unwrap();
    peer.await.unwrap();
    assert!(streams.finish(GRACE).await.is_empty());
    let mut got = String::new();
    read.read_to_string(&mut got).unwrap();
    assert_eq!(got, "output");
}
