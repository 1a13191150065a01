//! Where a guest behind passt may connect to. passt makes sockets of the host's for it, which
//! no rule of a network's tells apart from those of any other program: so what would open one
//! is judged before passt sees it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::frame::{self, Flow, Sent, TCP, UDP};
use crate::networks::Refused;
use crate::networks::egress::Allowed;
use crate::networks::options::Protocol;
use crate::networks::rules::Policy;
use crate::networks::special::{in_one_of, is_metadata, is_public};

/// How long a datagram to the guest may be answered: as long as passt keeps its socket.
const ANSWERS: Duration = Duration::from_secs(180);
/// How long what was found out of a conversation is taken to be so: the host's addresses can
/// change.
const MEMORY: Duration = Duration::from_secs(1);
/// Conversations that are remembered; beyond, all are forgotten.
const MAX_FLOWS: usize = 8192;
const DNS: u16 = 53;

/// What is the host's own, whatever its interfaces are: loopback, what stands for any address
/// of the host's, IPv4 in addresses of IPv6, and what only means something on a link.
const OWN: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/96",
    "::ffff:0.0.0.0/96",
    "::ffff:0:0.0.0.0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Where a destination is, by the host's routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The host, a broadcast, and the like.
    Host,
    /// A container's bridge of ours.
    Network,
    /// Elsewhere, or nowhere.
    Elsewhere,
}

/// Tells where a destination is.
pub(super) type Look = Box<dyn FnMut(IpAddr) -> Place + Send>;

/// What the container was given.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// Addresses by which passt shows the host's loopback.
    pub(super) gateways: Vec<IpAddr>,
    pub(super) allow_host: bool,
    pub(super) policy: Option<Policy>,
    pub(super) name_servers: Vec<IpAddr>,
}

/// What was refused.
#[derive(Debug, Default)]
pub(in crate::networks) struct Counters {
    host: AtomicU64,
    metadata: AtomicU64,
    networks: AtomicU64,
    egress: AtomicU64,
}

impl Counters {
    /// So far.
    pub(in crate::networks) fn now(&self) -> Refused {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Refused {
            host: of(&self.host),
            metadata: of(&self.metadata),
            networks: of(&self.networks),
            egress: of(&self.egress),
            ..Refused::default()
        }
    }
}

/// Remembers what came to the guest, and what was let through.
pub(super) struct Judge {
    rules: Rules,
    look: Look,
    counters: Arc<Counters>,
    /// Who may be answered, since when.
    heard: HashMap<Flow, Instant>,
    passed: HashMap<Flow, Instant>,
}

impl Judge {
    pub(super) fn new(rules: Rules, look: Look, counters: Arc<Counters>) -> Judge {
        Judge { rules, look, counters, heard: HashMap::new(), passed: HashMap::new() }
    }

    /// Takes note of a frame to the guest.
    pub(super) fn received(&mut self, frame: &[u8], now: Instant) {
        if let Some(flow) = frame::received(frame) {
            note(&mut self.heard, flow, now);
        }
    }

    /// Whether a frame of the guest's may go to passt.
    pub(super) fn passes(&mut self, frame: &[u8], now: Instant) -> bool {
        let flow = match frame::sent(frame) {
            Sent::Neighbours | Sent::Further => return true,
            Sent::Other => return false,
            Sent::Opens(flow) => flow,
        };
        let since = |at: Option<&Instant>, limit| at.is_some_and(|at| now - *at < limit);
        if since(self.heard.get(&flow), ANSWERS) || since(self.passed.get(&flow), MEMORY) {
            return true;
        }
        match self.refuses(&flow) {
            Some(counter) => {
                counter(&self.counters).fetch_add(1, Ordering::Relaxed);
                false
            }
            None => {
                note(&mut self.passed, flow, now);
                true
            }
        }
    }

    /// What counts a refusal, if it is one. In the order of the rules of a bridge.
    fn refuses(&mut self, flow: &Flow) -> Option<fn(&Counters) -> &AtomicU64> {
        let Rules { gateways, allow_host, policy, name_servers } = &self.rules;
        let remote = flow.remote;
        if in_one_of(&OWN, remote) || gateways.contains(&remote) {
            return Some(|it| &it.host);
        }
        let asks = flow.port == DNS
            && name_servers.contains(&remote)
            && policy.as_ref().is_none_or(|policy| policy.public);
        let place = (self.look)(remote);
        if !allow_host {
            if place == Place::Host {
                return Some(|it| &it.host);
            }
            if is_metadata(remote) && !asks {
                return Some(|it| &it.metadata);
            }
        }
        if place == Place::Network {
            return Some(|it| &it.networks);
        }
        let policy = policy.as_ref()?;
        let allowed = policy.allowed.iter().any(|entry| allows(entry, flow));
        let public = policy.public && (asks || is_public(remote));
        if allowed || public { None } else { Some(|it| &it.egress) }
    }
}

fn note(flows: &mut HashMap<Flow, Instant>, flow: Flow, now: Instant) {
    if flows.len() >= MAX_FLOWS && !flows.contains_key(&flow) {
        flows.clear();
    }
    flows.insert(flow, now);
}

fn allows(entry: &Allowed, flow: &Flow) -> bool {
    let port = |(port, protocol)| {
        let number = match protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        port == flow.port && number == flow.protocol
    };
    entry.to.contains(flow.remote) && entry.port.is_none_or(port)
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::{frame, tcp, udp};
    use super::*;

    fn judge(rules: Rules) -> Judge {
        let look = |to: IpAddr| match to.to_string().as_str() {
            "192.0.2.9" | "2001:db8::9" | "203.0.113.255" => Place::Host,
            "10.87.0.2" => Place::Network,
            _ => Place::Elsewhere,
        };
        let gateways = ["10.86.0.1", "fd86:b::1"].map(|it| it.parse().unwrap()).to_vec();
        Judge::new(Rules { gateways, ..rules }, Box::new(look), Arc::default())
    }

    fn asks(judge: &mut Judge, to: &str, port: u16) -> bool {
        let from = if to.contains(':') { "fd86:b::2" } else { "10.86.0.2" };
        let now = Instant::now();
        let tcp = judge.passes(&frame(from, to, TCP, &tcp(4000, port, 2)), now);
        let udp = judge.passes(&frame(from, to, UDP, &udp(4000, port)), now);
        assert_eq!(tcp, udp, "{to}");
        tcp
    }

    #[test]
    fn the_host_and_what_is_near_it_are_closed() {
        let mut plain = judge(Rules::default());
        for closed in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.86.0.1",
            "192.0.2.9",
            "203.0.113.255",
            "255.255.255.255",
            "224.0.0.251",
            "::1",
            "::",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:0:127.0.0.1",
            "fe80::1",
            "ff02::fb",
            "fd86:b::1",
            "2001:db8::9",
        ] {
            assert!(!asks(&mut plain, closed, 80), "{closed}");
        }
        assert_eq!(plain.counters.now().host, 2 * 17);
        assert!(!asks(&mut plain, "169.254.169.254", 80));
        assert!(!asks(&mut plain, "fd00:ec2::254", 80));
        assert!(!asks(&mut plain, "10.87.0.2", 80), "a container of a bridge");
        assert!(asks(&mut plain, "203.0.113.7", 80) && asks(&mut plain, "2001:db8::7", 80));
        let Refused { metadata, networks, egress, .. } = plain.counters.now();
        assert_eq!((metadata, networks, egress), (4, 2, 0));

        let mut open = judge(Rules { allow_host: true, ..Rules::default() });
        assert!(asks(&mut open, "192.0.2.9", 80) && asks(&mut open, "169.254.169.254", 80));
        assert!(!asks(&mut open, "127.0.0.1", 80) && !asks(&mut open, "10.86.0.1", 80));
        assert!(!asks(&mut open, "10.87.0.2", 80));
    }

    #[test]
    fn who_asks_is_answered() {
        let mut judge = judge(Rules::default());
        let now = Instant::now();
        let answer = |port, flags| frame("10.86.0.2", "10.86.0.1", TCP, &tcp(80, port, flags));
        assert!(!judge.passes(&answer(5000, 18), now), "SYN and ACK would open one");
        judge.received(&frame("10.86.0.1", "10.86.0.2", TCP, &tcp(5000, 80, 2)), now);
        assert!(judge.passes(&answer(5000, 18), now) && !judge.passes(&answer(5001, 18), now));
        // What opens nothing is passt's affair.
        assert!(judge.passes(&answer(5001, 16), now));
        let datagram = frame("10.86.0.2", "192.0.2.9", UDP, &udp(53, 6000));
        assert!(!judge.passes(&datagram, now));
        judge.received(&frame("192.0.2.9", "10.86.0.2", UDP, &udp(6000, 53)), now);
        assert!(judge.passes(&datagram, now));
        assert!(!judge.passes(&datagram, now + ANSWERS), "not for ever");
    }

    #[test]
    fn egress_is_what_was_asked_for() {
        let allowed = |to: &str, port| Allowed { to: to.parse().unwrap(), port };
        let policy = |public, allowed: &[Allowed]| Rules {
            policy: Some(Policy { public, allowed: allowed.to_vec() }),
            name_servers: vec!["192.168.0.1".parse().unwrap(), "169.254.1.1".parse().unwrap()],
            ..Rules::default()
        };
        let mut none = judge(policy(false, &[]));
        assert!(!asks(&mut none, "1.1.1.1", 443) && !asks(&mut none, "192.168.0.1", 53));
        assert_eq!(none.counters.now().egress, 4);
        let mut some = judge(policy(
            false,
            &[
                allowed("203.0.113.7/32", Some((80, Protocol::Tcp))),
                allowed("10.0.0.0/8", None),
                allowed("127.0.0.0/8", None),
            ],
        ));
        let now = Instant::now();
        let to = |to: &str, protocol, rest: &[u8]| frame("10.86.0.2", to, protocol, rest);
        assert!(some.passes(&to("203.0.113.7", TCP, &tcp(1, 80, 2)), now));
        assert!(!some.passes(&to("203.0.113.7", UDP, &udp(1, 80)), now));
        assert!(!some.passes(&to("203.0.113.7", TCP, &tcp(1, 81, 2)), now));
        assert!(!some.passes(&to("203.0.113.7", 1, &[8, 0, 0, 0, 0, 1]), now), "a ping");
        assert!(some.passes(&to("10.1.1.1", 1, &[8, 0, 0, 0, 0, 1]), now));
        assert!(!asks(&mut some, "10.87.0.2", 80) && !asks(&mut some, "127.0.0.1", 80));
        let mut public = judge(policy(true, &[]));
        assert!(asks(&mut public, "1.1.1.1", 443) && !asks(&mut public, "10.1.1.1", 443));
        assert!(asks(&mut public, "192.168.0.1", 53) && !asks(&mut public, "192.168.0.1", 80));
        assert!(asks(&mut public, "169.254.1.1", 53) && !asks(&mut public, "169.254.1.1", 80));
    }

    #[test]
    fn what_it_remembers_has_a_bound() {
        let mut judge = judge(Rules::default());
        let now = Instant::now();
        for port in 0..MAX_FLOWS as u16 + 10 {
            assert!(judge.passes(&frame("10.86.0.2", "1.1.1.1", UDP, &udp(1, port)), now));
            judge.received(&frame("1.1.1.1", "10.86.0.2", UDP, &udp(port, 1)), now);
        }
        assert!(judge.heard.len() <= MAX_FLOWS && judge.passed.len() <= MAX_FLOWS);
    }
}
