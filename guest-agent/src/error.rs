//! Errors on their way to the host.

use std::error::Error;

use protocol::agent::{AgentError, ErrorKind};

/// The error and its sources, joined as people write it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// A failed call.
pub fn error(kind: ErrorKind, message: impl Into<String>) -> AgentError {
    AgentError { kind, message: message.into() }
}

/// Says what the kernel refused.
pub trait SystemContext<T> {
    /// Names the attempt that failed.
    fn system(self, what: impl FnOnce() -> String) -> Result<T, AgentError>;
}

impl<T, E: Error> SystemContext<T> for Result<T, E> {
    fn system(self, what: impl FnOnce() -> String) -> Result<T, AgentError> {
        self.map_err(|source| error(ErrorKind::System, format!("{}: {}", what(), chain(&source))))
    }
}
