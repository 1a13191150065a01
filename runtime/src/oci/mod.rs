//! Containers as engines see them: the verbs of the OCI runtime specification.
//!
//! ```text
//!            create                        start             pause
//! (nothing) --------> creating -> created -------> running <-------> paused
//!                        |           |   kill, end    |   resume       |
//!                        |  fails    +--------------> stopped <--------+
//!                        v                              | delete
//!                    (nothing) <------------------------+
//!
//! create (the verb)                monitor (its child, then the engine's)
//!   | spawn; stdio, console -------> | opens devices and terminal, joins the network namespace
//!   | <------ Opened --------------- |
//!   | makes the cgroup ---- go ----> | joins the cgroup
//!   | <------ Namespaces ----------- |
//!   | hooks: prestart, createRuntime |
//!   | ---------- go ---------------> | launches the machine, builds the container
//!   | <------ Ready(timings) ------- | waits for the process, forwards signals
//!   | writes phase.json, pid file    | writes exit.json, ends as the process did
//! ```
//!
//! The monitor is the process whose pid engines know, wait for and signal.

mod apparmor;
pub mod bundle;
pub mod cgroup;
pub mod console;
pub mod create;
pub mod exec;
pub mod foreground;
mod growth;
pub mod handshake;
pub mod hooks;
pub mod monitor;
mod network;
mod occupant;
pub mod oom;
pub mod plan;
pub mod preserved;
mod settle;
pub mod store;
pub mod verbs;
mod view;

use std::path::PathBuf;

pub use bundle::{Bundle, BundleError};
pub use store::{Container, Live, Root, Status};

/// Version of the runtime specification that is spoken.
pub const SPEC_VERSION: &str = "1.2.0";

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// No such container.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// The id is taken.
    #[error("container with id exists: {0}")]
    Exists(String),
    /// Not an id.
    #[error("invalid container id format: {0:?} (letters, digits and _ + - . are allowed)")]
    InvalidId(String),
    /// What a killed creation left.
    #[error(
        "the creation of container {0:?} was killed; `delete --force {0}` removes what is left"
    )]
    Halfway(String),
    /// Of a version that we do not read.
    #[error("container {id:?} was made by another version (of its files: {theirs})")]
    Version {
        /// Its id.
        id: String,
        /// Version of its files.
        theirs: u32,
    },
    /// It has ended. In the words that containerd knows.
    #[error("container not running")]
    NotRunning,
    /// A verb was killed, and the guest does not say what became of it.
    #[error(
        "a verb on container {0:?} was killed, and its guest does not answer: it may be running. \
         `delete --force {0}` ends it"
    )]
    Unsettled(String),
    /// Not in this status.
    #[error("cannot {verb} container {id:?}: it is {status}")]
    State {
        /// What was asked for.
        verb: &'static str,
        /// Its id.
        id: String,
        /// Its status.
        status: &'static str,
    },
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] hooks::HookError),
    /// The console socket.
    #[error(transparent)]
    Console(#[from] console::ConsoleError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::sandbox::cgroup::CgroupError),
    /// The cgroup, where systemd manages it.
    #[error(transparent)]
    Systemd(Box<crate::systemd::SystemdError>),
    /// The sandbox does not start.
    #[error(transparent)]
    Launch(#[from] crate::sandbox::LaunchError),
    /// The guest agent.
    #[error(transparent)]
    Agent(#[from] crate::agent::AgentError),
    /// The machine of another container.
    #[error(transparent)]
    Join(#[from] crate::sandbox::membership::JoinError),
    /// The machine does not become larger.
    #[error(transparent)]
    Grow(#[from] crate::sandbox::membership::GrowError),
    /// It ended with the container that began it.
    #[error("the machine of the container, which container {0:?} began, ended")]
    Gone(String),
    /// The machine was lost.
    #[error("the machine of the container ended: {0}")]
    Lost(std::sync::Arc<crate::sandbox::VmmEnd>),
    /// What the monitor said.
    #[error("{0}")]
    Monitor(String),
    /// Descriptors that are to be passed on.
    #[error("{0}")]
    Descriptors(String),
    /// One that cannot be.
    #[error(transparent)]
    Descriptor(#[from] crate::streams::descriptors::DescriptorError),
    /// It does not end.
    #[error("container {id:?} did not end within {seconds} s although it was killed")]
    Immortal {
        /// Its id.
        id: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A network namespace.
    #[error("cannot {what}")]
    Namespace {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
}

// Boxed: it is much larger than the others.
impl From<crate::systemd::SystemdError> for OciError {
    fn from(error: crate::systemd::SystemdError) -> OciError {
        OciError::Systemd(Box::new(error))
    }
}

impl OciError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> OciError {
        let path = path.into();
        move |error| crate::files::FileError::access(path)(error).into()
    }
}

/// The event loop of a verb or a monitor: one thread is enough.
pub(super) fn event_loop() -> Result<tokio::runtime::Runtime, OciError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(OciError::io("an event loop"))
}
