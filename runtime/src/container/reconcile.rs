//! The truth about containers whose supervisor died.
//!
//! A supervisor that is killed takes its VMM along (the control socket closes),
//! but cannot write that down, nor remove the cgroup and the directory. Whoever
//! looks next does.

use super::place::{Place, VerbLock};
use super::{Container, ContainerError, Damaged, State};
use crate::rootless::is_rootless;
use crate::sandbox::{cgroup, uids};
use crate::{dirs, networks};

/// Exit code of what was killed.
const KILLED: u8 = 137;

impl Container {
    /// The state as it is. Corrects what is written if need be; `None` when the
    /// container was one to remove at its end and is gone by that.
    ///
    /// # Errors
    /// [`ContainerError::Unreadable`] when the state cannot be read, or when
    /// files cannot be written.
    pub fn state(&self) -> Result<Option<State>, ContainerError> {
        let state = self.written_state().map_err(|error| Damaged::new(self.id(), error))?;
        if !state.needs_supervisor() || self.has_supervisor() {
            return Ok(Some(state));
        }
        match self.try_lock() {
            Ok(Some(lock)) => self.reconcile(lock),
            // Somebody is changing it; the supervisor may just be ending.
            Ok(None) => self.written_state().map(Some),
            Err(ContainerError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Container::state`], with the lock.
    pub(super) fn reconcile(&self, lock: VerbLock) -> Result<Option<State>, ContainerError> {
        let state = self.written_state()?;
        if !state.needs_supervisor() || self.has_supervisor() {
            return Ok(Some(state));
        }
        self.purge_sandbox();
        if self.config.auto_remove {
            self.erase(lock)?;
            return Ok(None);
        }
        let error = "the process that supervised the container was killed".to_string();
        let stopped = state.stopped(KILLED, false, Some(error));
        self.write_state(&lock, &stopped)?;
        Ok(Some(stopped))
    }

    /// Whether it is on its way to a running process.
    pub(super) fn is_starting(&self, state: &State) -> bool {
        match state {
            State::Created => self.has_supervisor(),
            state => matches!(state, State::Ready { .. }),
        }
    }

    /// A refusal of `verb` because of the state.
    pub(super) fn refuse(&self, verb: &'static str, state: &State) -> ContainerError {
        let state = if self.is_starting(state) { "starting" } else { state.name() };
        ContainerError::State { verb, name: self.name(), state }
    }
}

impl Place {
    /// Kills and removes what is left of a sandbox without a supervisor. Without root it had
    /// nothing that lasts: its VMM ends by itself.
    pub(super) fn purge_sandbox(&self) {
        if !is_rootless() {
            let path = cgroup::path_of(self.id());
            cgroup::purge(&path);
            uids::purge(&self.dirs().uids(), &path.to_string_lossy());
        }
        if let Err(error) = dirs::remove_tree(&self.sandbox_dir()) {
            tracing::warn!("cannot remove a sandbox's directory: {error}");
        }
        self.leave_network(None, None);
    }

    /// Takes the container out of its network, if it is in one.
    pub(super) fn leave_network(
        &self,
        attached: Option<&networks::Attached>,
        counted: Option<networks::Refused>,
    ) {
        if let Err(error) = networks::detach(self.dirs(), self.id(), attached, counted) {
            let error = super::chain(&error);
            tracing::warn!("something is left of container {}'s network: {error}", self.name());
        }
    }

    /// Removes all files of the container. config.json goes first: without it
    /// the container does not exist, whatever happens to the rest. What is needed to undo
    /// a part of its network that could not be undone stays for the next sweep.
    pub(super) fn erase(&self, _: VerbLock) -> Result<(), ContainerError> {
        let (lib, config) = (self.lib_dir(), self.config_path());
        match std::fs::remove_file(&config) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ContainerError::io(config)(error));
            }
            _ => {}
        }
        networks::remove_all_else(&lib).map_err(ContainerError::io(&lib))?;
        let run = self.run_dir();
        dirs::remove_tree(&run).map_err(ContainerError::io(&run))
    }
}
