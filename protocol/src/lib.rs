//! The contracts between bulkhead's processes, as data: nothing here does I/O.
//!
//! * [`machine`]: runtime <-> VMM, over an inherited `SOCK_SEQPACKET` pair.
//! * [`agent`]: host <-> guest agent, over vsock.
//! * [`network`], [`apparmor`]: what travels in those.
//! * [`frame`]: how a message of either becomes bytes.
//! * [`vsock`]: the handshake by which a host process reaches a guest port.
//!
//! The encoding is JSON: self-describing, so that a newer end may add a field
//! and an older one ignore it, and bounded by [`frame::MAX_FRAME`], because the
//! peer is the wall's other side.

pub mod agent;
pub mod apparmor;
mod bytes;
pub mod frame;
pub mod machine;
pub mod network;
pub mod vsock;

/// Version of both contracts. It changes only when an older peer could
/// misunderstand a newer one; new optional fields do not change it.
pub const PROTOCOL_VERSION: u32 = 3;

/// The oldest agent that the host's verbs still speak to: a runtime that was upgraded
/// under running containers must find them. What came later is asked only of machines
/// that the same build began.
pub const OLDEST_AGENT: u32 = 2;
