//! The power button: one byte to an x86 I/O port.
#![allow(unsafe_code)]

use nix::errno::Errno;

/// Writes `value` to I/O port `port`.
///
/// # Errors
/// The kernel's, of ioperm(2): needs CAP_SYS_RAWIO.
pub fn write(port: u16, value: u8) -> Result<(), Errno> {
    // SAFETY: ioperm only lets this thread use the port; no memory is touched.
    super::check(unsafe { libc::ioperm(port.into(), 1, 1) }.into())?;
    // SAFETY: `out` to a port which ioperm granted changes no memory and no
    // flags; its effect is the machine's end, which is what is asked for.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") value,
            options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
