//! An interface of our own making, whose frames somebody of ours carries: a tap in the
//! namespace that is to be a machine's. And where the host's routes lead.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::NetworkError;
use super::netlink::{Netlink, attribute, u32_at};
use crate::sys::tun::{self, Queue};

/// Of `struct rtmsg`: its length, and where the type of route is.
const ROUTE: usize = 12;
const ROUTE_TYPE: usize = 7;

/// What the interface is to be.
#[derive(Debug)]
pub(crate) struct Made<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    /// Each with the length of its subnet.
    pub(crate) addresses: &'a [(IpAddr, u8)],
    /// The ways out.
    pub(crate) gateways: &'a [IpAddr],
}

/// Makes it in the network namespace that this thread is in. It ends with the descriptor,
/// which gives, and takes, one whole frame at a time, and never waits.
pub(crate) fn make(made: &Made) -> Result<OwnedFd, NetworkError> {
    let failed = |source| NetworkError::Tap { name: made.name.into(), source };
    let queue = tun::open().map_err(NetworkError::Open)?;
    tun::attach(queue.as_fd(), made.name, Queue::Bare).map_err(failed)?;
    fcntl(&queue, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).map_err(failed)?;
    set_up(&mut Netlink::open().map_err(NetworkError::Socket)?, made).map_err(failed)?;
    Ok(queue)
}

fn set_up(netlink: &mut Netlink, made: &Made) -> Result<(), Errno> {
    let index = nix::net::if_::if_nametoindex(made.name)?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::Address(made.mac.to_vec()));
    link.attributes.push(LinkAttribute::Mtu(made.mtu));
    // The namespace has nothing to say on it by itself.
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
    netlink.change(libc::RTM_NEWLINK, 0, &link)?;
    let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    for (address, length) in made.addresses {
        let mut message = AddressMessage::default();
        message.header.family = family(*address);
        message.header.prefix_len = *length;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.index = index;
        message.attributes =
            vec![AddressAttribute::Address(*address), AddressAttribute::Local(*address)];
        netlink.change(libc::RTM_NEWADDR, new, &message)?;
    }
    let mut up = LinkMessage::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    netlink.change(libc::RTM_NEWLINK, 0, &up)?;
    for gateway in made.gateways {
        let mut route = RouteMessage::default();
        route.header.address_family = family(*gateway);
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Gateway(to(*gateway)), RouteAttribute::Oif(index)];
        netlink.change(libc::RTM_NEWROUTE, new, &route)?;
    }
    Ok(())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn to(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(four) => RouteAddress::Inet(four),
        IpAddr::V6(six) => RouteAddress::Inet6(six),
    }
}

/// Where the host would send a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// To somebody else, and not to itself or to many.
    pub(crate) unicast: bool,
    /// By this interface.
    pub(crate) out: u32,
}

/// Asks for routes of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Routes(Netlink);

impl Routes {
    pub(crate) fn open() -> Result<Routes, NetworkError> {
        Ok(Routes(Netlink::open().map_err(NetworkError::Socket)?))
    }

    /// The way to an address.
    pub(crate) fn to(&mut self, address: IpAddr) -> Result<Way, Errno> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        question.attributes = vec![RouteAttribute::Destination(to(address))];
        let route = self.0.ask(libc::RTM_GETROUTE, &question)?.ok_or(Errno::EPROTO)?;
        let kind = *route.get(ROUTE_TYPE).ok_or(Errno::EPROTO)?;
        let out = attribute(route.get(ROUTE..).unwrap_or_default(), libc::RTA_OIF);
        let out = out.and_then(|out| u32_at(out, 0)).unwrap_or(0);
        Ok(Way { unicast: kind == libc::RTN_UNICAST, out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_knows_itself() {
        let mut routes = Routes::open().unwrap();
        for own in ["127.0.0.1", "127.1.2.3"] {
            let way = routes.to(own.parse().unwrap()).unwrap();
            assert_eq!((way.unicast, way.out), (false, 1), "{own}");
        }
        // Whether there is a way or not: no address of the host's.
        let other = routes.to("192.0.2.1".parse().unwrap());
        assert!(other.is_err() || other.unwrap().unicast);
    }
}
