//! Taps, and how they are tied to interfaces.
//!
//! ```text
//! interface  ingress qdisc: matchall -> mirred, out by the tap          -> guest
//! tap        ingress qdisc: matchall -> mirred, out by the interface   <-  guest
//!            noqueue at its root
//! ```
//!
//! What arrives at either leaves by the other before any protocol of the host's sees it. The
//! number of a filter of ours, its handle, is that of the interface to which it sends: each
//! machine takes off its own ones alone.

use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::Emitable;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption,
};
use nix::errno::Errno;

use super::netlink::{Netlink, attribute, u32_at};
use super::view::Interface;
use super::{NetworkError, TAP};
use crate::sys::tun::{self, Queue};

/// Our filter's place among those of an interface: the last, so that others come before.
const PRIORITY: u16 = u16::MAX;
/// Largest MTU of a tap, and the least (drivers/net/tun.c).
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
const INGRESS: &str = "ingress";
const NOQUEUE: &str = "noqueue";
/// The handle that stands for all filters of our priority.
const ALL: u32 = 0;

/// `struct tcmsg`, and what is in one of a filter (include/uapi/linux/rtnetlink.h,
/// pkt_cls.h, tc_act/tc_mirred.h).
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
/// Of `struct tc_mirred`.
const MIRRED_IFINDEX: usize = 24;

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
    shorten(netlink, index).map_err(failed)?;
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

/// Frames go straight into the tap's own queue: it never tells a queueing discipline to wait
/// (tun_net_xmit in drivers/net/tun.c of 6.12), so that one before it costs each frame
/// something and orders nothing. Linux has this since 4.3.
fn shorten(netlink: &mut Netlink, tap: u32) -> Result<(), Errno> {
    let mut message = TcMessage::with_index(tap as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind(NOQUEUE.into()));
    netlink.change(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &message)
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
    let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let made = match netlink.change(libc::RTM_NEWQDISC, new, &qdisc(from)) {
        Ok(()) => true,
        // One is there, or clsact, which is as good: the filter tells.
        Err(Errno::EEXIST | Errno::EINVAL) => false,
        Err(errno) => return Err(errno),
    };
    let tied = cut(netlink, from, ALL).and_then(|_| redirect(netlink, from, to));
    if tied.is_err() && made {
        let _ = netlink.change(libc::RTM_DELQDISC, 0, &qdisc(from));
    }
    tied
}

fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> Result<(), Errno> {
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
    let mut message = filter(from, to);
    let action = TcFilterMatchAllOption::Action(vec![action]);
    message.attributes.push(TcAttribute::Options(vec![TcOption::MatchAll(action)]));
    netlink.change(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &message)
}

/// Takes the filter that leads to `tap` off an interface, if it is there, and with it the
/// qdisc, where nobody else has a filter in it.
pub(super) fn untie(netlink: &mut Netlink, interface: u32, tap: u32) -> Result<(), Errno> {
    if !cut(netlink, interface, tap)? || !filters(netlink, interface)?.is_empty() {
        return Ok(());
    }
    match netlink.change(libc::RTM_DELQDISC, 0, &qdisc(interface)) {
        // It is clsact, which was not made here, or has gone meanwhile.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// Where the filters of ours lead that an interface has, though nothing is there any more:
/// `lives` tells of a number of an interface.
pub(super) fn astray(
    netlink: &mut Netlink,
    interface: u32,
    lives: impl Fn(u32) -> bool,
) -> Result<Vec<u32>, Errno> {
    let all = filters(netlink, interface)?;
    let led = all.iter().filter_map(|filter| ours(filter));
    Ok(led.filter(|(tap, target)| !lives(*tap) && !lives(*target)).map(|(tap, _)| tap).collect())
}

/// The handle of a filter of ours, and the interface to which it sends, as a dump has it: 0
/// where that has gone (net/sched/act_mirred.c).
fn ours(filter: &[u8]) -> Option<(u32, u32)> {
    let (handle, info) = (u32_at(filter, 8)?, u32_at(filter, 16)?);
    let rest = filter.get(HEADER..)?;
    let is = |value: Option<&[u8]>, name: &str| {
        value.is_some_and(|value| value.strip_suffix(b"\0") == Some(name.as_bytes()))
    };
    if info >> 16 != u32::from(PRIORITY) || !is(attribute(rest, TCA_KIND), TcFilterMatchAll::KIND) {
        return None;
    }
    let first = attribute(attribute(attribute(rest, TCA_OPTIONS)?, TCA_MATCHALL_ACT)?, 1)?;
    if !is(attribute(first, TCA_ACT_KIND), TcActionMirror::KIND) {
        return None;
    }
    let mirror = attribute(attribute(first, TCA_ACT_OPTIONS)?, TCA_MIRRED_PARMS)?;
    Some((handle, u32_at(mirror, MIRRED_IFINDEX)?))
}

/// All filters at the ingress of an interface.
fn filters(netlink: &mut Netlink, interface: u32) -> Result<Vec<Vec<u8>>, Errno> {
    let mut any = filter(interface, ALL).header;
    any.info = 0;
    let mut request = vec![0; any.buffer_len()];
    any.emit(&mut request);
    match netlink.dump(libc::RTM_GETTFILTER, &request) {
        // No qdisc, no interface any more.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(Vec::new()),
        other => other,
    }
}

/// Takes the filter of ours with this handle off, and says whether it was there.
fn cut(netlink: &mut Netlink, interface: u32, handle: u32) -> Result<bool, Errno> {
    match netlink.change(libc::RTM_DELTFILTER, 0, &filter(interface, handle)) {
        Ok(()) => Ok(true),
        // No filter, no qdisc, no interface any more.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn qdisc(interface: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    message.header.parent = TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind(INGRESS.into()));
    message
}

/// Names a filter of ours.
fn filter(interface: u32, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.handle = handle.into();
    message.header.parent = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };
    let all = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = TcHandle { major: PRIORITY, minor: all }.into();
    message.attributes.push(TcAttribute::Kind(TcFilterMatchAll::KIND.into()));
    message
}

#[cfg(test)]
mod tests {
    use super::super::netlink::push;
    use super::*;

    fn dumped(info: u32, kind: &[u8], action: &[u8], target: u32) -> Vec<u8> {
        let nest = |kind, value: &[u8]| {
            let mut nested = Vec::new();
            push(&mut nested, kind, value);
            nested
        };
        let mut mirror = vec![0; MIRRED_IFINDEX];
        mirror.extend(target.to_ne_bytes());
        let mut one = nest(TCA_ACT_KIND, action);
        push(&mut one, TCA_ACT_OPTIONS, &nest(TCA_MIRRED_PARMS, &mirror));
        let mut message = vec![0; HEADER];
        message[8..12].copy_from_slice(&9u32.to_ne_bytes());
        message[16..20].copy_from_slice(&info.to_ne_bytes());
        push(&mut message, TCA_KIND, kind);
        push(&mut message, TCA_OPTIONS, &nest(TCA_MATCHALL_ACT, &nest(1, &one)));
        message
    }

    #[test]
    fn filters_of_others_are_not_ours() {
        let own = 0xffff_0003;
        assert_eq!(ours(&dumped(own, b"matchall\0", b"mirred\0", 4)), Some((9, 4)));
        assert_eq!(ours(&dumped(1 << 16, b"matchall\0", b"mirred\0", 4)), None);
        assert_eq!(ours(&dumped(own, b"flower\0", b"mirred\0", 4)), None);
        assert_eq!(ours(&dumped(own, b"matchall\0", b"gact\0", 4)), None);
        let whole = dumped(own, b"matchall\0", b"mirred\0", 4);
        assert!((0..whole.len()).all(|length| ours(&whole[..length]).is_none()));
    }
}
