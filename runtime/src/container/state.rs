//! The states of a container and what may follow what.

use serde::{Deserialize, Serialize};

use crate::sandbox::LaunchTimings;
use crate::time::Timestamp;

/// What `state.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum State {
    /// Configured; nothing runs.
    Created,
    /// The machine runs and the process waits for its start.
    Ready {
        /// The machine.
        machine: Machine,
    },
    /// The process runs.
    Running {
        /// The machine.
        machine: Machine,
        /// Since when.
        started: Timestamp,
    },
    /// All its processes are frozen.
    Paused {
        /// The machine.
        machine: Machine,
        /// When it was started.
        started: Timestamp,
    },
    /// Ended, or could not be started.
    Stopped(Stopped),
}

/// The machine of a live container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Process of ours that has the sandbox.
    pub supervisor: i32,
    /// The VMM.
    pub vmm: i32,
    /// First of its host uids.
    pub uid_base: u32,
    /// The guest's `uname -r`.
    pub kernel: String,
    /// How long its start took.
    pub timings: LaunchTimings,
}

/// An end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// As shells count: the exit code or 128 + signal.
    pub exit_code: u8,
    /// Whether the guest's OOM killer struck.
    #[serde(default)]
    pub oom: bool,
    /// Why it ended, when not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was started, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// The machine that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
}

impl State {
    /// Its name, as docker's, but for `ready`.
    pub fn name(&self) -> &'static str {
        match self {
            State::Created => "created",
            State::Ready { .. } => "ready",
            State::Running { .. } => "running",
            State::Paused { .. } => "paused",
            State::Stopped(_) => "exited",
        }
    }

    /// The machine, past or present.
    pub fn machine(&self) -> Option<&Machine> {
        match self {
            State::Created => None,
            State::Ready { machine }
            | State::Running { machine, .. }
            | State::Paused { machine, .. } => Some(machine),
            State::Stopped(stopped) => stopped.machine.as_ref(),
        }
    }

    /// When the process was started.
    pub fn started(&self) -> Option<Timestamp> {
        match self {
            State::Created | State::Ready { .. } => None,
            State::Running { started, .. } | State::Paused { started, .. } => Some(*started),
            State::Stopped(stopped) => stopped.started,
        }
    }

    /// Whether it exists only as long as a supervisor lives.
    pub fn needs_supervisor(&self) -> bool {
        matches!(self, State::Ready { .. } | State::Running { .. } | State::Paused { .. })
    }

    /// Whether `next` may follow.
    pub fn may_become(&self, next: &State) -> bool {
        use State::{Created, Paused, Ready, Running, Stopped};
        matches!(
            (self, next),
            (Created, Ready { .. } | Stopped(_))
                | (Ready { .. }, Running { .. } | Stopped(_))
                | (Running { .. }, Paused { .. } | Stopped(_))
                | (Paused { .. }, Running { .. } | Stopped(_))
                | (Stopped(_), Created)
        )
    }

    /// The end of this state, now.
    pub fn stopped(&self, exit_code: u8, oom: bool, error: Option<String>) -> State {
        State::Stopped(Stopped {
            exit_code,
            oom,
            error,
            started: self.started(),
            finished: Timestamp::now(),
            machine: self.machine().cloned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [State; 5] {
        let machine = Machine::default();
        let started = Timestamp(1);
        [
            State::Created,
            State::Ready { machine: machine.clone() },
            State::Running { machine: machine.clone(), started },
            State::Paused { machine, started },
            State::Created.stopped(0, false, None),
        ]
    }

    #[test]
    fn the_whole_table() {
        // Rows: from; columns: to; in the order of `all`.
        let table = [
            [0, 1, 0, 0, 1], // created
            [0, 0, 1, 0, 1], // ready
            [0, 0, 0, 1, 1], // running
            [0, 0, 1, 0, 1], // paused
            [1, 0, 0, 0, 0], // stopped
        ];
        for (from, row) in all().iter().zip(table) {
            for (to, expected) in all().iter().zip(row) {
                let allowed = from.may_become(to);
                assert_eq!(allowed, expected == 1, "{} -> {}", from.name(), to.name());
            }
        }
    }

    #[test]
    fn states_survive_their_file() {
        for state in all() {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
        }
        assert_eq!(serde_json::to_string(&State::Created).unwrap(), r#"{"status":"created"}"#);
    }

    #[test]
    fn an_end_remembers_its_start() {
        let [_, _, running, ..] = all();
        let State::Stopped(stopped) = running.stopped(137, true, Some("why".into())) else {
            panic!()
        };
        assert_eq!((stopped.started, stopped.exit_code), (Some(Timestamp(1)), 137));
    }
}
