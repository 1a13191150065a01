//! seccomp(2): installs a filter with the flags that a profile asks for.
#![allow(unsafe_code)]

use nix::errno::Errno;

/// One classic BPF instruction, as the kernel's `struct sock_filter`.
pub type Instruction = libc::sock_filter;

/// Installs `program` on this process.
///
/// # Errors
/// The kernel's; EACCES without no_new_privs and CAP_SYS_ADMIN.
pub fn install(program: &mut [Instruction], flags: u32) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the program is `len` instructions long and outlives the call,
    // which copies it.
    super::check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&filter),
        )
    })
    .map(drop)
}
