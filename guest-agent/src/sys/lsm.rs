//! lsm_set_self_attr(2): the label that this process will have from its next execve on.
//! /proc/self/attr has it as well, but whose /proc that is may be an image's to say.
#![allow(unsafe_code)]

use nix::errno::Errno;

// include/uapi/linux/lsm.h
const LSM_ID_APPARMOR: u64 = 104;
const LSM_ATTR_EXEC: libc::c_uint = 101;
const SYS_LSM_SET_SELF_ATTR: libc::c_long = 460;

/// Has the next execve of this process change to AppArmor profile `name`.
///
/// # Errors
/// ENOENT when it is not loaded, EOPNOTSUPP when the kernel runs without AppArmor.
pub fn change_on_exec(name: &str) -> Result<(), Errno> {
    let command = format!("exec {name}\0").into_bytes();
    // struct lsm_ctx: id, flags, its own length, that of what follows.
    let length = (4 * size_of::<u64>() + command.len()) as u64;
    let mut context = Vec::new();
    for word in [LSM_ID_APPARMOR, 0, length, command.len() as u64] {
        context.extend_from_slice(&word.to_ne_bytes());
    }
    context.extend_from_slice(&command);
    let size = context.len() as libc::c_uint;
    // SAFETY: the kernel reads `size` bytes of a buffer that outlives the call, of any
    // alignment, and checks the lengths within.
    super::check(unsafe {
        libc::syscall(SYS_LSM_SET_SELF_ATTR, LSM_ATTR_EXEC, context.as_ptr(), size, 0)
    })
    .map(drop)
}
