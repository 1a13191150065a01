//! The guest's only program: PID 1, the agent that the host talks to, and the
//! roles in which it becomes a container's process.
//!
//! ```text
//! /init  PID 1: mounts, reaps orphans            init, boot
//!   └─ agent: serves calls and streams           server, handlers, state, stdio
//!        ├─ bulkhead-init -> execve              roles::init
//!        └─ bulkhead-exec ─┐ (ends)              roles::exec
//!        └─ its sibling   <┘ -> execve
//! ```
//!
//! Invariants: the agent never blocks (one thread serves everything), never
//! looks at a path of a container's image (the roles do, with the container's
//! own view), and waits only for its own children, by pidfd.

pub mod apparmor;
pub mod boot;
pub mod cgroup;
pub mod descriptors;
pub mod error;
pub mod handlers;
pub mod init;
pub mod kmsg;
pub mod network;
pub mod plan;
pub mod roles;
pub mod seccomp;
pub mod server;
pub mod spawn;
pub mod state;
pub mod stdio;
pub mod sys;
pub mod volumes;
