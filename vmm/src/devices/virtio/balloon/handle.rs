//! The host's side of the balloon.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::state::BalloonState;

const PAGES_PER_MIB: u32 = 256;

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes >> 12).unwrap_or(u32::MAX)
}

/// Sets the size of the balloon and tells what it gave. Cheap to clone.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

struct Shared {
    total_pages: AtomicU32,
    target: AtomicU32,
    actual: AtomicU32,
    reported: AtomicU64,
}

impl BalloonHandle {
    pub(super) fn new(total_bytes: u64) -> BalloonHandle {
        BalloonHandle(Arc::new(Shared {
            total_pages: AtomicU32::new(pages(total_bytes)),
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            reported: AtomicU64::new(0),
        }))
    }

    /// Asks the guest to give `mib` MiB, at most all that it has; zero asks it
    /// to take everything back. It gives what it can spare, when it can, and hears of it by
    /// `Transport::config_changed`.
    pub fn set_target_mib(&self, mib: u32) {
        let pages = mib.saturating_mul(PAGES_PER_MIB).min(self.total_pages());
        self.0.target.store(pages, Ordering::Release);
    }

    /// MiB that the guest says it gave, at most all that it has.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual.load(Ordering::Acquire).min(self.total_pages()) / PAGES_PER_MIB
    }

    /// Bytes that free page reporting gave back to the host since boot.
    pub fn reported_bytes(&self) -> u64 {
        self.0.reported.load(Ordering::Acquire)
    }

    pub(super) fn add_reported(&self, bytes: u64) {
        self.0.reported.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.0.actual.store(pages, Ordering::Release);
    }

    pub(super) fn state(&self) -> BalloonState {
        BalloonState {
            target_pages: self.0.target.load(Ordering::Acquire),
            actual_pages: self.0.actual.load(Ordering::Acquire),
            reported_bytes: self.reported_bytes(),
        }
    }

    pub(super) fn restore(&self, state: BalloonState) {
        self.0.target.store(state.target_pages.min(self.total_pages()), Ordering::Release);
        self.0.actual.store(state.actual_pages, Ordering::Release);
        self.0.reported.store(state.reported_bytes, Ordering::Release);
    }

    /// The guest has this much memory now.
    pub fn grown(&self, total_bytes: u64) {
        self.0.total_pages.store(pages(total_bytes), Ordering::Release);
    }

    fn total_pages(&self) -> u32 {
        self.0.total_pages.load(Ordering::Acquire)
    }
}
