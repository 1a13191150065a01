//! From a kernel file to a vCPU that stands at its entry.

pub mod cmdline;
pub mod image;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod paging;
