//! What a network must carry, tried between two ends: `tests/guests/traffic.c` serves at one,
//! and a shell script asks at the other, which is the host or a further container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::program::{feed, run};

/// How much is carried. The host's own programs do it quickly; those of a container are
/// emulated in the test host, each exit of their machine as well.
struct Load {
    /// Each way, by each version of IP.
    mib: u32,
    /// Open at once.
    connections: u32,
}
const OF_HOST: Load = Load { mib: 4, connections: 1000 };
const OF_CONTAINER: Load = Load { mib: 1, connections: 200 };
/// Bytes of a datagram in many fragments.
const FRAGMENTS: u32 = 20_000;
/// Where br_netfilter puts fragments together, as on a host with rules of any engine, Linux
/// (6.12) loses larger ones between two ports of a bridge that was made with its MTU: the mark
/// that it compares with (`fake_rtable`) follows later changes of the MTU alone.
const LARGEST_BRIDGED: u32 = 1500;

impl Load {
    /// What `BULKHEAD_TRANSFER_MIB` and `BULKHEAD_CONNECTIONS` say instead.
    fn told(self) -> Load {
        let told = |name, number| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(number)
        };
        Load {
            mib: told("BULKHEAD_TRANSFER_MIB", self.mib),
            connections: told("BULKHEAD_CONNECTIONS", self.connections),
        }
    }
}

/// Whether docker's and ctr's networks carry it as well: `BULKHEAD_TRAFFIC`. In the test host
/// that takes minutes.
pub fn everywhere() -> bool {
    std::env::var_os("BULKHEAD_TRAFFIC").is_some()
}

/// The program, compiled once per run of the suite. It lies alone in a directory on a disk, so
/// that this can be a volume.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new("/var/lib/containers/bulkhead-tests/traffic");
        fs::create_dir_all(directory).expect("a directory");
        let program = directory.join("traffic");
        let mut compiler = Command::new("cc");
        compiler.args(["-static", "-s", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o"]);
        compiler.arg(&program);
        let source = include_str!("../guests/traffic.c");
        feed(compiler, Box::new(std::io::Cursor::new(source))).ok();
        program
    })
}

/// The volume that has it, as `--volume` wants it, for [`MOUNTED`].
pub fn volume() -> String {
    format!("{}:/traffic:ro", program().parent().expect("it is absolute").display())
}

/// The program in a container with [`volume`].
pub const MOUNTED: &str = "/traffic/traffic";

/// A script of busybox that serves until it is killed; `program` is where it is there.
pub fn serve(program: &str) -> String {
    format!("nc -ll -p 9 -e sha256sum & exec {program} serve")
}

/// A script that fails unless a server at each of `addresses`, behind an interface with `mtu`,
/// has all of it right: a datagram as large as the MTU and one in fragments, an echo of ICMP,
/// some MiB each way with their digest, many connections at once. It runs where busybox
/// is, and the program at `program`.
pub fn checks(program: &str, addresses: &[&str], mtu: u32) -> String {
    let fragments = if mtu <= LARGEST_BRIDGED { FRAGMENTS } else { mtu - 100 };
    script(program, addresses, mtu, fragments, OF_CONTAINER)
}

fn script(program: &str, addresses: &[&str], mtu: u32, fragments: u32, load: Load) -> String {
    let addresses = addresses.join(" ");
    let Load { mib, connections } = load.told();
    format!(
        r#"
        set -eu
        traffic={program}
        expected=$($traffic noise {mib} | busybox sha256sum)
        for ip in {addresses}; do
            case $ip in *:*) headers=48 ;; *) headers=28 ;; esac
            largest=$(({mtu} - headers))
            $traffic datagram $ip $largest
            if $traffic datagram $ip $((largest + 1)) 2>/dev/null; then
                echo "more than the MTU went to $ip" >&2
                exit 1
            fi
            $traffic fragments $ip {fragments}
            busybox ping -c 1 -W 20 -s $((largest < 8000 ? largest : 8000)) $ip >&2
            digest=$($traffic noise {mib} | busybox nc $ip 9)
            [ "$digest" = "$expected" ] || {{ echo "to $ip: $digest" >&2; exit 1; }}
            digest=$(echo {mib} | busybox nc $ip 8 | busybox sha256sum)
            [ "$digest" = "$expected" ] || {{ echo "from $ip: $digest" >&2; exit 1; }}
            $traffic connections $ip {connections}
        done
        echo all of it
        "#
    )
}

/// The same from the host.
#[track_caller]
pub fn from_host(addresses: &[&str], mtu: u32) {
    let program = program().to_str().expect("a plain path");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script(program, addresses, mtu, FRAGMENTS, OF_HOST)]);
    assert_eq!(run(shell).ok(), "all of it");
}
