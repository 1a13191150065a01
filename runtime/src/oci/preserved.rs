//! Descriptors that the caller of a verb wants the container's process to have:
//! `--preserve-fds`, and those of a socket activation, see sd_listen_fds(3).

use std::os::fd::OwnedFd;

use protocol::agent::MAX_DESCRIPTORS;

use super::OciError;
use crate::sys::descriptors;

/// The first of them, in the caller and in the process.
const FIRST: i32 = 3;

/// What was taken over.
#[derive(Debug, Default)]
pub struct Preserved {
    /// From 3 on.
    pub(super) fds: Vec<OwnedFd>,
    /// How many of them, from the first, come of a socket activation.
    pub(super) activated: usize,
}

impl Preserved {
    /// Takes over `count` descriptors, after those of a socket activation if `activation`
    /// says that those count. Before this process opens any: it would get their numbers.
    ///
    /// # Errors
    /// When there are too many, or one is not open.
    pub fn take(activation: bool, count: u32) -> Result<Preserved, OciError> {
        let activated = if activation { activated() } else { 0 };
        let all = activated.saturating_add(count as usize);
        if all > MAX_DESCRIPTORS {
            let message =
                format!("{all} descriptors are to be passed on, of at most {MAX_DESCRIPTORS}");
            return Err(OciError::Descriptors(message));
        }
        let take = |number| {
            descriptors::inherited(number).map_err(|errno| {
                let message = format!("descriptor {number} is to be passed on: {}", errno.desc());
                OciError::Descriptors(message)
            })
        };
        let fds = (FIRST..).take(all).map(take).collect::<Result<_, _>>()?;
        Ok(Preserved { fds, activated })
    }
}

/// LISTEN_FDS, when it is meant for this very process.
fn activated() -> usize {
    let number = |name| std::env::var(name).ok()?.parse::<usize>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() as usize => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}
