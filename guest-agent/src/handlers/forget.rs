//! Forget: shares that the host serves no longer.

use protocol::agent::{AgentError, Return};

use super::create::invalid;
use crate::plan;

/// A look at a name that is gone makes the kernel drop all that it has cached below.
pub fn handle(shares: &[String]) -> Result<Return, AgentError> {
    for share in shares {
        let path = plan::share(share).map_err(|error| invalid(&error))?;
        // That it is not there is what is to be found out.
        let _ = std::fs::symlink_metadata(path);
    }
    Ok(Return::Done)
}
