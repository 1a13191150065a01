//! Identity, configuration and activation.

use std::sync::Arc;

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::disk::{Disk, SECTOR};
use super::handler::BlockHandler;
use super::request::{MAX_RANGE_SECTORS, MAX_RANGES, SEG_MAX, SIZE_MAX};
use super::state::BlockState;
use crate::devices::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::devices::virtio::serve::read_config;
use crate::event_loop::{Handler, HandlerError};

const NAME: &str = "block";

/// A disk in a raw file.
pub struct Block {
    disk: Arc<Disk>,
}

pub(super) fn broken(message: impl ToString) -> HandlerError {
    HandlerError { device: NAME, message: message.to_string() }
}

fn refused(message: impl ToString) -> ActivateError {
    ActivateError { device: NAME, message: message.to_string() }
}

impl Block {
    /// A block device with this disk.
    pub fn new(disk: Disk) -> Block {
        Block { disk: Arc::new(disk) }
    }

    /// `struct virtio_blk_config` (section 5.2.4).
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        config[0..8].copy_from_slice(&self.disk.sectors().to_le_bytes());
        let words = [
            (8, SIZE_MAX),
            (12, SEG_MAX),
            (20, SECTOR as u32),
            (36, MAX_RANGE_SECTORS),
            (40, MAX_RANGES as u32),
            (44, 8), // discard_sector_alignment: a block of the host
            (48, MAX_RANGE_SECTORS),
            (52, MAX_RANGES as u32),
        ];
        for (offset, word) in words {
            config[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
        }
        config[56] = 1; // write_zeroes_may_unmap
        config
    }

    fn state(&self) -> BlockState {
        BlockState {
            sectors: self.disk.sectors(),
            read_only: self.disk.read_only(),
            serial: self.disk.serial().to_owned(),
        }
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128]
    }

    fn features(&self) -> u64 {
        let always = 1 << blk::VIRTIO_BLK_F_SIZE_MAX
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        let writes = if self.disk.read_only() {
            1 << blk::VIRTIO_BLK_F_RO
        } else {
            1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
        };
        always | writes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queue = activation.queues.first_mut().and_then(Option::take);
        let queue = queue.ok_or_else(|| refused("no request queue"))?;
        Ok(Box::new(BlockHandler {
            queue,
            memory: activation.memory,
            interrupt: activation.interrupt,
            disk: self.disk.clone(),
        }))
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.state()).expect("numbers and a string")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), ActivateError> {
        let state: BlockState = postcard::from_bytes(state).map_err(refused)?;
        if state == self.state() { Ok(()) } else { Err(refused("the disk is another one")) }
    }
}
