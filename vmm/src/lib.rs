//! bulkhead-vmm: one microVM in one unprivileged process.
//!
//! The crate knows memory, vCPUs, devices, directories and sockets. It knows
//! nothing of containers. See ARCHITECTURE.md for where it stands.

pub mod boot;
pub mod builder;
pub mod control;
pub mod devices;
pub mod ending;
pub mod event_loop;
pub mod jail;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod process;
pub mod sched;
pub mod vcpu;
