//! What the serving thread must be, beside under a filter of system calls.
//!
//! Files are made with the user and group of the guest's process as owner. For
//! that the library changes the thread's effective ids for a moment, and the
//! kernel then takes the effective capabilities away, so that the host would
//! judge the access a second time, without the supplementary groups that the
//! guest judged with: a false EACCES. SECBIT_NO_SETUID_FIXUP keeps them.

use std::io;

/// SECBIT_NO_SETUID_FIXUP of linux/securebits.h.
const NO_SETUID_FIXUP: i32 = 1 << 2;

/// Prepares the current thread and those that it makes from now on. Needs
/// CAP_SETPCAP in the thread's own user namespace, unless the bit is set already,
/// and prctl(2): call it before that capability is dropped and before the
/// thread's system calls are filtered.
///
/// # Errors
/// When the bit is missing and cannot be set.
pub fn prepare_thread() -> io::Result<()> {
    let bits = prctl(libc::PR_GET_SECUREBITS, 0)?;
    if bits & NO_SETUID_FIXUP == 0 {
        prctl(libc::PR_SET_SECUREBITS, bits | NO_SETUID_FIXUP)?;
    }
    Ok(())
}

#[allow(unsafe_code)]
fn prctl(option: i32, value: i32) -> io::Result<i32> {
    // SAFETY: both options take and give plain numbers and touch no memory.
    let result = unsafe { libc::prctl(option, value as libc::c_ulong, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
