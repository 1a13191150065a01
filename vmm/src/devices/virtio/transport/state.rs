//! A transport and its device as data.

use serde::{Deserialize, Serialize};

use super::registers::Registers;
use crate::devices::virtio::device::{ActivateError, SavedQueue};

/// Everything between a driver and its device, except guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device id, so that a state is not given to another device.
    pub device_id: u32,
    /// What the device's `save` gave.
    pub device: Vec<u8>,
    /// The driver's half of the register file.
    pub registers: Registers,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The running half, if the device ran.
    pub handler: Option<HandlerState>,
}

/// A handler as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerState {
    /// (index, queue) of each queue in use.
    pub queues: Vec<(u16, SavedQueue)>,
    /// What the handler's `save` gave.
    pub bytes: Vec<u8>,
}

/// Why a state cannot be taken back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The transport was used before.
    #[error("the device is in use already")]
    Busy,
    /// It is the state of another device, or of one built another way.
    #[error("the state is of another device: {0}")]
    Other(&'static str),
    /// No driver can have brought the registers there.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
    /// The device refused its part.
    #[error("the device refuses its state")]
    Device(#[from] ActivateError),
    /// A descriptor could not be made.
    #[error("cannot make a descriptor")]
    Io(#[from] std::io::Error),
}
