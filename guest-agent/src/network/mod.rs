//! The guest's network: what the host says it is (`protocol::network`).
//!
//! ```text
//! told: links by hardware address; messages with the host's numbers of interfaces
//!   have devices found that came later
//!   names, MTU, up
//!   what is not wanted any more goes; what is wanted is added, where it is not there
//! ```

mod netlink;
mod resolver;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use protocol::agent::{AgentError, ErrorKind};
use protocol::network::{Item, Link, MAX_ITEMS, MAX_MESSAGE, Network};

use crate::error::{SystemContext, error};
use netlink::{Netlink, attributes, push, u32_at};
use resolver::Resolver;

/// The PCI bus (Documentation/ABI/testing/sysfs-bus-pci): `rescan` has it looked at again, and
/// `remove` of a device forgets it.
const BUS: &str = "/sys/bus/pci";
/// Settings of an IPv6 interface (Documentation/networking/ip-sysctl.rst).
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// `struct ifinfomsg`, and where its index and flags are.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;
const LINK_FLAGS: usize = 8;
/// Longest name of an interface.
const MAX_NAME: usize = 15;

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// What was told last.
#[derive(Debug, Default)]
pub struct Told(RefCell<Former>);

#[derive(Debug, Default)]
struct Former {
    network: Network,
    indexes: Indexes,
    resolver: Option<Resolver>,
}

/// The host's number of an interface to the guest's.
type Indexes = HashMap<u32, u32>;

impl Told {
    /// Makes the network what `wanted` says.
    ///
    /// # Errors
    /// Names the first object that the kernel refused. The others are there, and another call
    /// tries again.
    pub fn apply(&self, wanted: Network) -> Result<(), AgentError> {
        check(&wanted)?;
        for device in wanted.links.iter().filter_map(|link| link.device) {
            plug(device)?;
        }
        let mut kernel = Netlink::open().system(|| "opening a netlink socket".into())?;
        let indexes = find(&mut kernel, &wanted.links)?;
        let mut former = self.0.borrow_mut();
        let former = &mut *former;
        let mut applied = wanted;
        for kind in &KINDS {
            let new = (kind.of)(&mut applied);
            for item in (kind.of)(&mut former.network).iter().filter(|item| !new.contains(item)) {
                // What went with its interface, or with an address, is gone already.
                if let Some(message) = (kind.translate)(&item.0, &former.indexes) {
                    let _ = kernel.change(kind.delete, 0, &message);
                }
            }
        }
        let mut first = set_links(&mut kernel, &applied.links, &indexes, former);
        // Addresses before the routes that need them. All of them: with an address the kernel
        // takes back what depends on it.
        for kind in KINDS.iter().rev() {
            (kind.of)(&mut applied).retain(|item| {
                let added = add(&mut kernel, kind, item, &indexes);
                let there = added.is_ok();
                first = std::mem::replace(&mut first, Ok(())).and(added);
                there
            });
        }
        let resolver = Resolver::at(applied.resolver, former.resolver.take());
        *former = Former { network: applied, indexes, resolver };
        first
    }
}

/// A kind of message, how it is taken back, and what of it is the host's.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    new: u16,
    delete: u16,
    flags: u16,
    of: fn(&mut Network) -> &mut Vec<Item>,
    translate: fn(&[u8], &Indexes) -> Option<Vec<u8>>,
}

/// In the order in which they are taken back.
const KINDS: [Kind; 3] = [
    Kind {
        name: "neighbour",
        new: libc::RTM_NEWNEIGH,
        delete: libc::RTM_DELNEIGH,
        flags: CREATE | REPLACE,
        of: |network| &mut network.neighbours,
        translate: |message, indexes| with_index(message, 12, indexes),
    },
    Kind {
        name: "route",
        new: libc::RTM_NEWROUTE,
        delete: libc::RTM_DELROUTE,
        flags: CREATE | APPEND,
        of: |network| &mut network.routes,
        translate: route,
    },
    Kind {
        name: "address",
        new: libc::RTM_NEWADDR,
        delete: libc::RTM_DELADDR,
        flags: CREATE | REPLACE,
        of: |network| &mut network.addresses,
        translate: |message, indexes| with_index(message, 8, indexes),
    },
];

fn add(
    kernel: &mut Netlink,
    kind: &Kind,
    item: &Item,
    indexes: &Indexes,
) -> Result<(), AgentError> {
    let malformed = || error(ErrorKind::Invalid, format!("a malformed {}: {item:?}", kind.name));
    let message = (kind.translate)(&item.0, indexes).ok_or_else(malformed)?;
    match kernel.change(kind.new, kind.flags, &message) {
        // The kernel made it itself, of an address.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        // Of an interface without IPv6, by its settings or by the container's sysctls.
        Err(Errno::EACCES | Errno::EOPNOTSUPP) if is_ip6(item) => Ok(()),
        refused => refused.system(|| format!("adding the {} ({:02x?})", kind.name, item.0)),
    }
}

/// All three kinds of messages begin with the family.
fn is_ip6(item: &Item) -> bool {
    item.0.first().is_some_and(|&family| i32::from(family) == libc::AF_INET6)
}

fn check(network: &Network) -> Result<(), AgentError> {
    let Network { links, addresses, routes, neighbours, .. } = network;
    let items = || addresses.iter().chain(routes).chain(neighbours);
    if links.len() + items().count() > MAX_ITEMS || items().any(|item| item.0.len() > MAX_MESSAGE) {
        return Err(error(ErrorKind::Invalid, "more of a network than a machine can have"));
    }
    let is_name = |name: &str| {
        let allowed = |byte: u8| byte > b' ' && byte != b'/' && byte != b':' && byte < 127;
        (1..=MAX_NAME).contains(&name.len())
            && name != "."
            && name != ".."
            && name.bytes().all(allowed)
    };
    match links.iter().find(|link| !is_name(&link.name)) {
        Some(link) => {
            Err(error(ErrorKind::Invalid, format!("{:?} is no name of an interface", link.name)))
        }
        None => Ok(()),
    }
}

/// Where the kernel has the device of the bus with this number.
fn place(device: u8) -> PathBuf {
    Path::new(BUS).join(format!("devices/0000:00:{device:02x}.0"))
}

/// Has the kernel find a device that came after the boot.
fn plug(device: u8) -> Result<(), AgentError> {
    if place(device).exists() {
        return Ok(());
    }
    write_one(&Path::new(BUS).join("rescan"))
}

/// Has the kernel forget a device that is to go.
///
/// # Errors
/// When it does not.
pub fn unplug(device: u8) -> Result<(), AgentError> {
    if !place(device).exists() {
        return Ok(());
    }
    write_one(&place(device).join("remove"))
}

fn write_one(path: &Path) -> Result<(), AgentError> {
    std::fs::write(path, "1").system(|| format!("writing 1 to {}", path.display()))
}

/// The guest's numbers of these interfaces.
fn find(kernel: &mut Netlink, links: &[Link]) -> Result<Indexes, AgentError> {
    let present = present(kernel)?;
    let number = |link: &Link| {
        let there = present.iter().find(|there| there.mac.as_slice() == link.mac);
        let missing = || {
            let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
            let message = format!("no interface of the guest has the hardware address {mac}");
            error(ErrorKind::Invalid, message)
        };
        Ok((link.index, there.ok_or_else(missing)?.index))
    };
    links.iter().map(number).collect()
}

struct Present {
    index: u32,
    name: String,
    mac: Vec<u8>,
}

fn present(kernel: &mut Netlink) -> Result<Vec<Present>, AgentError> {
    let all = kernel.dump(libc::RTM_GETLINK, &[0; LINK_HEADER]);
    let all = all.system(|| "listing the guest's interfaces".into())?;
    let one = |message: &Vec<u8>| {
        let index = u32_at(message, LINK_INDEX)?;
        let (mut name, mut mac) = (String::new(), Vec::new());
        for (kind, value) in attributes(message.get(LINK_HEADER..)?) {
            match kind {
                libc::IFLA_IFNAME => {
                    name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
                }
                libc::IFLA_ADDRESS => mac = value.to_vec(),
                _ => {}
            }
        }
        Some(Present { index, name, mac })
    };
    Ok(all.iter().filter_map(one).collect())
}

/// Sets up all of them, and gives the first error.
fn set_links(
    kernel: &mut Netlink,
    links: &[Link],
    indexes: &Indexes,
    former: &Former,
) -> Result<(), AgentError> {
    // A name may be that of another one, which is to have another itself.
    for other in present(kernel)? {
        let wanted = links.iter().find(|link| indexes.get(&link.index) == Some(&other.index));
        let taken = links.iter().any(|link| link.name == other.name);
        if taken && wanted.is_none_or(|link| link.name != other.name) {
            let away = format!("bulkhead{}", other.index);
            set_link(kernel, other.index, |message| push_name(message, &away))
                .system(|| format!("renaming interface {} of the guest", other.name))?;
        }
    }
    let mut first = Ok(());
    for link in links {
        let Some(&index) = indexes.get(&link.index) else { continue };
        // One that came anew under the host's number has the kernel's settings.
        let same = former.indexes.get(&link.index) == Some(&index);
        let before = former.network.links.iter().find(|one| same && one.index == link.index);
        first = first.and(set_up(kernel, link, index, before));
    }
    first
}

fn set_up(
    kernel: &mut Netlink,
    link: &Link,
    index: u32,
    former: Option<&Link>,
) -> Result<(), AgentError> {
    let context = || format!("setting up the guest's interface {}", link.name);
    let named = present(kernel)?.iter().any(|one| one.index == index && one.name == link.name);
    if !named {
        set_link(kernel, index, |message| push_name(message, &link.name)).system(context)?;
    }
    // The host has found out already that nobody else has the addresses.
    set_ipv6(link, "accept_dad", 0)?;
    let before = former.and_then(|link| link.ipv6).unwrap_or_default();
    let wanted = link.ipv6.unwrap_or_default();
    for (name, wanted, before) in [
        ("accept_ra", wanted.accept_ra, before.accept_ra),
        ("autoconf", wanted.autoconf, before.autoconf),
        ("disable_ipv6", wanted.disable, before.disable),
    ] {
        // What the container has set itself stays, for as long as its namespace's does.
        if wanted != before {
            set_ipv6(link, name, wanted)?;
        }
    }
    let up = set_link(kernel, index, |message| {
        let up = libc::IFF_UP as u32;
        let flags = if link.up { up } else { 0 };
        message[LINK_FLAGS..LINK_FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
        message[LINK_FLAGS + 4..LINK_FLAGS + 8].copy_from_slice(&up.to_ne_bytes());
        push(message, libc::IFLA_MTU, &link.mtu.to_ne_bytes());
    });
    up.system(context)
}

/// Sets one of an interface's settings of IPv6, which it does not have below an MTU of 1280.
fn set_ipv6(link: &Link, name: &str, value: i32) -> Result<(), AgentError> {
    let path = Path::new(IPV6).join(&link.name).join(name);
    match std::fs::write(&path, value.to_string()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written.system(|| path.display().to_string()),
    }
}

fn push_name(message: &mut Vec<u8>, name: &str) {
    push(message, libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
}

fn set_link(
    kernel: &mut Netlink,
    index: u32,
    fill: impl FnOnce(&mut Vec<u8>),
) -> Result<(), Errno> {
    let mut message = vec![0; LINK_HEADER];
    message[LINK_INDEX..LINK_INDEX + 4].copy_from_slice(&index.to_ne_bytes());
    fill(&mut message);
    kernel.change(libc::RTM_NEWLINK, 0, &message)
}

/// A message with the interface's number at offset 4, as ifaddrmsg and ndmsg have it.
fn with_index(message: &[u8], header: usize, indexes: &Indexes) -> Option<Vec<u8>> {
    let mut message = message.to_vec();
    message.get(..header)?;
    replace(&mut message, 4, indexes)?;
    Some(message)
}

/// `struct rtmsg` with its attributes.
fn route(message: &[u8], indexes: &Indexes) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let mut translated = message.get(..HEADER)?.to_vec();
    for (kind, value) in attributes(&message[HEADER..]) {
        let mut value = value.to_vec();
        match kind {
            libc::RTA_OIF | libc::RTA_IIF => replace(&mut value, 0, indexes)?,
            libc::RTA_MULTIPATH => next_hops(&mut value, indexes)?,
            _ => {}
        }
        push(&mut translated, kind, &value);
    }
    Some(translated)
}

/// Each `struct rtnexthop` of a route with several.
fn next_hops(hops: &mut [u8], indexes: &Indexes) -> Option<()> {
    let mut at = 0;
    while at < hops.len() {
        let length = usize::from(u16::from_ne_bytes(*hops.get(at..)?.first_chunk()?));
        if length < 8 {
            return None;
        }
        replace(hops, at + 4, indexes)?;
        at += length.next_multiple_of(4);
    }
    Some(())
}

fn replace(bytes: &mut [u8], at: usize, indexes: &Indexes) -> Option<()> {
    let guest = indexes.get(&u32_at(bytes, at)?)?;
    bytes.get_mut(at..at + 4)?.copy_from_slice(&guest.to_ne_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes() -> Indexes {
        HashMap::from([(7, 2), (9, 3)])
    }

    #[test]
    fn numbers_of_interfaces_become_the_guests() {
        let mut address = vec![2, 24, 0, 0];
        address.extend(7u32.to_ne_bytes());
        push(&mut address, 1, &[10, 0, 0, 2]);
        let translated = with_index(&address, 8, &indexes()).unwrap();
        assert_eq!(u32_at(&translated, 4), Some(2));
        assert_eq!(translated[8..], address[8..]);

        let mut message = vec![0; 12];
        push(&mut message, libc::RTA_GATEWAY, &[10, 0, 0, 1]);
        push(&mut message, libc::RTA_OIF, &9u32.to_ne_bytes());
        let mut hops = Vec::new();
        for host in [7u32, 9] {
            hops.extend([16, 0, 0, 0]);
            hops.extend(host.to_ne_bytes());
            push(&mut hops, libc::RTA_GATEWAY, &[10, 0, 0, 1]);
        }
        push(&mut message, libc::RTA_MULTIPATH, &hops);
        let translated = route(&message, &indexes()).unwrap();
        let all: Vec<_> = attributes(&translated[12..]).collect();
        assert_eq!(all[0], (libc::RTA_GATEWAY, &[10, 0, 0, 1][..]));
        assert_eq!(all[1], (libc::RTA_OIF, &3u32.to_ne_bytes()[..]));
        assert_eq!((u32_at(all[2].1, 4), u32_at(all[2].1, 20)), (Some(2), Some(3)));
    }

    #[test]
    fn what_names_no_interface_of_ours_is_malformed() {
        let mut message = vec![0; 12];
        push(&mut message, libc::RTA_OIF, &1u32.to_ne_bytes());
        assert_eq!(route(&message, &indexes()), None);
        assert_eq!(route(&[0; 11], &indexes()), None);
        assert_eq!(with_index(&[0; 7], 8, &indexes()), None);
        let mut hops = [0; 8];
        assert_eq!(next_hops(&mut hops, &indexes()), None);
    }
}
