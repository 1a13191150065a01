//! Where a guest may connect to, by nftables on the host.
//!
//! ```text
//! inet bulkhead
//!   guests      prerouting, where connections are known and before ports are published:
//!               answers pass; by source address to the chain of the container
//!   c-ID        the host, metadata services, other networks: refused; then the policy
//!   enter       forward: into networks of ours only from such, and to published ports
//!   leave       postrouting: translation of addresses
//! netdev bulkhead
//!   c-ID-N      the host's end of the container's interface: packets from other addresses,
//!               and frames that a bridge would hand on to its neighbours
//! ```
//!
//! The VMM drops frames from other addresses than those of the container's interface
//! (protocol::machine::Guard), and c-ID-N those from others than the rules were made for, so
//! that the source tells whose a packet is. Each change is one transaction.

mod judge;
mod refused;

use std::fmt::Write;
use std::fs::File;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use refused::Refused;
pub(super) use refused::{ByChain, refused, refused_to_all};

use super::NetworkError;
use super::cidr::Cidr;
use super::egress::Allowed;
use crate::id::short;
use crate::programs;

/// Longest that nft may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Most of its words that are told.
const MAX_WORDS: usize = 2048;

/// Tables, and what all containers have in common. To say it again changes nothing. A
/// network's address counts where the network is: others could claim it. From link-local
/// addresses comes only what a bridge shows netfilter (br_netfilter).
const COMMON: &str = "\
add table inet bulkhead
add table netdev bulkhead
add set inet bulkhead networks4 { type ipv4_addr; flags interval; }
add set inet bulkhead networks6 { type ipv6_addr; flags interval; }
add set inet bulkhead translated4 { type ipv4_addr; flags interval; }
add set inet bulkhead translated6 { type ipv6_addr; flags interval; }
add map inet bulkhead from4 { type ipv4_addr : verdict; }
add map inet bulkhead from6 { type ipv6_addr : verdict; }
add chain inet bulkhead guests { type filter hook prerouting priority mangle; policy accept; }
flush chain inet bulkhead guests
add rule inet bulkhead guests ct state established,related ct direction reply accept
add rule inet bulkhead guests ip saddr vmap @from4
add rule inet bulkhead guests ip6 saddr vmap @from6
add chain inet bulkhead enter { type filter hook forward priority filter; policy accept; }
flush chain inet bulkhead enter
add rule inet bulkhead enter ct state established,related accept
add rule inet bulkhead enter ct status dnat accept
add rule inet bulkhead enter ip saddr @networks4 fib saddr . iif oif exists accept
add rule inet bulkhead enter ip6 saddr @networks6 fib saddr . iif oif exists accept
add rule inet bulkhead enter ip6 saddr fe80::/10 accept
add rule inet bulkhead enter ip daddr @networks4 counter drop
add rule inet bulkhead enter ip6 daddr @networks6 counter drop
add chain inet bulkhead leave { type nat hook postrouting priority srcnat; policy accept; }
flush chain inet bulkhead leave
add rule inet bulkhead leave ip saddr @translated4 ip daddr != @networks4 masquerade
add rule inet bulkhead leave ip6 saddr @translated6 ip6 daddr != @networks6 masquerade
";

/// A container's part.
#[derive(Debug, Clone, Default)]
pub(super) struct Guest<'a> {
    pub(super) id: &'a str,
    /// All that it may send from.
    pub(super) addresses: Vec<IpAddr>,
    /// Of its network.
    pub(super) subnets: &'a [Cidr],
    /// Whether that is one of ours: others have their own rules and translation.
    pub(super) ours: bool,
    /// Without a way out.
    pub(super) internal: bool,
    pub(super) allow_host: bool,
    pub(super) policy: Option<Policy>,
    /// Those that it is told.
    pub(super) name_servers: Vec<IpAddr>,
    /// The host's ends of its interfaces.
    pub(super) ends: Vec<String>,
    /// Hardware addresses of these, and of bridges that they are in: what goes to them goes
    /// to the host.
    pub(super) macs: Vec<String>,
}

/// `--egress`.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy {
    pub(super) public: bool,
    pub(super) allowed: Vec<Allowed>,
}

/// Sets the rules of a container, and of its network.
pub(super) fn set(guest: &Guest, log: &File) -> Result<(), NetworkError> {
    nft(&[], &text(guest), log).map(drop)
}

/// Takes them away; there may be none.
pub(super) fn remove(
    id: &str,
    addresses: &[IpAddr],
    ends: usize,
    log: &File,
) -> Result<(), NetworkError> {
    nft(&[], &removal(id, addresses, ends), log).map(drop)
}

/// Takes away what is there of a network.
pub(super) fn forget_network(subnets: &[Cidr]) -> Result<(), NetworkError> {
    let mut text = COMMON.to_owned();
    for subnet in subnets {
        for set in ["networks", "translated"] {
            let set = format!("{set}{}", version(subnet.is_ipv4()));
            let _ = writeln!(text, "add element inet bulkhead {set} {{ {subnet} }}");
            let _ = writeln!(text, "delete element inet bulkhead {set} {{ {subnet} }}");
        }
    }
    nft(&[], &text, &anonymous_file()?).map(drop)
}

fn chain(id: &str) -> String {
    format!("c-{}", short(id))
}

fn version(ipv4: bool) -> char {
    if ipv4 { '4' } else { '6' }
}

fn text(guest: &Guest) -> String {
    let mut text = COMMON.to_owned();
    for subnet in guest.subnets.iter().filter(|_| guest.ours) {
        let four = version(subnet.is_ipv4());
        let sets: &[&str] =
            if guest.internal { &["networks"] } else { &["networks", "translated"] };
        for set in sets {
            let _ = writeln!(text, "add element inet bulkhead {set}{four} {{ {subnet} }}");
        }
    }
    let chain = chain(guest.id);
    let _ = writeln!(text, "add chain inet bulkhead {chain}\nflush chain inet bulkhead {chain}");
    for rule in judge::routed(guest) {
        let _ = writeln!(text, "add rule inet bulkhead {chain} {rule}");
    }
    for address in &guest.addresses {
        text.push_str(&element("add", &chain, *address, true));
    }
    for (index, end) in guest.ends.iter().enumerate() {
        let _ = writeln!(
            text,
            "add chain netdev bulkhead {chain}-{index} {{ type filter hook ingress device \
             \"{end}\" priority filter; policy accept; }}\n\
             flush chain netdev bulkhead {chain}-{index}"
        );
        for rule in judge::bridged(guest) {
            let _ = writeln!(text, "add rule netdev bulkhead {chain}-{index} {rule}");
        }
    }
    text
}

fn element(verb: &str, chain: &str, address: IpAddr, with_verdict: bool) -> String {
    let map = format!("from{}", version(address.is_ipv4()));
    let verdict = if with_verdict { format!(" : jump {chain}") } else { String::new() };
    format!("{verb} element inet bulkhead {map} {{ {address}{verdict} }}\n")
}

/// What is not there is made first, so that nothing of it has to be there.
fn removal(id: &str, addresses: &[IpAddr], ends: usize) -> String {
    let mut text = COMMON.to_owned();
    let chain = chain(id);
    let _ = writeln!(text, "add chain inet bulkhead {chain}\nflush chain inet bulkhead {chain}");
    for address in addresses {
        text.push_str(&element("add", &chain, *address, true));
        text.push_str(&element("delete", &chain, *address, false));
    }
    let _ = writeln!(text, "delete chain inet bulkhead {chain}");
    // Older kernels remove such a chain with its interface, later ones do not.
    for index in 0..ends {
        for verb in ["add", "flush", "delete"] {
            let _ = writeln!(text, "{verb} chain netdev bulkhead {chain}-{index}");
        }
    }
    text
}

/// The link-local address that follows from a hardware address (RFC 4291, appendix A).
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> IpAddr {
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Addr::from(octets).into()
}

/// Runs nft; what it printed. `log` gets its words: where that is a container's, it is
/// locked until nft ends, also when we are killed.
fn nft(arguments: &[&str], input: &str, log: &File) -> Result<Vec<u8>, NetworkError> {
    nft_up_to(programs::MAX_OUTPUT, arguments, input, log)
}

/// As `nft`, of a program that may print more or less: `most` bytes.
fn nft_up_to(
    most: u64,
    arguments: &[&str],
    input: &str,
    log: &File,
) -> Result<Vec<u8>, NetworkError> {
    let failed = |error: std::io::Error| NetworkError::Rules(error.to_string());
    let program = program("nft").ok_or(NetworkError::NoNft)?;
    let mut command = Command::new(program);
    if arguments.is_empty() {
        command.args(["-f", "-"])
    } else {
        command.args(arguments)
    };
    command.env_clear();
    let before = log.metadata().map_err(failed)?.len();
    let inherited = log.try_clone().map_err(failed)?;
    let ended =
        programs::run_up_to(most, command, input.as_bytes(), inherited, LIMIT).map_err(failed)?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let mut words = vec![0; MAX_WORDS];
    let length = log.read_at(&mut words, before).unwrap_or(0);
    let words = String::from_utf8_lossy(&words[..length]);
    Err(NetworkError::Rules(format!("{} ({})", words.trim(), ended.status)))
}

/// A program of the host's administrator, also where PATH is a user's.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let directories = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    directories.into_iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

fn anonymous_file() -> Result<File, NetworkError> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let made = nix::sys::memfd::memfd_create(c"bulkhead-nft", flags);
    made.map(File::from).map_err(|errno| NetworkError::Rules(errno.to_string()))
}

#[cfg(test)]
mod tests;
