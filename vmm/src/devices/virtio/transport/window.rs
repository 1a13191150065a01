//! What a driver reads of a device: a page of memory that the guest has mapped, so that
//! reading a register costs no way to the VMM. Writes end in KVM, which has no memory to write
//! to there, and come to the [transport](super).
//!
//! Invariant: a word here is what the specification wants the driver to read at that moment.
//! Whoever changes what a register stands for writes it here before the driver can know of the
//! change: before the vCPU that wrote goes on, or before the interrupt.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET;
use virtio_bindings::bindings::virtio_mmio as offset;

use super::WINDOW;
use crate::memory::Shown;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BLKH");
const CONFIG: u32 = offset::VIRTIO_MMIO_CONFIG;
/// Bytes of a configuration space.
const CONFIG_BYTES: usize = WINDOW as usize - CONFIG as usize;

/// Pages for windows that lie one after another.
pub struct Windows(Shown);

impl Windows {
    /// `count` of them, which show nothing yet.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(count: usize) -> io::Result<Windows> {
        Shown::new(count * WINDOW as usize).map(Windows)
    }

    /// Each, in their order.
    pub fn each(&self) -> impl Iterator<Item = Window> {
        let starts = (0..self.0.len()).step_by(WINDOW as usize);
        starts.map(|start| Window { pages: self.0.clone(), start })
    }

    /// For KVM.
    pub fn pages(&self) -> &Shown {
        &self.0
    }
}

/// One device's page. Cheap to clone.
#[derive(Clone)]
pub struct Window {
    pages: Shown,
    start: usize,
}

impl Window {
    /// Shows that there is no device (section 4.2.3.1.1).
    pub fn clear(&self) {
        self.identify(0);
        let rest = offset::VIRTIO_MMIO_DEVICE_FEATURES..WINDOW as u32;
        rest.step_by(4).for_each(|register| self.set(register, 0));
    }

    /// Shows which device there is, after all else: a driver may come now.
    pub(super) fn identify(&self, device_id: u32) {
        self.set(offset::VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        self.set(offset::VIRTIO_MMIO_VERSION, VERSION);
        self.set(offset::VIRTIO_MMIO_VENDOR_ID, VENDOR);
        self.set(offset::VIRTIO_MMIO_DEVICE_ID, device_id);
    }

    /// As the guest reads.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.pages.read(self.start + offset as usize, data);
    }

    pub(super) fn set(&self, register: u32, value: u32) {
        self.word(register).store(value.to_le(), Ordering::SeqCst);
    }

    /// Shows a configuration space, which `read` tells from its first byte on.
    pub(super) fn set_config(&self, read: impl FnOnce(&mut [u8])) {
        let mut space = [0; CONFIG_BYTES];
        read(&mut space);
        for (register, bytes) in (CONFIG..).step_by(4).zip(space.as_chunks().0) {
            let value = u32::from_le_bytes(*bytes);
            if self.word(register).load(Ordering::SeqCst) != value.to_le() {
                self.set(register, value);
            }
        }
    }

    /// InterruptStatus: handlers set bits, the driver acknowledges them.
    pub(super) fn interrupt_status(&self) -> &AtomicU32 {
        self.word(offset::VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    /// ConfigGeneration.
    pub(super) fn generation(&self) -> &AtomicU32 {
        self.word(offset::VIRTIO_MMIO_CONFIG_GENERATION)
    }

    /// Status, while it may become [`NEEDS_RESET`] at any moment: `needs_reset` is asked once
    /// more after it was written, so that it is not lost.
    pub(super) fn set_status(&self, status: u32, needs_reset: impl Fn() -> bool) {
        let known = if needs_reset() { NEEDS_RESET } else { 0 };
        self.set(offset::VIRTIO_MMIO_STATUS, status | known);
        if needs_reset() {
            self.add_needs_reset();
        }
    }

    /// Status: the device cannot go on.
    pub(super) fn add_needs_reset(&self) {
        self.word(offset::VIRTIO_MMIO_STATUS).fetch_or(NEEDS_RESET, Ordering::SeqCst);
    }

    /// x86-64 has the order of virtio's registers, the little one.
    fn word(&self, register: u32) -> &AtomicU32 {
        self.pages.word(self.start + register as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_a_device_and_none_after_it() {
        let windows = Windows::new(2).unwrap();
        let [first, window] = [0, 1].map(|index| windows.each().nth(index).unwrap());
        let words = || {
            [0, 4, 8, 0xc, 0x70, 0x100].map(|register| {
                let mut word = [0xff; 4];
                window.read(register, &mut word);
                u32::from_le_bytes(word)
            })
        };
        window.clear();
        assert_eq!(words(), [0x7472_6976, 2, 0, 0x484b_4c42, 0, 0]);
        window.set_config(|space| space.fill(1));
        window.identify(4);
        window.set_status(15, || true);
        assert_eq!(words(), [0x7472_6976, 2, 4, 0x484b_4c42, 79, 0x0101_0101]);
        let mut beside = [0xff; 2];
        first.read(0xffe, &mut beside);
        assert_eq!(beside, [0, 0]);
        window.read(0xffe, &mut beside);
        assert_eq!(beside, [1, 1]);
        let mut beyond = [0xff; 4];
        window.read(0xffe, &mut beyond);
        assert_eq!(beyond, [0; 4]);
        window.clear();
        assert_eq!(words(), [0x7472_6976, 2, 0, 0x484b_4c42, 0, 0]);
    }
}
