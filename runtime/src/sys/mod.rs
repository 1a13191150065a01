//! The system calls that neither std nor nix wraps safely.
//!
//! UNSAFETY: every file here makes raw system calls, or turns a descriptor
//! number that the kernel just handed over into an owner. Each block argues its
//! own case; nothing outside this module is allowed any.

pub mod descriptors;
pub mod mounts;
pub mod pidfd;
pub mod process;
pub mod tun;
