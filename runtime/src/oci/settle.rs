//! What a verb that was killed left unsaid.
//!
//! A verb that changes how far a container is marks the phase first, asks the guest, and
//! writes the new phase down. Killed in between, it leaves the mark: whoever finds it,
//! and nobody at work, asks the guest what became of it.

use std::time::Duration;

use protocol::agent::{Call, Return};

use super::OciError;
use super::store::{Container, Live, Lock, Phase, Status};
use crate::agent::{Agent, AgentError};

/// How long a guest may take to say so: engines ask for the state under locks of theirs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Marks the phase before the guest is asked to change it.
///
/// # Errors
/// When it cannot be written.
pub(super) fn begin(container: &Container, lock: &Lock, phase: &Phase) -> Result<(), OciError> {
    container.write_phase(lock, &Phase { changing: true, ..phase.clone() })
}

/// Status and phase as they are, with what a killed verb left settled.
///
/// # Errors
/// When a file cannot be read or written.
pub(super) fn status(
    container: &Container,
    lock: Option<&Lock>,
) -> Result<(Status, Option<Phase>), OciError> {
    let status = container.status()?;
    let phase = container.phase()?;
    let Some(marked) = phase.as_ref().filter(|phase| phase.changing) else {
        return Ok((status, phase));
    };
    if !matches!(status, Status::Live(_)) {
        return Ok((status, phase));
    }
    let taken;
    let lock = match lock {
        Some(lock) => lock,
        None => match container.try_lock()? {
            // Somebody is at it: until he is done it is what it was.
            None => return Ok((status, phase)),
            Some(lock) => {
                taken = lock;
                &taken
            }
        },
    };
    match ask(container) {
        Ok((started, frozen)) => {
            let live = match (frozen, started) {
                (true, _) => Live::Paused,
                (false, true) => Live::Running,
                (false, false) => Live::Created,
            };
            let settled = Phase { status: live, started, changing: false, ..marked.clone() };
            container.write_phase(lock, &settled)?;
            Ok((Status::Live(live), Some(settled)))
        }
        Err(error) => {
            let ended = container.status()?;
            if ended != Status::Stopped {
                tracing::warn!(
                    "a verb on container {:?} was killed, and the guest does not say what \
                     became of it: {error}",
                    container.id()
                );
            }
            Ok((ended, phase))
        }
    }
}

/// Whether it was started, and whether it is frozen.
fn ask(container: &Container) -> Result<(bool, bool), OciError> {
    let call = Call::Phase { container: container.id().to_owned() };
    let answer = super::event_loop()?.block_on(async {
        let machine = container.machine_dir();
        let answer = async { Agent::connect(&machine).await?.call(call).await };
        let late = AgentError::TimedOut { what: "phase", limit: PATIENCE };
        tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(late))
    });
    match answer? {
        Return::Phase { started, frozen } => Ok((started, frozen)),
        _ => Err(AgentError::Nonsense("phase").into()),
    }
}
