//! What property tests and the fuzz targets share: a guest that sends whatever it likes, and
//! judgements of its frames that are written apart from ours. Frames are read as passt reads
//! them, with what of it we do not serve: fragments, extension headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::judge::{Judge, Place, Rules};
use super::relay::{Frames, MAX_FRAME};
use crate::networks::egress::Allowed;
use crate::networks::options::Protocol;
use crate::networks::rules::Policy;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 86, 0, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 1);
const OF_HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const OF_NETWORK: [u8; 2] = [10, 87];
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const LISTED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const LISTED_PORT: u16 = 80;

/// Longest that passt keeps a socket of UDP, and we an answer open.
const ANSWERS: Duration = Duration::from_secs(180);

/// The operations are taken from some bytes, until these end.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn some(&mut self, length: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        first
    }
}

/// A conversation, as passt would open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conversation {
    protocol: u8,
    remote: IpAddr,
    port: u16,
    own: u16,
}

/// What passt makes of a frame.
struct Reading {
    /// What it opens, if it does.
    opens: Option<Conversation>,
    /// Whether every other reader makes the same of it.
    plain: bool,
    protocol: u8,
}

/// `remote` is where the frame goes to, or comes from.
fn read(frame: &[u8], to_guest: bool) -> Option<Reading> {
    let packet = frame.get(14..)?;
    let (mut protocol, mut rest, mut plain, remote);
    match (frame[12], frame[13]) {
        (8, 0) if packet.len() >= 20 => {
            let header = usize::from(packet[0] % 16) * 4;
            protocol = packet[9];
            rest = packet.get(header.max(20)..)?;
            plain = packet[0] / 16 == 4 && header >= 20 && packet[6] & 0x3f == 0 && packet[7] == 0;
            let at = if to_guest { 12 } else { 16 };
            remote = IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).ok()?);
        }
        (0x86, 0xdd) if packet.len() >= 40 => {
            (protocol, rest, plain) = (packet[6], &packet[40..], packet[0] / 16 == 6);
            while matches!(protocol, 0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140 | 253 | 254) {
                (protocol, plain) = (*rest.first()?, false);
                rest = rest.get((usize::from(*rest.get(1)?) + 1) * 8..)?;
            }
            let at = if to_guest { 8 } else { 24 };
            remote = IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).ok()?);
        }
        _ => return None,
    }
    let two = |at: usize| Some(u16::from(*rest.get(at)?) * 256 + u16::from(*rest.get(at + 1)?));
    let (own, port) = if to_guest { (two(2), two(0)) } else { (two(0), two(2)) };
    let of_ports = || Some(Conversation { protocol, remote, port: port?, own: own? });
    let echo = || Some(Conversation { protocol, remote, port: 0, own: two(4)? });
    let opens = match (protocol, remote.is_ipv4()) {
        (TCP, _) if rest.get(13)? & 2 != 0 => of_ports(),
        (UDP, _) => of_ports(),
        (ICMP, true) if rest.first() == Some(&8) && !to_guest => echo(),
        (ICMPV6, false) if rest.first() == Some(&128) && !to_guest => echo(),
        _ => None,
    };
    Some(Reading { opens, plain, protocol })
}

/// Whether nothing but an answer may go there, whatever the rules.
fn never(remote: IpAddr) -> bool {
    match remote {
        IpAddr::V4(four) => {
            let [a, b, ..] = four.octets();
            let own = a == 0 || a == 127 || (224..240).contains(&a) || four == Ipv4Addr::BROADCAST;
            own || four == GATEWAY4 || [a, b] == OF_NETWORK
        }
        IpAddr::V6(six) => {
            let words = six.segments();
            // Also IPv4 in addresses of IPv6, in all three forms.
            let embedded = words[..6] == [0; 6]
                || words[..6] == [0, 0, 0, 0, 0, 0xffff]
                || words[..6] == [0, 0, 0, 0, 0xffff, 0];
            let near = words[0] & 0xffc0 == 0xfe80 || words[0] >= 0xff00;
            embedded || near || six == GATEWAY6
        }
    }
}

/// Whether a conversation may be opened, of the ones that `never` does not speak of. Only some
/// destinations are known here: nothing, where it is another.
fn may(conversation: &Conversation, rules: &Rules) -> Option<bool> {
    let Conversation { protocol, remote, port, .. } = *conversation;
    let public = rules.policy.as_ref().map(|policy| policy.public);
    let metadata = Ipv4Addr::new(169, 254, 169, 254);
    if !rules.allow_host && (remote == OF_HOST || remote == metadata) {
        return Some(false);
    }
    let listed = remote == LISTED && port == LISTED_PORT && protocol == TCP;
    if remote == LISTED {
        // Of documentation's addresses, and so not on the Internet.
        return Some(public.is_none() || listed);
    }
    if remote == NAME_SERVER {
        let asks = port == 53 && public != Some(false);
        return Some(asks || rules.allow_host && public.is_none());
    }
    (remote == Ipv4Addr::new(1, 1, 1, 1)).then_some(public != Some(false))
}

fn rules(choice: u8) -> Rules {
    let listed = Allowed {
        to: format!("{LISTED}/32").parse().expect("a subnet"),
        port: Some((LISTED_PORT, Protocol::Tcp)),
    };
    let policy = |public| Some(Policy { public, allowed: vec![listed.clone()] });
    Rules {
        gateways: vec![GATEWAY4.into(), GATEWAY6.into()],
        allow_host: choice & 1 != 0,
        policy: [None, policy(false), policy(true), None][usize::from(choice / 2 % 4)].clone(),
        name_servers: vec![NAME_SERVER.into()],
    }
}

/// Frames that open something, from which others are made.
fn template(choice: u8) -> Vec<u8> {
    let to4 = [LISTED, OF_HOST, NAME_SERVER, Ipv4Addr::new(1, 1, 1, 1)];
    let to6 = [GATEWAY6, Ipv6Addr::LOCALHOST, Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 0x11)];
    let mut frame = vec![0; 12];
    let place = usize::from(choice / 4);
    if choice & 1 == 0 {
        frame.extend([8, 0, 0x45, 0, 0, 48, 0, 0, 0, 0, 64, [TCP, UDP][place % 2], 0, 0]);
        frame.extend([10, 86, 0, 2]);
        frame.extend(to4[place / 2 % 4].octets());
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, [TCP, UDP][place % 2], 64]);
        frame.extend(Ipv6Addr::new(0xfd86, 0, 0, 0, 0, 0, 0, 2).octets());
        frame.extend(to6[place / 2 % 3].octets());
    }
    // Ports, numbers, SYN.
    frame.extend([0x0f, 0xa0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
    frame.extend([0; 8]);
    frame
}

/// A frame that is one of the templates with some bits changed, or nothing but what was said.
fn frame(choice: u8, bytes: &mut Bytes) -> Option<Vec<u8>> {
    if choice & 3 == 3 {
        let length = bytes.byte()?;
        return Some(bytes.some(length.into()).to_vec());
    }
    let mut frame = template(choice);
    let changes = bytes.byte()?;
    for _ in 0..changes % 8 {
        let (at, bits) = (usize::from(bytes.byte()?), bytes.byte()?);
        let length = frame.len();
        frame[at % length] ^= bits;
    }
    if changes & 128 != 0 {
        frame.truncate(usize::from(bytes.byte()?));
    }
    Some(frame)
}

/// A guest that sends whatever it likes, and servers that may answer it. Nothing opens what is
/// closed, and what is plain and open passes. The first byte chooses the rules.
pub fn hostile_frames(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(choice) = bytes.byte() else { return };
    let given = rules(choice);
    let look = |to: IpAddr| match to {
        IpAddr::V4(four) if four == OF_HOST => Place::Host,
        IpAddr::V4(four) if four.octets()[..2] == OF_NETWORK => Place::Network,
        _ => Place::Elsewhere,
    };
    let mut judge = Judge::new(rules(choice), Box::new(look), Arc::default());
    let mut now = Instant::now();
    let mut heard: Vec<(Conversation, Instant)> = Vec::new();
    while let Some(operation) = bytes.byte() {
        now += [0, 1, 1500, 100_000].map(Duration::from_millis)[usize::from(operation % 4)];
        let Some(frame) = frame(operation / 8, &mut bytes) else { return };
        if operation & 4 != 0 {
            judge.received(&frame, now);
            let opens = read(&frame, true).and_then(|reading| reading.opens);
            heard.extend(opens.map(|opens| (opens, now)));
            continue;
        }
        let passed = judge.passes(&frame, now);
        let Some(Reading { opens, plain, protocol }) = read(&frame, false) else { continue };
        let Some(opens) = opens else {
            let further = plain && protocol == TCP;
            assert!(passed || !further, "what opens nothing is passt's affair: {frame:02x?}");
            continue;
        };
        if passed {
            let answers =
                |(of, since): &(Conversation, Instant)| *of == opens && now - *since < ANSWERS;
            let open = !never(opens.remote) && may(&opens, &given) != Some(false);
            assert!(open || heard.iter().any(answers), "{opens:?} is closed: {frame:02x?}");
            assert!(plain, "passt could read it differently: {frame:02x?}");
        } else if plain && !never(opens.remote) {
            assert_ne!(may(&opens, &given), Some(true), "{opens:?} is open: {frame:02x?}");
        }
    }
}

/// A stream of passt's, in parts as the first bytes say: its frames are the same however it
/// comes, and one that is too long is told.
pub fn hostile_stream(data: &[u8]) {
    let Some(([kind, part], rest)) = data.split_first_chunk() else { return };
    let mut stream = Vec::new();
    if kind & 1 == 0 {
        stream.extend(rest);
    } else {
        // Lengths, with frames of these.
        for length in rest.chunks_exact(2).take(32) {
            let length = usize::from(length[0]) * 256 + usize::from(length[1]);
            stream.extend((length as u32).to_be_bytes());
            stream.resize(stream.len() + length, kind ^ length as u8);
        }
    }
    let (mut expected, mut at) = (Vec::new(), &stream[..]);
    let mut too_long = false;
    while let Some((length, after)) = at.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        too_long = length > MAX_FRAME;
        let (false, Some(frame)) = (too_long, after.get(..length)) else { break };
        expected.push(frame);
        at = &after[length..];
    }
    let (mut frames, mut found, mut failed) = (Frames::default(), 0, false);
    'all: for mut chunk in stream.chunks(usize::from(*part) * 37 + 1) {
        while !chunk.is_empty() {
            assert!(frames.fill(&mut chunk).expect("bytes are always there"));
            loop {
                match frames.next() {
                    Ok(Some(frame)) => {
                        assert_eq!(frame, expected[found]);
                        found += 1;
                    }
                    Ok(None) => break,
                    Err(_) => {
                        failed = true;
                        break 'all;
                    }
                }
            }
        }
    }
    assert_eq!((found, failed), (expected.len(), too_long));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_template_opens_something() {
        for choice in 0..32u8 {
            if choice & 3 != 3 {
                let reading = read(&template(choice), false).expect("a packet");
                assert!(reading.opens.is_some() && reading.plain, "{choice}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn whatever_a_guest_sends(data in prop::collection::vec(any::<u8>(), 0..400)) {
            hostile_frames(&data);
        }

        #[test]
        fn however_a_stream_comes(data in prop::collection::vec(any::<u8>(), 0..40)) {
            hostile_stream(&data);
        }
    }
}
