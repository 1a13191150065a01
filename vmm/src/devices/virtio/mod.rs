//! virtio 1.2 devices, over MMIO and over PCI.
//!
//! Every device has the same shape: a *device* (`VirtioDevice`: identity,
//! features, configuration space) that lives with the transport, and, from
//! activation to reset, a *handler* (`event_loop::Handler`) that owns the queues
//! and lives on an event-loop thread. Whoever wants the state of a running
//! device first takes its handler off the thread; nothing is shared, so nothing
//! is locked.

pub mod balloon;
pub mod block;
pub mod device;
pub mod fs;
pub mod net;
pub mod rng;
pub mod serve;
pub mod transport;
pub mod vsock;

#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
