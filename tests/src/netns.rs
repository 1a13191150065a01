//! Network namespaces of the host that are tied to a bridge, as engines make them.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::program::script;

/// A bridge of the host with addresses. Dropped, it is removed.
#[derive(Debug)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    number: u32,
    namespaces: AtomicU32,
}

impl Bridge {
    /// One with an MTU.
    #[track_caller]
    pub fn new(mtu: u32) -> Bridge {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let this = Bridge { name: format!("e2e{number}"), number, namespaces: AtomicU32::new(2) };
        let name = &this.name;
        script(&format!(
            "set -e; ip link add {name} mtu {mtu} type bridge; ip link set {name} up; \
             ip addr add {}/24 dev {name}; ip addr add {}/64 dev {name} nodad",
            this.ip4(1),
            this.ip6(1)
        ))
        .ok();
        this
    }

    /// The IPv4 address with this last part.
    pub fn ip4(&self, last: u32) -> String {
        format!("10.99.{}.{last}", self.number)
    }

    /// The IPv6 address with this last part.
    pub fn ip6(&self, last: u32) -> String {
        format!("fd99:{}::{last}", self.number)
    }

    /// A namespace with an interface eth0 on it, with addresses and default routes.
    #[track_caller]
    pub fn namespace(&self, mtu: u32) -> Namespace {
        let last = self.namespaces.fetch_add(1, Ordering::Relaxed);
        let this = Namespace { name: format!("{}n{last}", self.name), last };
        script(&format!("ip netns add {0} && ip -n {0} link set lo up", this.name)).ok();
        self.plug(&this, "eth0", mtu, last);
        script(&format!(
            "set -e; ip -n {0} route add default via {1}; ip -n {0} route add default via {2}",
            this.name,
            self.ip4(1),
            self.ip6(1)
        ))
        .ok();
        this
    }

    /// A further interface of a namespace, with the addresses that end in `last`.
    #[track_caller]
    pub fn plug(&self, namespace: &Namespace, interface: &str, mtu: u32, last: u32) {
        let (bridge, inside) = (&self.name, &namespace.name);
        let outside = format!("v{}-{last}", self.number);
        script(&format!(
            "set -e; ip link add {outside} mtu {mtu} type veth peer name p{outside} mtu {mtu}; \
             ip link set {outside} master {bridge} up; ip link set p{outside} netns {inside}; \
             ip -n {inside} link set p{outside} name {interface}; \
             ip -n {inside} addr add {}/24 dev {interface}; \
             ip -n {inside} addr add {}/64 dev {interface} nodad; \
             ip -n {inside} link set {interface} up",
            self.ip4(last),
            self.ip6(last)
        ))
        .ok();
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", &self.name]).status();
    }
}

/// A named network namespace. Dropped, it is removed.
#[derive(Debug)]
pub struct Namespace {
    /// Its name for ip-netns(8).
    pub name: String,
    /// What its addresses end in, where it is on a bridge.
    pub last: u32,
}

impl Namespace {
    /// One that has a loopback interface alone.
    #[track_caller]
    pub fn bare() -> Namespace {
        let this = Namespace::unmade();
        script(&format!("ip netns add {0} && ip -n {0} link set lo up", this.name)).ok();
        this
    }

    /// A name of the one that process `pid` is in.
    #[track_caller]
    pub fn of(pid: i32) -> Namespace {
        let this = Namespace::unmade();
        script(&format!("ip netns attach {} {pid}", this.name)).ok();
        this
    }

    fn unmade() -> Namespace {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Namespace { name: format!("e2ens{}", NUMBER.fetch_add(1, Ordering::Relaxed)), last: 0 }
    }

    /// Where it is.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Words for `ip -n` of it.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        script(&format!("ip -n {} {words}", self.name)).ok()
    }

    /// Sets a file of /proc/sys.
    #[track_caller]
    pub fn sysctl(&self, path: &str, value: &str) {
        script(&format!("ip netns exec {} sh -c 'echo {value} > /proc/sys/{path}'", self.name))
            .ok();
    }

    /// Qdiscs and taps of ours in it.
    #[track_caller]
    pub fn leftovers(&self) -> String {
        script(&format!(
            "tc -n {0} qdisc show | grep -E 'ingress|clsact'; ip -n {0} -o link | grep bhtap; true",
            self.name
        ))
        .ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}
