//! Limits of what an interface carries, held by what passes it.

use std::path::Path;

use crate::Background;
use crate::outside::{Outside, transfer};
use crate::program::script;

/// Bytes of the file that is carried.
const BYTES: usize = 1 << 20;
/// Its name.
const FILE: &str = "file";
/// What may pass at once beyond the rate.
const BURST: f64 = 65536.0;
/// How often longer than it should a busy, emulated host may take.
const PATIENCE: f64 = 6.0;

/// Options of a container that receives 4 Mbit in a second, and sends 2.
pub const OPTIONS: [&str; 4] = ["--ingress-rate", "4mbit", "--egress-rate", "2mbit"];

/// Puts the file there.
pub fn prepare(directory: &Path) {
    std::fs::write(directory.join(FILE), vec![b'x'; BYTES]).expect("a file");
}

/// Fails unless the container with [`OPTIONS`] is as fast as that, and not faster. Its server at
/// `port` of `address` has the directory with the file, and so will have one outside.
#[track_caller]
pub fn are_held(of: &Background, (address, port): (&str, u16), outside: &Outside, files: &Path) {
    let told = of.inspect()["NetworkSettings"]["Bandwidth"].take();
    assert_eq!((&told["IngressRate"], &told["EgressRate"]), (&4_000_000.into(), &2_000_000.into()));
    outside.run(&format!("busybox httpd -p 82 -h {}", files.display())).ok();
    // A client that leaves its half of the connection open: see the cases of passt.
    let received = of.exec(&format!(
        "rm -f /tmp/ask; mkfifo /tmp/ask; exec 3<>/tmp/ask
         printf 'GET /{FILE} HTTP/1.0\\r\\n\\r\\n' >&3
         read begin rest < /proc/uptime
         nc -w 60 203.0.113.2 82 <&3 | wc -c
         read end rest < /proc/uptime; echo $begin $end"
    ));
    holds("received", &received.ok(), 4e6);
    let sent = script(&format!(
        "read begin rest < /proc/uptime
         {} | wc -c
         read end rest < /proc/uptime; echo $begin $end",
        transfer(address, port, FILE)
    ));
    holds("sent", &sent.ok(), 2e6);
}

/// `told`: how many bytes, since when and until when, in seconds.
#[track_caller]
fn holds(what: &str, told: &str, bits: f64) {
    let numbers: Vec<f64> = told.split_whitespace().flat_map(str::parse).collect();
    let [bytes, begin, end] = numbers[..] else { panic!("{what}: {told}") };
    assert!(bytes >= BYTES as f64, "{what}: {bytes} bytes");
    let (took, least) = (end - begin, (bytes - BURST) * 8.0 / bits);
    // What is measured begins and ends with the client, and is rounded to hundredths.
    assert!(took > least * 0.95, "{what}: {bytes} bytes took {took} s, and not {least}");
    assert!(took < least * PATIENCE, "{what}: {bytes} bytes took {took} s, more than {least}");
}
