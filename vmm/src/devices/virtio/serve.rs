//! The loop that devices with simple queues share: take a chain, do the work,
//! give it back, tell the driver.

use virtio_queue::{DescriptorChain, Error, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::device::{ActiveQueue, Interrupt, SavedQueue};
use crate::memory::GuestRam;

/// A chain as the devices see it.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// Serves what the driver made available in a queue, which comes with its index, at most `budget` chains; when more is
/// left, the queue kicks itself, so that other handlers of the loop get their
/// turn. `work` returns how many bytes it wrote to the chain.
///
/// # Errors
/// When the driver broke the ring (section 2.7): the device needs a reset.
pub fn serve(
    (index, active): (u16, &mut ActiveQueue),
    memory: &GuestRam,
    interrupt: &dyn Interrupt,
    budget: u16,
    mut work: impl FnMut(Chain) -> u32,
) -> Result<(), Error> {
    // Nothing to read is fine as well: `serve` may be called at any time.
    let _ = active.kick.read();
    let queue = &mut active.queue;
    let mut done = 0;
    let mut promised = false;
    queue.disable_notification(&**memory)?;
    loop {
        let before = done;
        while done < budget {
            let Some(chain) = queue.iter(&**memory)?.next() else { break };
            let head = chain.head_index();
            let written = work(chain);
            queue.add_used(&**memory, head, written)?;
            done += 1;
        }
        if done == budget {
            let _ = active.kick.write(1);
            break;
        }
        if promised && done == before {
            // The index says that there is more, and there is not: an available
            // ring that cannot be read.
            return Err(Error::InvalidAvailRingIndex);
        }
        promised = queue.enable_notification(&**memory)?;
        if !promised {
            break;
        }
        queue.disable_notification(&**memory)?;
    }
    if done > 0 && queue.needs_notification(&**memory)? {
        interrupt.queue(index);
    }
    Ok(())
}

/// Reads from a configuration space; bytes beyond its end are zero.
pub fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(config.len());
    let len = data.len().min(config.len() - start);
    data[..len].copy_from_slice(&config[start..start + len]);
}

/// The state of a queue, for [`Handler::queues`](crate::event_loop::Handler::queues).
pub fn saved(active: &ActiveQueue) -> SavedQueue {
    active.queue.state().into()
}
