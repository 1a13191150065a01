//! `--network passt`: a network without CNI's plugins and nftables. passt, a process without
//! privileges, makes sockets of the host's for what the guest opens, and carries published
//! ports to it.
//!
//! ```text
//! machine -- tap bhtap -- mirred -- tap eth0 | relay, judge | socket -- passt -- the host's sockets
//!            `---- namespace of the supervisor ----'
//! ```
//!
//! As QEMU's, and not as pasta in the namespace: pasta hands connections from the host's
//! loopback to the loopback of the namespace, where no machine is. And what passt may open is
//! decided before it, as no rule of the host's tells its sockets from others.
//!
//! Invariant: passt lives as long as the other end of its socket, which only the supervisor
//! has. Nothing is on disk, or in the host's kernel, that would have to be undone.

mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod judge;
mod relay;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::attach::{Attached, Joining, check_ports, new_namespace};
use super::egress::Egress;
use super::files::{self, Identity};
use super::options::{Networking, Protocol, Published};
use super::rules::{self, Policy, Refused};
use super::{NetworkError, definition, link, record};
use crate::dirs;
use crate::files::{FileError, read_json, write_json};
use crate::network::{Made, Routes, make};
use judge::{Judge, Look, Place, Rules};
use relay::Relay;

pub(super) use judge::Counters;

/// What `--network` calls it.
pub const NAME: &str = "passt";
/// The same in every machine: nobody else is on its wire.
const MAC: [u8; 6] = [2, 0x62, 0x6b, 0x68, 0, 2];
const MAC_OF_PASST: [u8; 6] = [2, 0x62, 0x6b, 0x68, 0, 1];
const ADDRESS4: Ipv4Addr = Ipv4Addr::new(10, 86, 0, 2);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 86, 0, 1);
const LENGTH4: u8 = 24;
const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd86, 0x62, 0x6b68, 0, 0, 0, 0, 2);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd86, 0x62, 0x6b68, 0, 0, 0, 0, 1);
const LENGTH6: u8 = 64;
/// What passt counts on, unless it is told otherwise: its segments are as large.
const MTU: u32 = 65520;
/// How long it may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// Most of its words that are told.
const MAX_WORDS: usize = 2048;

/// Whether the program is there.
pub fn available() -> bool {
    rules::program(NAME).is_some()
}

/// A container's passt. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Passt {
    relay: Option<Relay>,
    child: Child,
    pub(super) counters: Arc<Counters>,
}

impl Drop for Passt {
    fn drop(&mut self) {
        drop(self.relay.take());
        // It has nothing to finish.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What others are told of a container that has it: `passt.json` in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) addresses: Vec<(IpAddr, u8)>,
    pub(super) gateways: Vec<IpAddr>,
    pub(super) ports: Vec<Published>,
}

impl Told {
    /// IPv6 only where the host has a way out by both: passt takes no other pair of addresses.
    fn new(ipv6: bool, ports: &[Published]) -> Told {
        let mut told = Told {
            addresses: vec![(ADDRESS4.into(), LENGTH4)],
            gateways: vec![GATEWAY4.into()],
            ports: ports.to_vec(),
        };
        if ipv6 {
            told.addresses.push((ADDRESS6.into(), LENGTH6));
            told.gateways.push(GATEWAY6.into());
        }
        told
    }

    fn path(lib: &Path) -> PathBuf {
        lib.join("passt.json")
    }

    pub(super) fn read(lib: &Path) -> Result<Option<Told>, NetworkError> {
        Ok(read_json(&Told::path(lib))?)
    }

    /// The hardware address of the guest's interface, as it is written.
    pub(super) fn mac() -> String {
        MAC.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Makes the namespace of a container with an interface that leads to passt. The caller's
/// thread is in the host's.
pub(super) fn attach(joining: &Joining) -> Result<Attached, NetworkError> {
    let Joining { dirs, id, options, .. } = *joining;
    let program = rules::program(NAME).ok_or(NetworkError::NoPasst)?;
    let (ipv4_out, ipv6_out) = link::ways_out();
    let told = Told::new(ipv4_out && ipv6_out, &options.ports);
    check(dirs, options, &told)?;
    let egress = options.egress.as_ref().map(Egress::resolve).transpose()?;
    let (allowed, pinned) = egress.unwrap_or_default();
    let policy = options.egress.as_ref().map(|egress| Policy { public: egress.public, allowed });
    let lib = dirs.container_lib(id);
    let log = record::log(&lib)?;
    let mut attached = new_namespace()?;
    let tap = attached.inside(|| {
        let made = Made {
            name: super::attach::INTERFACE,
            mac: MAC,
            mtu: MTU,
            addresses: &told.addresses,
            gateways: &told.gateways,
        };
        make(&made)
    })?;
    let tap = tap.map_err(|error| NetworkError::Interface(Box::new(error)))?;
    let (ours, child) = start(&program, &told, ipv4_out, &log)?;
    let counters = Arc::<Counters>::default();
    let mut passt = Passt { relay: None, child, counters: counters.clone() };
    wait(&ours, &log)?;
    let rules = Rules {
        gateways: told.gateways.clone(),
        allow_host: options.allow_host,
        policy,
        name_servers: files::name_servers(options),
    };
    let judge = Judge::new(rules, look()?, counters);
    let relay = Relay::begin(tap, ours, judge).map_err(NetworkError::system("start threads"))?;
    passt.relay = Some(relay);
    attached.passt = Some(passt);
    let addresses: Vec<IpAddr> = told.addresses.iter().map(|(address, _)| *address).collect();
    let (hostname, name) = (joining.hostname, joining.name);
    let gateway = own_address();
    let identity = Identity { hostname, name, addresses: &addresses, gateway, pinned: &pinned };
    files::write(&lib, options, &identity)?;
    write_json(&Told::path(&lib), &told)?;
    Ok(attached)
}

/// Refuses what cannot be.
fn check(dirs: &dirs::Dirs, options: &Networking, told: &Told) -> Result<(), NetworkError> {
    let six = |port: &&Published| port.address.is_some_and(|address| address.is_ipv6());
    if told.addresses.len() == 1
        && let Some(port) = options.ports.iter().find(six)
    {
        let why = "passt has IPv6 only where the host has default routes of both versions".into();
        return Err(NetworkError::Port { port: port.to_string(), why });
    }
    let host = options.hosts.iter().find(|host| host.address.is_none());
    match host.filter(|_| own_address().is_none()) {
        Some(host) => Err(NetworkError::NoHostAddress(host.name.clone())),
        None => check_ports(dirs, &options.ports),
    }
}

/// The host's address, as others see it.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Nothing is sent: the kernel chooses the way to an address of documentation's.
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Starts it; our end of its socket.
fn start(
    program: &Path,
    told: &Told,
    ipv4_out: bool,
    log: &File,
) -> Result<(UnixStream, Child), NetworkError> {
    let failed = || NetworkError::system("start passt");
    let (ours, theirs) = UnixStream::pair().map_err(failed())?;
    let mut command = Command::new(program);
    command.env_clear().args(arguments(told, ipv4_out));
    // What a terminal sends to its foreground is not meant for it.
    command.process_group(0);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    command.stderr(log.try_clone().map_err(failed())?);
    Ok((ours, command.spawn().map_err(failed())?))
}

/// Its socket is its standard input. As root it becomes `nobody` by itself, once its ports
/// are bound.
fn arguments(told: &Told, ipv4_out: bool) -> Vec<String> {
    let mut all: Vec<String> =
        ["--foreground", "--quiet", "--fd", "0", "--no-dhcp", "--no-dhcpv6", "--no-ra"]
            .map(String::from)
            .to_vec();
    let mut option = |name: &str, value: String| all.extend([name.to_owned(), value]);
    option("--dns", "none".into());
    option("--search", "none".into());
    option("--mac-addr", MAC_OF_PASST.map(|byte| format!("{byte:02x}")).join(":"));
    option("--netmask", LENGTH4.to_string());
    for ((address, _), gateway) in told.addresses.iter().zip(&told.gateways) {
        option("--address", address.to_string());
        option("--gateway", gateway.to_string());
    }
    if !ipv4_out {
        // It insists on an interface, and uses nothing of it.
        option("--interface", "lo".into());
    }
    for port in &told.ports {
        let name = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        let address = port.address.map_or(String::new(), |address| format!("{address}/"));
        option(name, format!("{address}{}:{}", port.host, port.guest));
    }
    if told.addresses.len() == 1 {
        all.push("--ipv4-only".into());
    }
    all
}

/// Waits until it serves.
fn wait(ours: &UnixStream, log: &File) -> Result<(), NetworkError> {
    match relay::answers(ours, &question(), BEGIN) {
        Ok(true) => Ok(()),
        Ok(false) => Err(NetworkError::Passt(last_words(log))),
        Err(error) => Err(NetworkError::Passt(format!("{error} ({})", last_words(log)))),
    }
}

/// Who has the gateway's address?
fn question() -> Vec<u8> {
    let mut frame = [&[0xff; 6], &MAC[..], &[8, 6], &[0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
    frame.extend(ADDRESS4.octets());
    frame.extend([0; 6]);
    frame.extend(GATEWAY4.octets());
    frame
}

fn last_words(log: &File) -> String {
    let mut words = vec![0; MAX_WORDS];
    let length = log.read_at(&mut words, 0).unwrap_or(0);
    let words = String::from_utf8_lossy(&words[..length]);
    // Without a logger it complains of that as well.
    let mut told = words.lines().filter(|line| !line.is_empty() && !line.contains("syslog"));
    told.next_back().unwrap_or("it ended without a word").to_owned()
}

/// Looks at the routes of the namespace that this thread is in.
fn look() -> Result<Look, NetworkError> {
    let failed = |error| NetworkError::system("ask for the host's routes")(error);
    let mut routes = Routes::open().map_err(|error| failed(std::io::Error::other(error)))?;
    let ours = |out: u32| {
        let name = nix::net::if_::if_indextoname(out);
        name.is_ok_and(|name| name.to_bytes().starts_with(definition::BRIDGES.as_bytes()))
    };
    Ok(Box::new(move |to| match routes.to(to) {
        Ok(way) if !way.unicast => Place::Host,
        Ok(way) if ours(way.out) => Place::Network,
        Ok(_) | Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => Place::Elsewhere,
        // Where nobody can tell, nothing is opened.
        Err(_) => Place::Host,
    }))
}

/// Forgets that a container had it; what it refused stays, if that is known.
pub(super) fn forget(lib: &Path, counted: Option<Refused>) -> Result<(), NetworkError> {
    let path = Told::path(lib);
    if !path.exists() {
        return Ok(());
    }
    write_json(&lib.join(super::attach::REFUSED), &counted.unwrap_or_default())?;
    std::fs::remove_file(&path).map_err(FileError::access(&path))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_all_that_it_must_know() {
        let ports = ["127.0.0.1:8080:80", "53:5353/udp", "[::1]:81:81"];
        let ports: Vec<Published> = ports.iter().map(|port| Published::test(port)).collect();
        let words = |ipv6, ipv4_out| arguments(&Told::new(ipv6, &ports), ipv4_out).join(" ");
        let both = words(true, true);
        for part in [
            "--fd 0",
            "--address 10.86.0.2 --gateway 10.86.0.1",
            "--address fd86:62:6b68::2 --gateway fd86:62:6b68::1",
            "--tcp-ports 127.0.0.1/8080:80",
            "--udp-ports 53:5353",
            "--tcp-ports ::1/81:81",
        ] {
            assert!(both.contains(part), "{part} in {both}");
        }
        assert!(!both.contains("--ipv4-only") && !both.contains("--interface"));
        let alone = words(false, false);
        assert!(alone.contains("--ipv4-only") && alone.contains("--interface lo"), "{alone}");
        assert_eq!(question().len(), 42);
        assert_eq!(Told::mac(), "02:62:6b:68:00:02");
    }

    #[test]
    fn what_passt_cannot_do_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs::Dirs { run: dir.path().join("run"), lib: dir.path().join("lib") };
        let ports = vec![Published::test("[::1]:81:81")];
        let options = Networking { ports: ports.clone(), ..Networking::default() };
        let error = check(&dirs, &options, &Told::new(false, &ports)).unwrap_err().to_string();
        assert!(error.contains("[::1]:81:81/tcp") && error.contains("default routes"), "{error}");
    }

    #[test]
    fn what_it_refused_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        forget(dir.path(), Some(Refused::default())).unwrap();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "it had none");
        let told = Told::new(true, &[]);
        write_json(&Told::path(dir.path()), &told).unwrap();
        assert_eq!(Told::read(dir.path()).unwrap(), Some(told));
        let refused = Refused { host: 3, guard: Some(1), ..Refused::default() };
        forget(dir.path(), Some(refused.clone())).unwrap();
        assert_eq!(Told::read(dir.path()).unwrap(), None);
        let kept: Option<Refused> = read_json(&dir.path().join("refused.json")).unwrap();
        assert_eq!(kept, Some(refused));
    }
}
