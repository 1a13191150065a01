//! The interfaces that a machine has, made to be those of its namespace.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use protocol::agent::Call;
use protocol::machine::{
    FdIndex, Guard, MAX_NETS, MAX_PREFIXES, Net, Prefix, RateLimits, Reply, Request,
};
use protocol::network::{Link, Network as Told};

use super::netlink::Netlink;
use super::resolver::named_in;
use super::view::{Interface, View, ip_of};
use super::{Indexes, LATER, Network, NetworkError, Policy, Queues, tap};
use crate::agent::Agent;
use crate::sandbox::vmm::{ControlError, Requests};

/// How long the taps of a machine that was just killed may take to go.
const LAST_BREATH: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// A machine that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) agent: Agent,
    pub(crate) vmm: Requests,
}

/// An interface for the VMM, with the descriptors of its tap.
#[derive(Debug)]
pub(crate) struct Plug {
    net: Net,
    queues: Vec<OwnedFd>,
}

impl Plug {
    /// The interface, its descriptors numbered by `add`.
    pub(crate) fn with(self, add: impl FnMut(OwnedFd) -> FdIndex) -> Net {
        Net { taps: self.queues.into_iter().map(add).collect(), ..self.net }
    }
}

/// An interface that was taken over.
#[derive(Debug)]
struct Taken {
    index: u32,
    mac: [u8; 6],
    guard: Option<Guard>,
    mtu: u32,
    tap: u32,
    /// N of the guest's PCI device `0000:00:N.0`, of those that came after the boot.
    device: Option<u8>,
}

/// Who has the namespace. Dropped, no interface is redirected any more.
#[derive(Debug)]
pub(crate) struct Keeper {
    netlink: Netlink,
    queues: Queues,
    policy: Policy,
    resolv_conf: Option<PathBuf>,
    /// Interfaces that the machine can have at a time.
    room: usize,
    taken: Vec<Taken>,
    /// What the guest has.
    told: Option<Told>,
    /// Routes that it does not have.
    left_out: usize,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        for taken in std::mem::take(&mut self.taken) {
            self.untie(&taken);
        }
    }
}

impl Network {
    /// Makes taps for all interfaces that are there. Beside the keeper: the interfaces for
    /// the boot, and what tells of changes.
    pub(crate) async fn take_over(self) -> Result<(Keeper, Vec<Plug>, OwnedFd), NetworkError> {
        let Network { netlink, news, queues, policy, resolv_conf } = self;
        let mut keeper = Keeper {
            netlink,
            queues,
            policy,
            resolv_conf,
            room: 0,
            taken: Vec::new(),
            told: None,
            left_out: 0,
        };
        let mut view = keeper.unoccupied().await?;
        if !view.refused.is_empty() {
            return Err(view.refused.swap_remove(0));
        }
        if view.interfaces.len() > MAX_NETS {
            return Err(NetworkError::TooMany { count: view.interfaces.len() });
        }
        keeper.room = MAX_NETS.min(view.interfaces.len() + LATER);
        let take = |interface| keeper.take(interface, &view);
        let plugs = view.interfaces.iter().map(take).collect::<Result<_, _>>()?;
        Ok((keeper, plugs, news))
    }
}

impl Keeper {
    /// What is there, once no other machine has it.
    async fn unoccupied(&mut self) -> Result<View, NetworkError> {
        let begin = tokio::time::Instant::now();
        loop {
            let view = View::look(&mut self.netlink, &Indexes::new())?;
            match view.taps.first() {
                None => return Ok(view),
                Some(name) if begin.elapsed() > LAST_BREATH => {
                    return Err(NetworkError::Occupied { name: name.clone() });
                }
                Some(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn take(&mut self, interface: &Interface, view: &View) -> Result<Plug, NetworkError> {
        let &Interface { index, mac, mtu, .. } = interface;
        let guard = self.guard(interface, view)?;
        if self.taken.len() >= self.room {
            let name = interface.name.clone();
            return Err(NetworkError::NoRoom { name, count: self.room });
        }
        let queues = self.queues.take()?;
        let tap = match tap::make(&mut self.netlink, interface, &queues) {
            Ok(tap) => tap,
            Err(error) => {
                // What is redirected now is the other machine's.
                if matches!(error, NetworkError::Occupied { .. }) {
                    self.queues.put_back(queues);
                }
                return Err(error);
            }
        };
        self.taken.push(Taken { index, mac, guard: guard.clone(), mtu, tap, device: None });
        let limits: Option<RateLimits> = self.policy.limits;
        // The guest's kernel takes this for the most that its MTU can ever be.
        let net = Net { mac, mtu: u16::MAX, taps: Vec::new(), limits, guard };
        Ok(Plug { net, queues })
    }

    fn guard(&self, interface: &Interface, view: &View) -> Result<Option<Guard>, NetworkError> {
        if !self.policy.guard {
            return Ok(None);
        }
        let own = view.addresses.iter().filter(|(of, _)| *of == interface.index);
        let addresses: Vec<_> = own
            .filter_map(|(_, item)| ip_of(item))
            .map(|address| Prefix { address, length: if address.is_ipv4() { 32 } else { 128 } })
            .collect();
        match addresses.len() {
            0..=MAX_PREFIXES => Ok(Some(Guard { addresses })),
            count => Err(NetworkError::Guard { name: interface.name.clone(), count }),
        }
    }

    /// Forgets an interface, and ends its redirect.
    fn give_back(&mut self, index: u32) {
        if let Some(at) = self.taken.iter().position(|taken| taken.index == index) {
            let taken = self.taken.remove(at);
            self.untie(&taken);
        }
    }

    fn untie(&mut self, taken: &Taken) {
        if let Err(error) = tap::untie(&mut self.netlink, taken.index, taken.tap) {
            tracing::warn!("an interface is not given back: {error}");
        }
    }

    /// Makes the machine's network what the namespace has now. What fails leaves the rest
    /// as it should be; the first error is told.
    pub(crate) async fn settle(&mut self, machine: &Machine) -> Result<(), NetworkError> {
        let kept = self.indexes();
        let mut view = View::look(&mut self.netlink, &kept)?;
        let mut first = Ok(());
        for index in self.gone(&view) {
            let detached = self.detach(index, machine).await;
            first = first.and(detached);
        }
        for interface in &view.interfaces {
            if !self.indexes().contains(&interface.index) {
                let attached = self.attach(interface, &view, machine).await;
                first = first.and(attached);
            }
            first = first.and(self.follow(interface));
        }
        if !view.refused.is_empty() {
            first = first.and(Err(view.refused.swap_remove(0)));
        }
        let view = view.of_these(&self.indexes());
        let told = self.tell(&view, machine).await;
        first.and(told)
    }

    fn indexes(&self) -> Indexes {
        self.taken.iter().map(|taken| taken.index).collect()
    }

    /// Those that are no longer there, or are others now, or have more addresses than their
    /// guard can.
    fn gone(&self, view: &View) -> Vec<u32> {
        let same = |taken: &&Taken| {
            let there = view.interfaces.iter().find(|there| there.index == taken.index);
            there.is_some_and(|there| {
                let guard = self.guard(there, view);
                there.mac == taken.mac && guard.is_ok_and(|guard| guard == taken.guard)
            })
        };
        self.taken.iter().filter(|taken| !same(taken)).map(|taken| taken.index).collect()
    }

    /// Gives a tap what its interface has.
    fn follow(&mut self, interface: &Interface) -> Result<(), NetworkError> {
        let taken = self.taken.iter_mut().find(|taken| taken.index == interface.index);
        let Some(taken) = taken.filter(|taken| taken.mtu != interface.mtu) else { return Ok(()) };
        let failed = |source| NetworkError::Tap { name: interface.name.clone(), source };
        tap::follow(&mut self.netlink, taken.tap, interface).map_err(failed)?;
        taken.mtu = interface.mtu;
        Ok(())
    }

    async fn attach(
        &mut self,
        interface: &Interface,
        view: &View,
        machine: &Machine,
    ) -> Result<(), NetworkError> {
        let mut fds = Vec::new();
        let net = self.take(interface, view)?.with(|fd| {
            fds.push(fd);
            FdIndex(fds.len() as u32 - 1)
        });
        let refused = match machine.vmm.request(Request::AttachNet { slot: None, net }, fds).await {
            Ok(Reply::Net { device }) => {
                if let Some(taken) = self.taken.last_mut() {
                    taken.device = Some(device);
                }
                return Ok(());
            }
            Ok(_) => ControlError::Refused("its answer makes no sense".into()),
            Err(error) => error,
        };
        self.give_back(interface.index);
        Err(NetworkError::Attach { name: interface.name.clone(), source: refused })
    }

    /// Takes an interface away, whatever the guest says to that.
    async fn detach(&mut self, index: u32, machine: &Machine) -> Result<(), NetworkError> {
        let Some(taken) = self.taken.iter().find(|taken| taken.index == index) else {
            return Ok(());
        };
        let device = match taken.device {
            Some(device) => Some(device),
            None => device_of(taken.mac, machine).await,
        };
        // The guest loses what it knows of it, to be told anew.
        self.told = None;
        self.give_back(index);
        let Some(device) = device else { return Ok(()) };
        let unplugged = machine.agent.order(Call::Unplug { device }).await;
        let detached = machine.vmm.request(Request::DetachNet { device }, Vec::new()).await;
        if let Err(source) = detached {
            let name = format!("the guest's PCI device {device}");
            return Err(NetworkError::Attach { name, source });
        }
        unplugged.map_err(NetworkError::Guest)
    }

    async fn tell(&mut self, view: &View, machine: &Machine) -> Result<(), NetworkError> {
        if self.left_out != view.left_out {
            self.left_out = view.left_out;
            tracing::warn!(
                "the machine does not have {} routes of its namespace: those by several gateways \
                 at once, or by tunnels of their own",
                self.left_out
            );
        }
        let device = |index| self.taken.iter().find(|taken| taken.index == index)?.device;
        let link = |interface: &Interface| Link {
            index: interface.index,
            name: interface.name.clone(),
            mac: interface.mac,
            mtu: interface.mtu,
            up: interface.up,
            device: device(interface.index),
            ipv6: interface.ipv6,
        };
        let network = Told {
            links: view.interfaces.iter().map(link).collect(),
            addresses: view.addresses.iter().map(|(_, item)| item.clone()).collect(),
            routes: view.routes.clone(),
            neighbours: view.neighbours.clone(),
            resolver: self.resolv_conf.as_deref().and_then(named_in),
        };
        let nothing = self.told.is_none() && network == Told::default();
        if nothing || self.told.as_ref() == Some(&network) {
            return Ok(());
        }
        self.told = None;
        machine.agent.order(Call::Network(network.clone())).await.map_err(NetworkError::Guest)?;
        self.told = Some(network);
        Ok(())
    }
}

/// The device of an interface that was there at boot: only the VMM knows.
async fn device_of(mac: [u8; 6], machine: &Machine) -> Option<u8> {
    match machine.vmm.request(Request::NetCounters, Vec::new()).await {
        Ok(Reply::NetCounters(all)) => {
            all.iter().find(|counters| counters.mac == mac).map(|counters| counters.device)
        }
        _ => None,
    }
}
