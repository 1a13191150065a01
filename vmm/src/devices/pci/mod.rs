//! PCI: one bus, found by the ports of configuration mechanism #1 (PCI Local Bus
//! Specification 3.0, section 3.2.2.3.2), with messages as its only interrupts.
//!
//! ```text
//! ports 0xcf8, 0xcfc --+
//! ports 0x1000..       +-- Root --- 0: bridge, 1..: a slot each, empty or with a Function
//! memory 0xc0000000.. -+                 registers: ConfigSpace, interrupts: Msix
//! ```
//!
//! The guest chooses where registers (BARs) are: Linux gives all of them their addresses, at
//! boot and when it looks again (`/sys/bus/pci/rescan`).

mod config;
mod msix;
mod root;

pub use config::{Bar, ConfigSpace, Identity, Space};
pub use msix::{MessageSink, Msix};
pub use root::{Face, Function, Root};
