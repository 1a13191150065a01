//! PowerOff: ends the machine.

use nix::sys::reboot::{RebootMode, reboot};
use protocol::machine::POWER_PORT;

/// Writes out what is not yet on disk, then presses the button. On a machine
/// without one (not bulkhead-vmm's) the kernel is asked instead.
pub fn now() -> ! {
    nix::unistd::sync();
    let _ = crate::sys::port::write(POWER_PORT, 1);
    let _ = reboot(RebootMode::RB_POWER_OFF);
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    std::process::exit(1)
}
