//! Registers descriptors with tokio, whose AsyncFd asks the caller to vouch
//! that the descriptor stays open and the same.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What owns exactly one descriptor for its whole life.
pub trait Owner: AsRawFd {}
impl Owner for OwnedFd {}
impl Owner for File {}
impl Owner for Rc<OwnedFd> {}

/// Watches `owner`'s descriptor.
///
/// # Errors
/// EPERM when it cannot be polled.
pub fn watch<T: Owner>(owner: T, interest: Interest) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: an Owner keeps its descriptor open until it is dropped, which
    // AsyncFd does after deregistering, and never exchanges it.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}
