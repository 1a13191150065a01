//! Where a guest may connect to, by nftables on the host.
//!
//! ```text
//! inet bulkhead
//!   guests      prerouting, where connections are known and before ports are published:
//!               answers pass; by source address to the chain of the container
//!   c-ID        the host, metadata services, other networks: refused; then the policy
//!   leave       postrouting: translation of addresses
//! netdev bulkhead
//!   c-ID-N      the host's end of the container's interface: frames that a bridge would
//!               hand on to its neighbours
//! ```
//!
//! The VMM drops frames from other addresses than the container's (protocol::machine::Guard),
//! so that the source tells whose a packet is. Each change is one transaction.

use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::NetworkError;
use super::cidr::Cidr;
use super::egress::Allowed;
use crate::id::short;
use crate::programs;

/// Longest that nft may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Most of its words that are told.
const MAX_WORDS: u64 = 2048;

/// Tables, and what all containers have in common. To say it again changes nothing.
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
add rule inet bulkhead guests ct state established,related accept
add rule inet bulkhead guests icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
add rule inet bulkhead guests ip saddr vmap @from4
add rule inet bulkhead guests ip6 saddr vmap @from6
add chain inet bulkhead leave { type nat hook postrouting priority srcnat; policy accept; }
flush chain inet bulkhead leave
add rule inet bulkhead leave ip saddr @translated4 ip daddr != @networks4 masquerade
add rule inet bulkhead leave ip6 saddr @translated6 ip6 daddr != @networks6 masquerade
";

/// Addresses by which clouds tell a machine who it is.
const METADATA4: &str = "{ 169.254.0.0/16, 100.100.100.200 }";
const METADATA6: &str = "{ fd00:ec2::254 }";
/// What is not on the Internet: the IANA's registries of special-purpose addresses.
const NOT_PUBLIC4: &str = "{ 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, \
    172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, \
    198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3 }";
const PUBLIC6: &str = "2000::/3";
const NOT_PUBLIC6: &str = "{ 2001::/23, 2001:db8::/32, 2002::/16, 3fff::/20 }";

/// What every kernel sends to routers and switches unasked: refused, and not worth a count.
const HABITS: [&str; 2] = [
    "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report, \
     nd-router-solicit } drop",
    "ip protocol igmp drop",
];

/// A container's part.
#[derive(Debug, Clone, Default)]
pub(super) struct Guest<'a> {
    pub(super) id: &'a str,
    pub(super) addresses: Vec<IpAddr>,
    /// Of its network, where it is one of ours.
    pub(super) subnets: &'a [Cidr],
    /// Without a way out.
    pub(super) internal: bool,
    pub(super) allow_host: bool,
    pub(super) policy: Option<Policy>,
    /// The host's ends of its interfaces.
    pub(super) ends: Vec<String>,
    /// Hardware addresses of bridges that these are in.
    pub(super) bridges: Vec<String>,
}

/// `--egress`.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy {
    pub(super) public: bool,
    pub(super) allowed: Vec<Allowed>,
    /// Needed for anything public.
    pub(super) name_servers: Vec<IpAddr>,
}

/// Packets that were refused, by what they were for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// The host's own addresses, broadcasts and multicasts to it.
    pub host: u64,
    /// Metadata services.
    pub metadata: u64,
    /// Containers of other networks.
    pub networks: u64,
    /// What `--egress` does not allow, or any way out of an internal network.
    pub egress: u64,
    /// Router advertisements to its neighbours.
    pub routers: u64,
}

/// Sets the rules of a container, and of its network.
pub(super) fn set(guest: &Guest) -> Result<(), NetworkError> {
    nft(&[], &text(guest)).map(drop)
}

/// Takes them away; there may be none.
pub(super) fn remove(id: &str, addresses: &[IpAddr], ends: usize) -> Result<(), NetworkError> {
    nft(&[], &removal(id, addresses, ends)).map(drop)
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
    nft(&[], &text).map(drop)
}

/// What was refused to the container `id`; nothing, if it has no rules.
pub fn refused(id: &str) -> Refused {
    let mut refused = Refused::default();
    for family in ["inet", "netdev"] {
        let Ok(json) = nft(&["-j", "list", "table", family, "bulkhead"], "") else { continue };
        count(&json, &chain(id), &mut refused);
    }
    refused
}

fn count(json: &[u8], chain: &str, refused: &mut Refused) {
    let Ok(all) = serde_json::from_slice::<Value>(json) else { return };
    let rules = all["nftables"].as_array().into_iter().flatten().map(|item| &item["rule"]);
    let ours = |rule: &&Value| rule["chain"].as_str().is_some_and(|name| is_of(name, chain));
    for rule in rules.filter(ours) {
        let expressions = rule["expr"].as_array().into_iter().flatten();
        let packets = expressions.filter_map(|it| it["counter"]["packets"].as_u64()).sum::<u64>();
        match rule["comment"].as_str() {
            Some("host") => refused.host += packets,
            Some("metadata") => refused.metadata += packets,
            Some("networks") => refused.networks += packets,
            Some("egress") => refused.egress += packets,
            Some("routers") => refused.routers += packets,
            _ => {}
        }
    }
}

/// Whether a chain is `chain`, or that of one of its interfaces.
fn is_of(name: &str, chain: &str) -> bool {
    name.strip_prefix(chain).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn chain(id: &str) -> String {
    format!("c-{}", short(id))
}

fn version(ipv4: bool) -> char {
    if ipv4 { '4' } else { '6' }
}

fn text(guest: &Guest) -> String {
    let mut text = COMMON.to_owned();
    for subnet in guest.subnets {
        let four = version(subnet.is_ipv4());
        let sets: &[&str] =
            if guest.internal { &["networks"] } else { &["networks", "translated"] };
        for set in sets {
            let _ = writeln!(text, "add element inet bulkhead {set}{four} {{ {subnet} }}");
        }
    }
    let chain = chain(guest.id);
    let _ = writeln!(text, "add chain inet bulkhead {chain}\nflush chain inet bulkhead {chain}");
    for rule in routed(guest) {
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
        for rule in bridged(guest) {
            let _ = writeln!(text, "add rule netdev bulkhead {chain}-{index} {rule}");
        }
    }
    text
}

/// New connections that go through the host or to it.
fn routed(guest: &Guest) -> Vec<String> {
    let mut rules: Vec<String> = HABITS.map(String::from).into();
    if guest.allow_host {
        rules.push("fib daddr type != unicast accept".into());
        rules.push("ip6 daddr { fe80::/10, ff00::/8 } accept".into());
    } else {
        rules.push(refuse("fib daddr type != unicast", "host"));
        rules.push(refuse("ip6 daddr { fe80::/10, ff00::/8 }", "host"));
        rules.push(refuse(&format!("ip daddr {METADATA4}"), "metadata"));
        rules.push(refuse(&format!("ip6 daddr {METADATA6}"), "metadata"));
    }
    // Where bridges show netfilter what they hand on (br_netfilter).
    if guest.policy.is_none() {
        rules.extend(guest.subnets.iter().map(|subnet| format!("{} accept", to(*subnet))));
    }
    let own = |allowed: &Allowed| guest.subnets.iter().any(|subnet| subnet.overlaps(allowed.to));
    let policy = guest.policy.iter();
    rules.extend(policy.flat_map(|it| &it.allowed).filter(|it| own(it)).map(accept));
    rules.push(refuse("ip daddr @networks4", "networks"));
    rules.push(refuse("ip6 daddr @networks6", "networks"));
    if guest.internal {
        rules.push(refuse("", "egress"));
    }
    let Some(policy) = &guest.policy else { return rules };
    rules.extend(policy.allowed.iter().map(accept));
    if policy.public {
        for server in &policy.name_servers {
            let to = to(Cidr::of(*server));
            rules.push(format!("{to} meta l4proto {{ tcp, udp }} th dport 53 accept"));
        }
        rules.push(format!("ip daddr != {NOT_PUBLIC4} accept"));
        rules.push(format!("ip6 daddr {PUBLIC6} ip6 daddr != {NOT_PUBLIC6} accept"));
    }
    rules.push(refuse("", "egress"));
    rules
}

/// Frames on their way to a bridge. No connections are known there.
fn bridged(guest: &Guest) -> Vec<String> {
    // No container is a router of its neighbours.
    let mut rules = vec![refuse("icmpv6 type nd-router-advert", "routers")];
    let Some(policy) = &guest.policy else { return rules };
    rules.push("meta protocol arp accept".into());
    rules.push("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".into());
    rules.extend(HABITS.map(String::from));
    // To the host: judged where it is routed.
    rules.extend(guest.bridges.iter().map(|mac| format!("ether daddr {mac} accept")));
    let near = |allowed: &&Allowed| guest.subnets.iter().any(|subnet| subnet.overlaps(allowed.to));
    rules.extend(policy.allowed.iter().filter(near).map(accept));
    rules.push(refuse("", "egress"));
    rules
}

fn refuse(what: &str, why: &str) -> String {
    format!("{what} counter drop comment \"{why}\"").trim_start().to_owned()
}

fn accept(allowed: &Allowed) -> String {
    let to = to(allowed.to);
    match allowed.port {
        Some((port, protocol)) => format!("{to} {protocol} dport {port} accept"),
        None => format!("{to} accept"),
    }
}

fn to(subnet: Cidr) -> String {
    format!("{} daddr {subnet}", if subnet.is_ipv4() { "ip" } else { "ip6" })
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
pub(super) fn link_local(mac: &str) -> Option<IpAddr> {
    let bytes: Vec<u8> =
        mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect::<Option<_>>()?;
    let [a, b, c, d, e, f] = bytes.try_into().ok()?;
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Some(Ipv6Addr::from(octets).into())
}

/// Runs nft; what it printed.
fn nft(arguments: &[&str], input: &str) -> Result<Vec<u8>, NetworkError> {
    use std::io::{Read, Seek};
    let failed = |error: std::io::Error| NetworkError::Rules(error.to_string());
    let program =
        program("nft").ok_or_else(|| NetworkError::Rules("there is no such program".into()))?;
    let mut command = Command::new(program);
    if arguments.is_empty() {
        command.args(["-f", "-"])
    } else {
        command.args(arguments)
    };
    command.env_clear();
    let mut said = anonymous_file().map_err(failed)?;
    let log = said.try_clone().map_err(failed)?;
    let ended = programs::run(command, input.as_bytes(), log, LIMIT).map_err(failed)?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let mut words = String::new();
    let _ = said.rewind();
    let _ = said.take(MAX_WORDS).read_to_string(&mut words);
    Err(NetworkError::Rules(format!("{} ({})", words.trim(), ended.status)))
}

/// A program of the host's administrator, also where PATH is a user's.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let directories = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
    directories.into_iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

fn anonymous_file() -> std::io::Result<std::fs::File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    Ok(nix::sys::memfd::memfd_create(c"bulkhead-nft", flags)?.into())
}

#[cfg(test)]
mod tests;
