//! Counters that the thread of the device writes and whoever asks reads.

use std::sync::atomic::{AtomicU64, Ordering};

use protocol::machine::{PairCounters, QueueCounters};

/// Counts without an order: each figure stands for itself.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of one queue; see [`QueueCounters`].
#[derive(Default)]
pub(super) struct Queue {
    pub(super) packets: Counter,
    pub(super) bytes: Counter,
    pub(super) guard: Counter,
    pub(super) malformed: Counter,
    pub(super) tap: Counter,
    pub(super) rate: Counter,
}

impl Queue {
    pub(super) fn passed(&self, bytes: usize) {
        self.packets.add(1);
        self.bytes.add(bytes as u64);
    }

    fn now(&self) -> QueueCounters {
        QueueCounters {
            packets: self.packets.get(),
            bytes: self.bytes.get(),
            guard: self.guard.get(),
            malformed: self.malformed.get(),
            tap: self.tap.get(),
            rate: self.rate.get(),
        }
    }
}

#[derive(Default)]
pub(super) struct Pair {
    pub(super) to_guest: Queue,
    pub(super) from_guest: Queue,
}

/// Of a device, for as long as it is attached.
pub struct Counters(pub(super) Vec<Pair>);

impl Counters {
    pub(super) fn new(pairs: usize) -> Counters {
        Counters((0..pairs).map(|_| Pair::default()).collect())
    }

    /// What they are now.
    pub fn now(&self) -> Vec<PairCounters> {
        let pair = |pair: &Pair| PairCounters {
            to_guest: pair.to_guest.now(),
            from_guest: pair.from_guest.now(),
        };
        self.0.iter().map(pair).collect()
    }
}
