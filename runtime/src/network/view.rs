//! What a network namespace has, as its kernel tells it: without what is the kernel's own
//! affair (counters, ages, states), so that what is the same is equal.

use std::collections::HashSet;

use nix::errno::Errno;
use protocol::network::{Ipv6, Item, MAX_ITEMS, MAX_MESSAGE};

use super::netlink::{Netlink, attribute, attributes, kind_of, push, u32_at};
use super::{NetworkError, TAP};

/// `struct ifinfomsg`, `struct ifaddrmsg`, `struct rtmsg` and `struct ndmsg`.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEIGHBOUR: usize = 12;

/// Of an interface: its settings of IPv6, and which is which (include/uapi/linux/if_link.h,
/// ipv6.h).
const IFLA_INET6_CONF: u16 = 2;
const DEVCONF_ACCEPT_RA: usize = 3;
const DEVCONF_AUTOCONF: usize = 5;
const DEVCONF_DISABLE_IPV6: usize = 26;

/// Of an address: who made it (include/uapi/linux/if_addr.h).
const IFA_PROTO: u16 = 11;
const IFAPROT_KERNEL_RA: u8 = 2;
/// What of an address's flags somebody has set.
const ADDRESS_FLAGS: u32 = libc::IFA_F_NODAD
    | libc::IFA_F_HOMEADDRESS
    | libc::IFA_F_NOPREFIXROUTE
    | libc::IFA_F_MCAUTOJOIN;
/// The same of a route's: RTNH_F_PERVASIVE, RTNH_F_ONLINK.
const ROUTE_FLAGS: u32 = 2 | 4;
const RTM_F_CLONED: u32 = 0x200;
/// Who made a route: a router's advertisement.
const RTPROT_RA: u8 = 9;

const ADDRESS_ATTRIBUTES: [u16; 5] = [
    libc::IFA_ADDRESS,
    libc::IFA_LOCAL,
    libc::IFA_LABEL,
    libc::IFA_BROADCAST,
    9, /* priority */
];
const ROUTE_ATTRIBUTES: [u16; 10] = [
    libc::RTA_DST,
    libc::RTA_SRC,
    libc::RTA_GATEWAY,
    libc::RTA_PRIORITY,
    libc::RTA_PREFSRC,
    libc::RTA_METRICS,
    libc::RTA_FLOW,
    libc::RTA_TABLE,
    libc::RTA_VIA,
    libc::RTA_PREF,
];
const NEIGHBOUR_ATTRIBUTES: [u16; 2] = [libc::NDA_DST, libc::NDA_LLADDR];

/// An interface that a machine can take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) ipv6: Option<Ipv6>,
}

/// An interface as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    interface: Interface,
    /// Part of another one (a bridge's port), which has its frames.
    port: bool,
    /// The interface of the namespace that it lies upon (a VLAN's).
    below: Option<u32>,
}

/// All that concerns a machine.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) interfaces: Vec<Interface>,
    /// Each with the interface's number.
    pub(super) addresses: Vec<(u32, Item)>,
    pub(super) routes: Vec<Item>,
    pub(super) neighbours: Vec<Item>,
    /// Names of our taps.
    pub(super) taps: Vec<String>,
    /// Why interfaces are not among those.
    pub(super) refused: Vec<NetworkError>,
    /// Routes that a guest's kernel does not have: by several gateways at once, or by tunnels
    /// of their own (RTA_ENCAP).
    pub(super) left_out: usize,
}

impl View {
    /// Looks at the namespace. An interface that is neither up nor has an address is left
    /// alone, unless it is among those that are `kept`: somebody is just setting it up, or it
    /// is one of those that the kernel makes in each namespace (gretap0).
    pub(super) fn look(netlink: &mut Netlink, kept: &HashSet<u32>) -> Result<View, NetworkError> {
        let failed = |what| move |source: Errno| NetworkError::List { what, source };
        let links = netlink.dump(libc::RTM_GETLINK, &[0; LINK]).map_err(failed("interfaces"))?;
        let taps =
            links.iter().filter_map(|link| name_of(link)).filter(|name| name.starts_with(TAP));
        let taps = taps.collect();
        let listed: Vec<_> = links.iter().filter_map(|link| listed(link)).collect();
        if listed.is_empty() {
            return Ok(View { taps, ..View::default() });
        }
        let mut dump = |kind, header: &[u8], what| netlink.dump(kind, header).map_err(failed(what));
        let addresses = dump(libc::RTM_GETADDR, &[0; ADDRESS], "addresses")?;
        let addresses: Vec<_> = addresses.iter().filter_map(|item| address(item)).collect();
        let in_use = |one: &Listed| {
            let Interface { index, up, .. } = one.interface;
            up || kept.contains(&index) || addresses.iter().any(|(of, _)| *of == index)
        };
        let mut candidates: Vec<_> = listed.iter().filter(|one| !one.port && in_use(one)).collect();
        // Of two with one hardware address, the machine keeps the one that it has: one that
        // came later can have the lower number.
        candidates.sort_by_key(|one| !kept.contains(&one.interface.index));
        let (mut interfaces, refused) = possible(candidates.into_iter(), &listed);
        interfaces.sort_by_key(|one| one.index);
        let ours: HashSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        if ours.is_empty() {
            return Ok(View { taps, refused, ..View::default() });
        }
        let mut left_out = 0;
        let routes = dump(libc::RTM_GETROUTE, &[0; ROUTE], "routes")?;
        let mut routes: Vec<_> = routes
            .iter()
            .filter_map(|item| match route(item, &ours)? {
                Route::Of(item, by_gateway) => Some((by_gateway, item)),
                Route::Unknown => {
                    left_out += 1;
                    None
                }
            })
            .collect();
        // Those to gateways after those that lead there.
        routes.sort_by_key(|(by_gateway, _)| *by_gateway);
        let neighbours = dump(libc::RTM_GETNEIGH, &[0; NEIGHBOUR], "neighbours")?;
        let view = View {
            addresses: addresses.into_iter().filter(|(of, _)| ours.contains(of)).collect(),
            routes: routes.into_iter().map(|(_, item)| item).collect(),
            neighbours: neighbours.iter().filter_map(|item| neighbour(item, &ours)).collect(),
            interfaces,
            taps,
            refused,
            left_out,
        };
        view.check()?;
        Ok(view)
    }

    /// Leaves out what belongs to other interfaces than these.
    pub(super) fn of_these(mut self, kept: &HashSet<u32>) -> View {
        let has = |item: &Item, at: usize| u32_at(&item.0, at).is_none_or(|of| kept.contains(&of));
        let leads = |item: &Item| {
            let out = item.0.get(ROUTE..).and_then(|rest| attribute(rest, libc::RTA_OIF));
            out.and_then(|out| u32_at(out, 0)).is_none_or(|of| kept.contains(&of))
        };
        self.interfaces.retain(|one| kept.contains(&one.index));
        self.addresses.retain(|(of, _)| kept.contains(of));
        self.routes.retain(leads);
        self.neighbours.retain(|item| has(item, 4));
        self
    }

    /// Numbers and names of all interfaces, whoever has them.
    pub(super) fn names(netlink: &mut Netlink) -> Result<Vec<(u32, String)>, NetworkError> {
        let failed = |source| NetworkError::List { what: "interfaces", source };
        let links = netlink.dump(libc::RTM_GETLINK, &[0; LINK]).map_err(failed)?;
        let named = |link: &Vec<u8>| Some((u32_at(link, 4)?, name_of(link)?));
        Ok(links.iter().filter_map(named).collect())
    }

    fn check(&self) -> Result<(), NetworkError> {
        let View { interfaces, addresses, routes, neighbours, .. } = self;
        let count = interfaces.len() + addresses.len() + routes.len() + neighbours.len();
        let items = addresses.iter().map(|(_, item)| item).chain(routes).chain(neighbours);
        if count > MAX_ITEMS || items.map(|item| item.0.len()).max() > Some(MAX_MESSAGE) {
            return Err(NetworkError::TooMuch { count });
        }
        Ok(())
    }
}

/// Those that a machine can have, and why not the others.
fn possible<'a>(
    candidates: impl Iterator<Item = &'a Listed>,
    listed: &[Listed],
) -> (Vec<Interface>, Vec<NetworkError>) {
    let (mut interfaces, mut refused) = (Vec::<Interface>::new(), Vec::new());
    for one in candidates {
        let Interface { name, mac, .. } = one.interface.clone();
        let below = listed.iter().find(|other| one.below == Some(other.interface.index));
        if let Some(Listed { interface: other, .. }) = below {
            refused.push(NetworkError::Stacked { name, other: other.name.clone() });
        } else if mac[0] & 1 != 0 || mac == [0; 6] {
            refused.push(NetworkError::Mac { name });
        } else if let Some(other) = interfaces.iter().find(|other| other.mac == mac) {
            refused.push(NetworkError::SameMac { name, other: other.name.clone() });
        } else {
            interfaces.push(one.interface.clone());
        }
    }
    (interfaces, refused)
}

fn name_of(link: &[u8]) -> Option<String> {
    let name = attribute(link.get(LINK..)?, libc::IFLA_IFNAME)?;
    Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

/// An Ethernet interface that is none of our taps.
fn listed(link: &[u8]) -> Option<Listed> {
    let kind = u16::from_ne_bytes(*link.get(2..)?.first_chunk()?);
    let (index, flags) = (u32_at(link, 4)?, u32_at(link, 8)?);
    let name = name_of(link)?;
    if kind != libc::ARPHRD_ETHER || name.starts_with(TAP) {
        return None;
    }
    let find = |kind| attribute(&link[LINK..], kind);
    let number = |kind| find(kind).and_then(|value| u32_at(value, 0));
    let info = find(libc::IFLA_LINKINFO).and_then(|info| attribute(info, libc::IFLA_INFO_KIND));
    let veth = info.is_some_and(|kind| kind.starts_with(b"veth"));
    // With a number of a namespace, it is an interface of another one.
    let elsewhere = find(libc::IFLA_LINK_NETNSID).is_some();
    let below = number(libc::IFLA_LINK).filter(|&below| below != index && !elsewhere && !veth);
    Some(Listed {
        interface: Interface {
            index,
            mac: *find(libc::IFLA_ADDRESS)?.first_chunk()?,
            mtu: number(libc::IFLA_MTU)?,
            up: flags & libc::IFF_UP as u32 != 0,
            ipv6: find(libc::IFLA_AF_SPEC).and_then(ipv6),
            name,
        },
        port: number(libc::IFLA_MASTER).is_some_and(|master| master != 0),
        below: below.filter(|&below| below != 0),
    })
}

/// The settings of IPv6 in an interface's IFLA_AF_SPEC.
fn ipv6(families: &[u8]) -> Option<Ipv6> {
    let settings = attribute(attribute(families, libc::AF_INET6 as u16)?, IFLA_INET6_CONF)?;
    let setting = |at: usize| u32_at(settings, 4 * at).map(u32::cast_signed);
    Some(Ipv6 {
        disable: setting(DEVCONF_DISABLE_IPV6)?,
        accept_ra: setting(DEVCONF_ACCEPT_RA)?,
        autoconf: setting(DEVCONF_AUTOCONF)?,
    })
}

/// An address that somebody has set, and its interface's number.
fn address(message: &[u8]) -> Option<(u32, Item)> {
    let mut header: [u8; ADDRESS] = *message.first_chunk()?;
    let index = u32_at(&header, 4)?;
    let rest = &message[ADDRESS..];
    let flags = attribute(rest, libc::IFA_FLAGS).and_then(|flags| u32_at(flags, 0));
    let flags = flags.unwrap_or(u32::from(header[2]));
    // The guest has it of the router itself; or another machine has it.
    let by_router = attribute(rest, IFA_PROTO).is_some_and(|proto| proto == [IFAPROT_KERNEL_RA]);
    if !is_ip(header[0]) || by_router || flags & libc::IFA_F_DADFAILED != 0 {
        return None;
    }
    let flags = flags & ADDRESS_FLAGS;
    header[2] = flags as u8;
    let mut item = header.to_vec();
    keep(&mut item, rest, &ADDRESS_ATTRIBUTES);
    if flags > 0xff {
        push(&mut item, libc::IFA_FLAGS, &flags.to_ne_bytes());
    }
    Some((index, Item(item)))
}

fn is_ip(family: u8) -> bool {
    [libc::AF_INET, libc::AF_INET6].contains(&libc::c_int::from(family))
}

/// A route, as a guest can have it.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    /// One that it can have, and whether that goes by a gateway.
    Of(Item, bool),
    /// One that its kernel does not know.
    Unknown,
}

/// A route of any table but the local one; none by an interface that is not among `ours`.
fn route(message: &[u8], ours: &HashSet<u32>) -> Option<Route> {
    let mut header: [u8; ROUTE] = *message.first_chunk()?;
    let rest = &message[ROUTE..];
    let table = attribute(rest, libc::RTA_TABLE).and_then(|table| u32_at(table, 0));
    let table = table.unwrap_or(u32::from(header[4]));
    let (protocol, kind, flags) = (header[5], header[7], u32_at(&header, 8)?);
    let refuses = matches!(
        kind,
        libc::RTN_BLACKHOLE | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT | libc::RTN_THROW
    );
    let local = table == u32::from(libc::RT_TABLE_LOCAL);
    // The guest has it of the router itself.
    let by_router = protocol == RTPROT_RA;
    if !is_ip(header[0]) || local || by_router || flags & RTM_F_CLONED != 0 {
        return None;
    }
    if !refuses && kind != libc::RTN_UNICAST {
        return None;
    }
    header[8..].copy_from_slice(&(flags & ROUTE_FLAGS).to_ne_bytes());
    let mut item = header.to_vec();
    keep(&mut item, rest, &ROUTE_ATTRIBUTES);
    let by_gateway =
        [libc::RTA_GATEWAY, libc::RTA_VIA].iter().any(|kind| attribute(rest, *kind).is_some());
    if !refuses {
        if attribute(rest, libc::RTA_MULTIPATH).is_some() {
            return Some(Route::Unknown);
        }
        let out = attribute(rest, libc::RTA_OIF)?;
        if !ours.contains(&u32_at(out, 0)?) {
            return None;
        }
        if attribute(rest, libc::RTA_ENCAP_TYPE).is_some() {
            return Some(Route::Unknown);
        }
        push(&mut item, libc::RTA_OIF, out);
    }
    Some(Route::Of(Item(item), by_gateway))
}

/// A neighbour that somebody has set.
fn neighbour(message: &[u8], ours: &HashSet<u32>) -> Option<Item> {
    let header: [u8; NEIGHBOUR] = *message.first_chunk()?;
    let state = u16::from_ne_bytes([header[8], header[9]]);
    let set = state & libc::NUD_PERMANENT != 0;
    if !is_ip(header[0]) || !set || !ours.contains(&u32_at(&header, 4)?) {
        return None;
    }
    let mut item = header.to_vec();
    keep(&mut item, &message[NEIGHBOUR..], &NEIGHBOUR_ATTRIBUTES);
    Some(Item(item))
}

fn keep(item: &mut Vec<u8>, from: &[u8], wanted: &[u16]) {
    for (kind, value) in attributes(from).filter(|(kind, _)| wanted.contains(&kind_of(*kind))) {
        push(item, kind, value);
    }
}

/// The IP address of an item of `View::addresses`.
pub(super) fn ip_of(address: &Item) -> Option<std::net::IpAddr> {
    let rest = address.0.get(ADDRESS..)?;
    // Of an interface to a single peer, IFA_ADDRESS is the peer's.
    let own = attribute(rest, libc::IFA_LOCAL).or_else(|| attribute(rest, libc::IFA_ADDRESS))?;
    match own.len() {
        4 => Some(<[u8; 4]>::try_from(own).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(own).ok()?.into()),
    }
}

#[cfg(test)]
mod tests;
