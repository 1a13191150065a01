//! Sandboxes and the containers in them: the one place where images, VMM and
//! guest agent meet.
//!
//! ```text
//! spec (image configuration + options -> OCI specification)
//!   \
//!    container (life cycle across processes: state.json, locks, verbs)
//!      |            \
//!    sandbox         streams (stdio between host descriptors and the guest)
//!    (VMM process,     |
//!     cgroup, uids)  agent (calls to the guest)
//!      |
//!    network (interfaces of a namespace, which a machine takes over)
//!
//!    networks (of `bulkhead run`: a namespace in one, by cni's plugins)
//! ```
//!
//! * [`sandbox`] owns everything on the host that a machine is made of, and
//!   leaves nothing of it behind.
//! * [`container`] has one file per verb. What several processes must agree on
//!   is in files: see its header for the state machine.
//! * All system calls that need `unsafe` are in `sys`.

pub mod agent;
pub mod cni;
pub mod container;
pub mod dirs;
pub mod files;
pub mod id;
pub mod limits;
pub mod log_file;
pub mod network;
pub mod networks;
pub mod oci;
mod programs;
pub mod rootless;
pub mod sandbox;
mod say;
pub mod signals;
pub mod spec;
pub mod streams;
pub mod sys;
pub mod systemd;
pub mod time;
pub mod user;

pub use say::say;
