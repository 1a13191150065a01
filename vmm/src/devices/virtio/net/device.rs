//! Identity, configuration and activation.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use protocol::machine::{self, Limit, MAX_QUEUE_PAIRS, RateLimits};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;

use super::counters::Counters;
use super::guard::Guard;
use super::handler::{NetHandler, Pair, timer};
use super::limit::Limiter;
use super::rx::Rx;
use super::state::{NetHandlerState, NetState};
use super::tap::Tap;
use super::tx::Tx;
use crate::devices::virtio::device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::devices::virtio::serve::read_config;
use crate::event_loop::Handler;

const NAME: &str = "net";
/// Linux fills the whole receive ring, so that its size is guest memory.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 16;
/// Least that an interface carries (section 5.1.4.1).
const MIN_MTU: u16 = 68;

/// Features of an interface with any number of queues.
const FEATURES: u64 = 1 << net::VIRTIO_NET_F_MAC
    | 1 << net::VIRTIO_NET_F_MTU
    | 1 << net::VIRTIO_NET_F_STATUS
    | 1 << net::VIRTIO_NET_F_MRG_RXBUF
    | 1 << net::VIRTIO_NET_F_CSUM
    | 1 << net::VIRTIO_NET_F_HOST_TSO4
    | 1 << net::VIRTIO_NET_F_HOST_TSO6
    | 1 << net::VIRTIO_NET_F_HOST_ECN
    | 1 << net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << net::VIRTIO_NET_F_GUEST_TSO4
    | 1 << net::VIRTIO_NET_F_GUEST_TSO6
    | 1 << net::VIRTIO_NET_F_GUEST_ECN;

/// A description that no interface can have.
#[derive(Debug, thiserror::Error)]
#[error("the network interface {mac}: {message}")]
pub struct NetError {
    mac: String,
    message: String,
}

/// A network interface.
pub struct Net {
    mac: [u8; 6],
    mtu: u16,
    taps: Vec<Arc<Tap>>,
    sizes: Vec<u16>,
    limits: RateLimits,
    guard: Option<Arc<Guard>>,
    counters: Arc<Counters>,
}

fn refused(message: impl ToString) -> ActivateError {
    ActivateError { device: NAME, message: message.to_string() }
}

/// Whether the limit lets anything pass at all.
fn possible(limit: &Limit) -> bool {
    [limit.bytes, limit.packets].into_iter().flatten().all(|rate| rate.per_second > 0)
}

impl Net {
    /// The interface that `config` describes, on the queues `taps`, in the order of the pairs.
    ///
    /// # Errors
    /// When the description is wrong or a descriptor is no such tap.
    pub fn new(config: &machine::Net, taps: Vec<OwnedFd>) -> Result<Net, NetError> {
        let taps = taps.into_iter().map(Tap::new).collect::<Result<_, _>>();
        taps.and_then(|taps| Net::on(config, taps)).map_err(|message| {
            let mac: Vec<_> = config.mac.iter().map(|byte| format!("{byte:02x}")).collect();
            NetError { mac: mac.join(":"), message }
        })
    }

    /// As `new`, with taps that are one already; what is wrong in words.
    pub(super) fn on(config: &machine::Net, taps: Vec<Tap>) -> Result<Net, String> {
        let (mac, mtu, pairs) = (config.mac, config.mtu, taps.len());
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err("its hardware address is not one of a single interface".into());
        }
        if mtu < MIN_MTU {
            return Err(format!("its MTU is {mtu}; {MIN_MTU} is the least"));
        }
        if !(1..=usize::from(MAX_QUEUE_PAIRS)).contains(&pairs) {
            return Err(format!("{pairs} pairs of queues are outside 1..={MAX_QUEUE_PAIRS}"));
        }
        let limits = config.limits.unwrap_or_default();
        if !possible(&limits.to_guest) || !possible(&limits.from_guest) {
            return Err("a limit is 0 in a second".into());
        }
        let guard = config.guard.as_ref().map(|guard| Guard::new(mac, guard)).transpose()?;
        let mut sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            sizes.push(CONTROL_SIZE);
        }
        Ok(Net {
            mac,
            mtu,
            taps: taps.into_iter().map(Arc::new).collect(),
            sizes,
            limits,
            guard: guard.map(Arc::new),
            counters: Arc::new(Counters::new(pairs)),
        })
    }

    /// What passed so far, also of handlers that are gone.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// `struct virtio_net_config` (section 5.1.4).
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&(net::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config[8..10].copy_from_slice(&(self.taps.len() as u16).to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config
    }

    fn state(&self) -> NetState {
        NetState { mac: self.mac, mtu: self.mtu, pairs: self.taps.len() as u16 }
    }

    fn handler(
        &self,
        activation: Activation,
        active: usize,
    ) -> Result<Box<dyn Handler>, ActivateError> {
        let Activation { memory, mut queues, features, interrupt } = activation;
        let has = |bit: u32| features & 1 << bit != 0;
        let several = has(net::VIRTIO_NET_F_MQ) && has(net::VIRTIO_NET_F_CTRL_VQ);
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let most = if several { self.taps.len() } else { 1 };
        // Its place depends on what was negotiated (section 5.1.2).
        let control = has(net::VIRTIO_NET_F_CTRL_VQ).then_some(2 * most);
        let control = control.and_then(|index| take(index).map(|ring| (index, ring)));
        let mut both = |index: usize| -> Option<(ActiveQueue, ActiveQueue)> {
            Some((take(2 * index)?, take(2 * index + 1)?))
        };
        let mut pairs = Vec::new();
        for (index, tap) in self.taps[..most].iter().enumerate() {
            let Some((rx, tx)) = both(index) else { break };
            let (rx, tx) = (Rx::new(rx, features, self.mtu), Tx::new(tx, features));
            pairs.push(Pair { rx, tx, tap: tap.clone() });
        }
        if !(1..=pairs.len()).contains(&active) {
            return Err(refused("a queue is missing"));
        }
        Ok(Box::new(NetHandler {
            memory,
            interrupt,
            pairs,
            active,
            control,
            features,
            guard: self.guard.clone(),
            counters: self.counters.clone(),
            to_guest: Limiter::new(self.limits.to_guest),
            from_guest: Limiter::new(self.limits.from_guest),
            since: Instant::now(),
            timer: timer().map_err(refused)?,
            armed: None,
            limited: false,
        }))
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        let several = 1 << net::VIRTIO_NET_F_MQ | 1 << net::VIRTIO_NET_F_CTRL_VQ;
        FEATURES | if self.taps.len() > 1 { several } else { 0 }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    /// Only the first pair is used until the driver says otherwise (section 5.1.6.5.5).
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        self.handler(activation, 1)
    }

    fn reactivate(
        &mut self,
        activation: Activation,
        handler: &[u8],
    ) -> Result<Box<dyn Handler>, ActivateError> {
        let state: NetHandlerState = postcard::from_bytes(handler).map_err(refused)?;
        self.handler(activation, usize::from(state.active))
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.state()).expect("plain numbers")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        let state: NetState = postcard::from_bytes(state).map_err(refused)?;
        if state == self.state() { Ok(()) } else { Err(refused("the interface is another one")) }
    }
}
