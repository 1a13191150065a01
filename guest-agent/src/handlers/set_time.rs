//! SetTime: the guest's wall clock.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use protocol::agent::{AgentError, Return};

use crate::error::SystemContext;

/// Sets it.
pub fn handle(nanoseconds: u64) -> Result<Return, AgentError> {
    let time = TimeSpec::from_duration(Duration::from_nanos(nanoseconds));
    clock_settime(ClockId::CLOCK_REALTIME, time).system(|| "setting the clock".into())?;
    Ok(Return::Done)
}
