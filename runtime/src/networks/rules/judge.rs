//! The rules by which a container's packets are judged, as nft has them.

use std::net::IpAddr;

use super::Guest;
use crate::networks::cidr::Cidr;
use crate::networks::egress::Allowed;
use crate::networks::special::{
    METADATA4, METADATA6, NOT_PUBLIC4, NOT_PUBLIC6, PUBLIC6, is_metadata,
};

const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }";

/// What every kernel sends to routers and switches unasked: refused, and not worth a count.
pub(super) const HABITS: [&str; 2] = [
    "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report, \
     nd-router-solicit } drop",
    "ip protocol igmp drop",
];

/// What goes through the host or to it, but for answers.
pub(super) fn routed(guest: &Guest) -> Vec<String> {
    // Neighbours of the link, which no connection covers: what is routed has others.
    let six = guest.subnets.iter().filter(|subnet| !subnet.is_ipv4()).map(Cidr::to_string);
    let near: Vec<String> = std::iter::once("fe80::/10".to_owned()).chain(six).collect();
    let mut rules = vec![
        format!("{NEIGHBOURS} fib daddr type != unicast accept"),
        format!("{NEIGHBOURS} ip6 daddr {{ {} }} accept", near.join(", ")),
    ];
    rules.extend(HABITS.map(String::from));
    // Published ports of loopback make the host route these (route_localnet).
    rules.push(refuse("ip daddr 127.0.0.0/8", "host"));
    if guest.allow_host {
        rules.push("fib daddr type != unicast accept".into());
        rules.push("ip6 daddr { fe80::/10, ff00::/8 } accept".into());
    } else {
        rules.push(refuse("fib daddr type != unicast", "host"));
        rules.push(refuse("ip6 daddr { fe80::/10, ff00::/8 }", "host"));
        rules.extend(metadata(guest));
    }
    // Where bridges show netfilter what they hand on (br_netfilter).
    if guest.policy.is_none() {
        rules.extend(guest.subnets.iter().map(|subnet| format!("{} accept", to(*subnet))));
    }
    rules.extend(allowed_nearby(guest));
    rules.push(refuse("ip daddr @networks4", "networks"));
    rules.push(refuse("ip6 daddr @networks6", "networks"));
    if guest.internal {
        rules.push(refuse("", "egress"));
    }
    let Some(policy) = &guest.policy else { return rules };
    rules.extend(policy.allowed.iter().map(accept));
    if policy.public {
        rules.extend(guest.name_servers.iter().map(|server| ask(*server)));
        let [four, six] = [NOT_PUBLIC4.join(", "), NOT_PUBLIC6.join(", ")];
        rules.push(format!("ip daddr != {{ {four} }} accept"));
        rules.push(format!("ip6 daddr {PUBLIC6} ip6 daddr != {{ {six} }} accept"));
    }
    rules.push(refuse("", "egress"));
    rules
}

/// Metadata services are refused, but for names where a cloud has its name server there.
fn metadata(guest: &Guest) -> Vec<String> {
    let asks = !guest.internal && guest.policy.as_ref().is_none_or(|policy| policy.public);
    let servers = guest.name_servers.iter().filter(|server| asks && is_metadata(**server));
    let mut rules: Vec<String> = servers.map(|server| ask(*server)).collect();
    rules.push(refuse(&format!("ip daddr {{ {} }}", METADATA4.join(", ")), "metadata"));
    rules.push(refuse(&format!("ip6 daddr {{ {} }}", METADATA6.join(", ")), "metadata"));
    rules
}

/// Frames that come from the container's end. No connections are known there.
pub(super) fn bridged(guest: &Guest) -> Vec<String> {
    let mut rules = own_addresses(guest);
    // No container is a router of its neighbours.
    rules.push(refuse("icmpv6 type nd-router-advert", "routers"));
    if guest.policy.is_none() {
        return rules;
    }
    rules.push("meta protocol arp accept".into());
    rules.push(format!("{NEIGHBOURS} accept"));
    rules.extend(HABITS.map(String::from));
    // To the host: judged where it is routed.
    rules.extend(guest.macs.iter().map(|mac| format!("ether daddr {mac} accept")));
    rules.extend(allowed_nearby(guest));
    rules.push(refuse("", "egress"));
    rules
}

/// What comes from elsewhere would find no chain by its source: the guard knows the
/// interface's addresses as the kernel has them, these rules those that CNI's plugins told.
fn own_addresses(guest: &Guest) -> Vec<String> {
    let (four, six): (Vec<IpAddr>, Vec<IpAddr>) =
        guest.addresses.iter().partition(|address| address.is_ipv4());
    let list = |all: &[IpAddr]| {
        let mut all: Vec<String> = all.iter().map(IpAddr::to_string).collect();
        all.sort_unstable();
        all.dedup();
        all.join(", ")
    };
    let mut rules = vec![refuse("ip6 saddr :: meta l4proto != ipv6-icmp", "host")];
    rules.push(match four.is_empty() {
        true => refuse("meta protocol ip", "host"),
        false => refuse(&format!("ip saddr != {{ {} }}", list(&four)), "host"),
    });
    let unspecified = [&[IpAddr::from([0u16; 8])], &six[..]].concat();
    rules.push(refuse(&format!("ip6 saddr != {{ {} }}", list(&unspecified)), "host"));
    rules.push(match targets(&six) {
        None => refuse("icmpv6 type nd-neighbor-advert", "host"),
        // The target, which older programs of nftables have no name for.
        Some(own) => {
            refuse(&format!("icmpv6 type nd-neighbor-advert @th,64,128 != {{ {own} }}"), "host")
        }
    });
    rules
}

/// Addresses of IPv6 as numbers.
fn targets(all: &[IpAddr]) -> Option<String> {
    let number = |address: &IpAddr| match address {
        IpAddr::V6(six) => Some(format!("{:#034x}", six.to_bits())),
        IpAddr::V4(_) => None,
    };
    let mut all: Vec<String> = all.iter().filter_map(number).collect();
    all.sort_unstable();
    all.dedup();
    (!all.is_empty()).then(|| all.join(", "))
}

/// What a policy allows of the container's own network: no more of an entry that is wider,
/// as the rest of it may be in other networks.
fn allowed_nearby(guest: &Guest) -> Vec<String> {
    let entries = guest.policy.iter().flat_map(|policy| &policy.allowed);
    let parts = entries.flat_map(|entry| {
        let parts = guest.subnets.iter().filter_map(|subnet| subnet.intersection(entry.to));
        parts.map(|to| accept(&Allowed { to, port: entry.port }))
    });
    parts.collect()
}

fn refuse(what: &str, why: &str) -> String {
    format!("{what} counter drop comment \"{why}\"").trim_start().to_owned()
}

/// Questions to a name server.
fn ask(server: IpAddr) -> String {
    format!("{} meta l4proto {{ tcp, udp }} th dport 53 accept", to(Cidr::of(server)))
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
