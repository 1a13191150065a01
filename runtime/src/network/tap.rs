//! Taps, and how they are tied to interfaces.
//!
//! ```text
//! interface  ingress qdisc: matchall -> mirred, out by the tap          -> guest
//! tap        ingress qdisc: matchall -> mirred, out by the interface   <-  guest
//! ```
//!
//! What arrives at either leaves by the other before any protocol of the host's sees it.

use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption,
};
use nix::errno::Errno;

use super::netlink::Netlink;
use super::view::Interface;
use super::{NetworkError, TAP};
use crate::sys::tun::{self, Queue};

/// Our filter's place among those of an interface: the last, so that others come before.
const PRIORITY: u16 = u16::MAX;
/// Largest MTU of a tap, and the least (drivers/net/tun.c).
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
const INGRESS: &str = "ingress";

/// Name of the tap of the interface with this number.
pub(super) fn name(interface: u32) -> String {
    format!("{TAP}{interface}")
}

/// Makes a tap for `interface` of these queues, and ties both.
pub(super) fn make(
    netlink: &mut Netlink,
    interface: &Interface,
    queues: &[OwnedFd],
) -> Result<u32, NetworkError> {
    let name = name(interface.index);
    let failed = |source| NetworkError::Tap { name: interface.name.clone(), source };
    for (at, queue) in queues.iter().enumerate() {
        let kind = match (queues.len(), at) {
            (1, _) => Queue::Only,
            (_, 0) => Queue::First,
            _ => Queue::Further,
        };
        match tun::attach(queue.as_fd(), &name, kind) {
            Err(Errno::EBUSY) => return Err(NetworkError::Occupied { name }),
            other => other.map_err(failed)?,
        }
    }
    let index = nix::net::if_::if_nametoindex(name.as_str()).map_err(failed)?;
    silence(netlink, index).map_err(failed)?;
    follow(netlink, index, interface).map_err(failed)?;
    tie(netlink, index, interface.index)
        .and_then(|()| tie(netlink, interface.index, index))
        .map_err(|source| NetworkError::Tie { name: interface.name.clone(), source })?;
    Ok(index)
}

/// A host must not speak to the guest by the tap itself.
fn silence(netlink: &mut Netlink, tap: u32) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.header.index = tap;
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
    match netlink.change(libc::RTM_NEWLINK, 0, &message) {
        // A host without IPv6.
        Err(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Gives the tap the interface's MTU, and takes it up.
pub(super) fn follow(netlink: &mut Netlink, tap: u32, interface: &Interface) -> Result<(), Errno> {
    let mut message = LinkMessage::default();
    message.header.index = tap;
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    let mtu = interface.mtu.clamp(*MTU.start(), *MTU.end());
    message.attributes.push(LinkAttribute::Mtu(mtu));
    netlink.change(libc::RTM_NEWLINK, 0, &message)
}

/// Sends on by `to` what arrives at `from`. What a former machine, which was killed, left
/// there is replaced.
fn tie(netlink: &mut Netlink, from: u32, to: u32) -> Result<(), Errno> {
    match netlink.change(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &qdisc(from)) {
        // One is there, or clsact, which is as good: the filter tells.
        Ok(()) | Err(Errno::EEXIST | Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    cut(netlink, from)?;
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let mut message = filter(from);
    let action = TcFilterMatchAllOption::Action(vec![action]);
    message.attributes.push(TcAttribute::Options(vec![TcOption::MatchAll(action)]));
    netlink.change(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &message)
}

/// Takes our filter off an interface, if it is there, and the qdisc, where nobody else has a
/// filter in it.
pub(super) fn untie(netlink: &mut Netlink, interface: u32) -> Result<(), Errno> {
    cut(netlink, interface)?;
    let mut ours = filter(interface);
    ours.header.info = 0;
    let mut all = vec![0; netlink_packet_core::Emitable::buffer_len(&ours.header)];
    netlink_packet_core::Emitable::emit(&ours.header, &mut all);
    match netlink.dump(libc::RTM_GETTFILTER, &all) {
        Ok(left) if left.is_empty() => {}
        Ok(_) | Err(Errno::ENODEV | Errno::EINVAL | Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    match netlink.change(libc::RTM_DELQDISC, 0, &qdisc(interface)) {
        // There is none, or it is clsact, which was not made here.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// Takes our filter off, if it is there.
fn cut(netlink: &mut Netlink, interface: u32) -> Result<(), Errno> {
    match netlink.change(libc::RTM_DELTFILTER, 0, &filter(interface)) {
        // No filter, no qdisc, no interface any more.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(()),
        other => other,
    }
}

fn qdisc(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    message.header.parent = TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind(INGRESS.into()));
    message
}

/// Names our filter.
fn filter(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    let all = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = TcHandle { major: PRIORITY, minor: all }.into();
    message.attributes.push(TcAttribute::Kind(TcFilterMatchAll::KIND.into()));
    message
}
