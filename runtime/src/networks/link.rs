//! What the host's kernel knows of links and routes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::NetworkError;
use super::cidr::Cidr;

const CLASS: &str = "/sys/class/net";

/// Whether there is an interface `name`.
pub(super) fn exists(name: &str) -> bool {
    Path::new(CLASS).join(name).symlink_metadata().is_ok()
}

/// Whether it is a bridge.
pub(super) fn is_bridge(name: &str) -> bool {
    Path::new(CLASS).join(name).join("bridge").exists()
}

/// Its hardware address.
pub(super) fn mac(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new(CLASS).join(name).join("address")).ok()?;
    Some(text.trim().to_owned())
}

/// Removes an interface.
pub(super) fn remove(name: &str) -> Result<(), NetworkError> {
    let failed =
        |source| NetworkError::System { what: format!("remove the interface {name}"), source };
    let path = Path::new(CLASS).join(name).join("ifindex");
    let index = std::fs::read_to_string(path).map_err(failed)?;
    let index = index.trim().parse().map_err(|error| failed(std::io::Error::other(error)))?;
    crate::network::remove_link(index).map_err(|errno| failed(errno.into()))
}

/// Destinations that the host has routes to, but for the default ones.
pub(super) fn routed() -> Vec<Cidr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut all: Vec<Cidr> = read("/proc/net/route").lines().filter_map(ipv4).collect();
    all.extend(read("/proc/net/ipv6_route").lines().filter_map(ipv6));
    all.retain(|subnet| subnet.length() > 0);
    all
}

/// Whether the host has a default route of IPv4, and of IPv6.
pub(super) fn ways_out() -> (bool, bool) {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let four = read("/proc/net/route").lines().filter_map(ipv4).any(|to| to.length() == 0);
    (four, read("/proc/net/ipv6_route").lines().any(is_way_out))
}

/// Whether a line of /proc/net/ipv6_route is a default route that leads somewhere.
fn is_way_out(line: &str) -> bool {
    /// RTF_REJECT of the kernel's linux/route.h: the route of last resort.
    const REJECT: u32 = 0x0200;
    let words: Vec<&str> = line.split_whitespace().collect();
    let flags = words.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
    ipv6(line).is_some_and(|to| to.length() == 0)
        && flags.is_some_and(|flags| flags & REJECT == 0)
        && words.get(9) != Some(&"lo")
}

/// The interface at which the host has its default route of IPv6 from a router, if it would
/// lose that by beginning to forward.
pub(super) fn router_of_ipv6() -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let conf = |of: &str, key: &str| read(&format!("/proc/sys/net/ipv6/conf/{of}/{key}"));
    if conf("all", "forwarding").trim() == "1" {
        return None;
    }
    let routes = read("/proc/net/ipv6_route");
    let mut interfaces = routes.lines().filter_map(advertised_default);
    interfaces.find(|interface| conf(interface, "accept_ra").trim() != "2").map(str::to_owned)
}

/// The interface of a line of /proc/net/ipv6_route that is a default route of a router's.
fn advertised_default(line: &str) -> Option<&str> {
    /// RTF_ADDRCONF of the kernel's linux/ipv6_route.h.
    const ADVERTISED: u32 = 0x0004_0000;
    let words: Vec<&str> = line.split_whitespace().collect();
    let flags = u32::from_str_radix(words.get(8)?, 16).ok()?;
    let default = words[0].bytes().all(|digit| digit == b'0') && words[1] == "00";
    (default && flags & ADVERTISED != 0).then(|| words.get(9).copied())?
}

/// A line of /proc/net/route.
fn ipv4(line: &str) -> Option<Cidr> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
    // Both are in network order, printed as numbers of this machine's.
    let (to, mask) = (number(1)?.swap_bytes(), number(7)?.swap_bytes());
    Cidr::new(Ipv4Addr::from_bits(to).into(), u8::try_from(mask.leading_ones()).ok()?)
}

/// A line of /proc/net/ipv6_route.
fn ipv6(line: &str) -> Option<Cidr> {
    let mut words = line.split_whitespace();
    let address = u128::from_str_radix(words.next()?, 16).ok()?;
    let length = u8::from_str_radix(words.next()?, 16).ok()?;
    Cidr::new(Ipv6Addr::from_bits(address).into(), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read() {
        let line = "eth0\t000010AC\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0";
        assert_eq!(ipv4(line).unwrap().to_string(), "172.16.0.0/20");
        assert_eq!(ipv4("Iface Destination Gateway"), None);
        let line = "fd000000000000000000000000000000 40 00000000 00 0 0 0 0 0 eth0";
        assert_eq!(ipv6(line).unwrap().to_string(), "fd00::/64");
    }

    #[test]
    fn default_routes_of_routers_are_known() {
        let zero = "0".repeat(32);
        let line = |to: &str, length: &str, flags: &str| {
            format!("{to} {length} {zero} 00 fe80000000000000 00000400 1 0 {flags}     eth0")
        };
        assert_eq!(advertised_default(&line(&zero, "00", "00450003")), Some("eth0"));
        assert_eq!(advertised_default(&line(&zero, "00", "00000003")), None, "a static one");
        assert_eq!(advertised_default(&line(&zero, "40", "00450003")), None);
        let other = zero.replace("00000000", "fd000000");
        assert_eq!(advertised_default(&line(&other, "00", "00450003")), None);
        assert_eq!(advertised_default("0 00"), None);
    }

    #[test]
    fn ways_out_are_known() {
        let zero = "0".repeat(32);
        let line = |length: &str, flags: &str, interface: &str| {
            format!("{zero} {length} {zero} 00 {zero} 00000400 1 0 {flags}     {interface}")
        };
        assert!(is_way_out(&line("00", "00450003", "eth0")));
        assert!(!is_way_out(&line("00", "00200200", "lo")), "the last resort");
        assert!(!is_way_out(&line("40", "00000001", "eth0")) && !is_way_out(""));
    }

    #[test]
    fn interfaces_are_known_by_name() {
        assert!(exists("lo") && !exists("no-such-interface") && !is_bridge("lo"));
        assert_eq!(mac("lo").as_deref(), Some("00:00:00:00:00:00"));
        assert!(remove("no-such-interface").is_err());
    }
}
