//! Containers across processes: what is in files, who may change it, the verbs.
//!
//! ```text
//!           create            launch            start
//! (nothing) ------> Created ----------> Ready ---------> Running <--> Paused
//!                    ^  |                 |                 |            |
//!                    |  | cannot start    | fails           | ends       | ends
//!              start |  v                 v                 v            v
//!                    Stopped { exit code, error } <----------------------+
//!                       |
//!                       +--- remove ---> (nothing)
//! ```
//!
//! * `state.json` holds the state, replaced atomically; on disk by `lasting`.
//! * `lock` (flock) is held by whoever changes it: see [`place::VerbLock`].
//! * `supervisor.lock` (flock) is held by the process that has the sandbox, from
//!   before Ready to Stopped. It alone says whether that process lives: a state that
//!   needs a supervisor without one is corrected by [`reconcile`].
//!
//! A container exists as long as its config.json does; what else is left of one
//! that was killed on its way in or out is removed by `sweep`.
//!
//! Invariant: no verb waits for a container's end while it holds `lock`, because
//! the supervisor needs it to write down the end.

pub mod config;
pub mod create;
pub mod exec;
pub mod handover;
mod holder;
pub mod kill;
mod lasting;
pub mod list;
pub mod place;
pub mod reconcile;
pub mod remove;
pub mod state;
pub mod stop;
pub mod store;
pub mod supervise;
mod sweep;

use std::path::PathBuf;

pub use config::{ContainerConfig, Writable};
pub use state::State;
pub use store::{Container, Containers};

/// A container one of whose files cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "container {0} cannot be read, and can only be removed (`bulkhead rm -f {0}`)",
    crate::id::short(id)
)]
pub struct Damaged {
    /// Its id.
    pub id: String,
    /// Names the file.
    source: Box<ContainerError>,
}

impl Damaged {
    fn new(id: &str, source: ContainerError) -> Damaged {
        Damaged { id: id.into(), source: Box::new(source) }
    }
}

/// A container whose state is not as it is written, and could not be corrected.
#[derive(Debug, thiserror::Error)]
#[error("cannot find out the state of container {name}")]
pub struct Uncertain {
    /// Its name.
    pub name: String,
    source: Box<ContainerError>,
}

impl Uncertain {
    fn new(name: impl Into<String>, source: ContainerError) -> Uncertain {
        Uncertain { name: name.into(), source: Box::new(source) }
    }
}

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container.
    #[error("no such container: {0}")]
    NotFound(String),
    /// The start of an id fits several.
    #[error("the id {0} is ambiguous: it is the start of several containers' ids")]
    Ambiguous(String),
    /// The name is taken.
    #[error(
        "the container name {name:?} is already in use by container {}; remove that one \
         (`bulkhead rm {name}`) or take another name",
        crate::id::short(id)
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// Not a name.
    #[error("invalid container name {0:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]+ are allowed")]
    InvalidName(String),
    /// Not in this state.
    #[error("cannot {verb} container {name}: it is {state}")]
    State {
        /// What was asked for.
        verb: &'static str,
        /// Its name.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// Removal of a running container without force.
    #[error(
        "cannot remove container {0}: it is running or starting; stop it first or force its \
         removal with -f"
    )]
    StillRunning(String),
    /// It does not end.
    #[error("container {name} did not end within {seconds} s although its machine was killed")]
    Immortal {
        /// Its name.
        name: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file of ours.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// A container that can only be removed.
    #[error(transparent)]
    Unreadable(#[from] Damaged),
    /// The sandbox does not start.
    #[error(transparent)]
    Launch(#[from] crate::sandbox::LaunchError),
    /// The guest agent.
    #[error(transparent)]
    Agent(#[from] crate::agent::AgentError),
    /// The specification.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// The user.
    #[error(transparent)]
    User(#[from] crate::user::UserError),
    /// The network.
    #[error(transparent)]
    Network(#[from] crate::networks::NetworkError),
    /// A limit.
    #[error(transparent)]
    Limit(#[from] crate::limits::LimitError),
    /// The terminal.
    #[error("the input device is not a TTY")]
    NotATerminal,
    /// A signal came before the process had started.
    #[error("interrupted by signal {0} while starting")]
    Interrupted(i32),
    /// The machine was lost under a running process.
    #[error("the machine of the container ended: {0}")]
    Lost(std::sync::Arc<crate::sandbox::VmmEnd>),
    /// What a supervisor in another process said.
    #[error("{message}")]
    Remote {
        /// Its error.
        message: String,
        /// Its exit code.
        code: u8,
    },
}

impl ContainerError {
    /// Exit status of a command that failed with this, as docker's.
    pub fn exit_code(&self) -> u8 {
        use protocol::agent::ErrorKind;
        match self {
            ContainerError::Agent(crate::agent::AgentError::Refused(error)) => match error.kind {
                ErrorKind::CommandNotFound => 127,
                ErrorKind::NotExecutable => 126,
                _ => 125,
            },
            ContainerError::Interrupted(signal) => 128u8.saturating_add(*signal as u8),
            ContainerError::Remote { code, .. } => *code,
            _ => 125,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> ContainerError {
        let path = path.into();
        move |error| crate::files::FileError::access(path)(error).into()
    }
}

/// An error with all its sources in one line. A source whose text the error before it
/// already ends with is not told twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        next = source.source();
    }
    text
}
