//! What neither nix nor std wraps, one small module per kernel interface. All
//! of this crate's `unsafe` is here.

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod link;
pub mod lsm;
pub mod mount;
pub mod poll;
pub mod port;
pub mod process;
pub mod seccomp;
pub mod tty;

use nix::errno::Errno;

/// The result of a raw system call as an integer, errno already read.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}
