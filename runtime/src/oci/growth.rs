//! A machine becomes larger while its container runs.
//!
//! ```text
//! verb (holds the container's lock)      supervisor             VMM, agent
//!   the cgroup's memory up
//!   Grow(size) -------------------------> Grow ---------------> slots, vCPUs
//!                                         Grow ---------------> blocks and CPUs online
//!   <------------------------- its size
//!   shape.json
//! ```
//!
//! Each step is told the size that is to be, not the difference, and leaves alone what is
//! there: who is killed, or fails, in the middle has a machine that is at most larger than
//! `shape.json` says, and the next update finds it so. A limit that was raised for a
//! growth that failed stays: the machine's own size bounds the guest as well.

use protocol::machine::Size;

use super::OciError;
use super::store::{Container, Lock};
use crate::limits::Shape;
use crate::sandbox::available_mib;
use crate::sandbox::cgroup::{self, Version};
use crate::sandbox::membership::{GrowError, Growth};

/// Makes the machine of `container`, now of shape `present`, as large as `wanted`.
///
/// # Errors
/// When host, machine or guest cannot.
pub(super) fn grow(
    container: &Container,
    lock: &Lock,
    present: Shape,
    wanted: Size,
) -> Result<(), OciError> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = available_mib(&meminfo).unwrap_or(u64::MAX);
    let needed = u64::from(wanted.memory_mib.saturating_sub(present.memory_mib));
    if available < needed {
        return Err(GrowError::Host { needed, available }.into());
    }
    let machine = Growth::begin(&container.machine_dir())?;
    raise(container, &present.resized(wanted))?;
    let shape = present.resized(machine.grow(wanted)?);
    // It may have been larger already than `present` says.
    raise(container, &shape)?;
    container.write_shape(lock, &shape)
}

/// Lets the machine use as much of the host's memory as its size needs. A limit that is
/// higher stays.
fn raise(container: &Container, shape: &Shape) -> Result<(), OciError> {
    let plan = &container.record.plan;
    if cgroup::memory(&plan.cgroup)?.is_none_or(|limit| limit >= shape.host_memory_max) {
        return Ok(());
    }
    let limit = cgroup::memory_limit(shape.host_memory_max, Version::of_host());
    plan.manager.change(&plan.cgroup, &[limit])
}
