//! The two ways in which a guest says that it is done, without ACPI: the power
//! button (a byte to [`protocol::machine::POWER_PORT`]) and the reset line of the
//! keyboard controller (`reboot=k`, which a panicking kernel uses as well).

use std::sync::atomic::{AtomicBool, Ordering};

use super::bus::BusDevice;

/// I/O port of the keyboard controller's command register.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// Command "pulse the processor's reset line".
const I8042_RESET: u8 = 0xfe;

/// A closure that runs at the first call only, however many vCPUs call.
struct Once {
    called: AtomicBool,
    action: Box<dyn Fn() + Send + Sync>,
}

impl Once {
    fn new(action: impl Fn() + Send + Sync + 'static) -> Once {
        Once { called: AtomicBool::new(false), action: Box::new(action) }
    }

    fn call(&self) {
        if !self.called.swap(true, Ordering::Relaxed) {
            (self.action)();
        }
    }
}

/// The power button: any write switches the machine off.
pub struct PowerButton(Once);

impl PowerButton {
    /// `off` runs at the first write, on the vCPU's thread.
    pub fn new(off: impl Fn() + Send + Sync + 'static) -> PowerButton {
        PowerButton(Once::new(off))
    }
}

impl BusDevice for PowerButton {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.0.call();
    }
}

/// As much of a keyboard controller as `reboot=k` needs: its status says that
/// it is ready, and the reset command resets.
pub struct ResetPort(Once);

impl ResetPort {
    /// `reset` runs at the first reset command, on the vCPU's thread.
    pub fn new(reset: impl Fn() + Send + Sync + 'static) -> ResetPort {
        ResetPort(Once::new(reset))
    }
}

impl BusDevice for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [I8042_RESET] {
            self.0.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn counter() -> (Arc<AtomicU32>, impl Fn() + Send + Sync + 'static) {
        let count = Arc::new(AtomicU32::new(0));
        let inner = count.clone();
        let add = move || {
            inner.fetch_add(1, Ordering::Relaxed);
        };
        (count, add)
    }

    #[test]
    fn the_button_works_once() {
        let (count, off) = counter();
        let button = PowerButton::new(off);
        let mut data = [0xff];
        button.read(0, &mut data);
        assert_eq!((data, count.load(Ordering::Relaxed)), ([0], 0));
        button.write(0, &[0]);
        button.write(0, &[1]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (count, reset) = counter();
        let port = ResetPort::new(reset);
        port.write(0, &[0xd1]);
        port.write(0, &[0xfe, 0xfe]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        port.write(0, &[0xfe]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
