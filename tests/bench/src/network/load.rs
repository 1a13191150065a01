//! Both ends of the load. The server's is this program again, in the container.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SINK: u16 = 7000;
const SOURCE: u16 = 7001;
const NGINX: u16 = 80;
/// Bytes of one system call.
const CHUNK: usize = 128 << 10;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);
/// How long servers may take until they answer.
const UP_LIMIT: Duration = Duration::from_secs(120);
const REQUEST: &[u8] = b"GET /index.html HTTP/1.1\r\nHost: bench\r\n\r\n";

/// Takes what comes on one port and sends what is asked for on another, for ever.
pub fn serve() -> Result<()> {
    let (sink, source) = (listen(SINK)?, listen(SOURCE)?);
    thread::spawn(move || accept(&sink, take));
    accept(&source, give);
    Ok(())
}

fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))
}

fn accept(listener: &TcpListener, serve: fn(TcpStream) -> std::io::Result<()>) {
    for stream in listener.incoming().flatten() {
        // Who asked sees that its connection ends, and fails.
        let _ = serve(stream);
    }
}

/// Answers with the number of bytes that came.
fn take(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut buffer, mut count) = (vec![0; CHUNK], 0u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&count.to_le_bytes()),
            read => count += read as u64,
        }
    }
}

/// Sends as many bytes as it is told.
fn give(mut stream: TcpStream) -> std::io::Result<()> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    write(&mut stream, u64::from_le_bytes(count))
}

fn write(stream: &mut TcpStream, mut count: u64) -> std::io::Result<()> {
    let buffer = vec![0x5a; CHUNK];
    while count > 0 {
        let next = count.min(CHUNK as u64) as usize;
        stream.write_all(&buffer[..next])?;
        count -= next as u64;
    }
    Ok(())
}

fn connect(ip: &str, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((ip, port)).with_context(|| format!("{ip}, port {port}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Waits until all servers are there.
pub fn wait(ip: &str) -> Result<()> {
    let begin = Instant::now();
    let is_up = || [SINK, SOURCE, NGINX].iter().all(|&port| TcpStream::connect((ip, port)).is_ok());
    while !is_up() {
        ensure!(begin.elapsed() < UP_LIMIT, "the servers at {ip} do not answer");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Sends so many MiB, until the other side has them.
pub fn send(ip: &str, mib: u64) -> Result<()> {
    let mut stream = connect(ip, SINK)?;
    write(&mut stream, mib << 20)?;
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    ensure!(u64::from_le_bytes(count) == mib << 20, "bytes were lost on the way to {ip}");
    Ok(())
}

/// Has so many MiB sent.
pub fn receive(ip: &str, mib: u64) -> Result<()> {
    let mut stream = connect(ip, SOURCE)?;
    stream.write_all(&(mib << 20).to_le_bytes())?;
    let (mut buffer, mut count) = (vec![0; CHUNK], 0u64);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => count += read as u64,
        }
    }
    ensure!(count == mib << 20, "bytes were lost on the way from {ip}");
    Ok(())
}

/// Asks nginx for a KiB, `count` times in all, on `connections` that are kept; milliseconds
/// that each request took.
pub fn requests(ip: &str, connections: usize, count: usize) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let each = count.div_ceil(connections);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let ip = ip.to_owned();
            tasks.spawn(async move { tokio::time::timeout(LIMIT, ask(&ip, each)).await });
        }
        let mut all = Vec::with_capacity(each * connections);
        while let Some(done) = tasks.join_next().await {
            all.extend(done?.context("nginx does not answer")??);
        }
        Ok(all)
    })
}

async fn ask(ip: &str, count: usize) -> Result<Vec<f64>> {
    let mut stream = tokio::net::TcpStream::connect((ip, NGINX)).await?;
    stream.set_nodelay(true)?;
    let (mut buffer, mut taken) = (vec![0; 16 << 10], Vec::with_capacity(count));
    for _ in 0..count {
        let start = Instant::now();
        stream.write_all(REQUEST).await?;
        let mut filled = 0;
        while !whole(&buffer[..filled])? {
            let read = stream.read(&mut buffer[filled..]).await?;
            ensure!(read > 0, "nginx ended a connection");
            filled += read;
        }
        taken.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(taken)
}

/// Whether it is all of an answer.
fn whole(answer: &[u8]) -> Result<bool> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = std::str::from_utf8(&answer[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "nginx answered: {head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.context("an answer without a length")?.parse()?;
    Ok(answer.len() >= end + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 3\r\n\r\nabc";
        for length in 0..answer.len() {
            assert!(!whole(&answer[..length]).unwrap());
        }
        assert!(whole(answer).unwrap());
        assert!(whole(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn all_bytes_come_each_way() {
        let local = |serve| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            thread::spawn(move || accept(&listener, serve));
            TcpStream::connect(("127.0.0.1", port)).unwrap()
        };
        let count = 3 * CHUNK as u64 + 5;
        let mut stream = local(take);
        write(&mut stream, count).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut told = [0; 8];
        stream.read_exact(&mut told).unwrap();
        assert_eq!(u64::from_le_bytes(told), count);
        let mut stream = local(give);
        stream.write_all(&count.to_le_bytes()).unwrap();
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap() as u64, count);
    }
}
