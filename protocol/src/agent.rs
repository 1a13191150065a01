//! Host <-> guest agent: framed [`Message`]s over vsock.
//!
//! ```text
//! agent                                   host
//!   | dials READY_PORT; Message::Hello --->  |
//!   | <---  Message::Call { id, call }       |   any number under way at once,
//!   | Message::Return { id, result } ----->  |   answered in any order
//!   | Message::Event(...) ---------------->  |   only on the ready connection
//! ```
//!
//! Life of a container's process:
//!
//! ```text
//! Create -> attach streams -> Start -> (Signal | Resize | Exec ...)* -> Wait -> Delete
//! ```
//!
//! Stdio flows on connections of its own to [`crate::vsock::STREAM_PORT`]; each
//! begins with a framed [`StreamHello`], is answered by a framed
//! [`StreamReply`], and is raw bytes from there on. End of file is the stream's
//! half-close; a process which closes its stdin makes the agent close that
//! stream, and a host which closes an output stream gives the process EPIPE.

use serde::{Deserialize, Serialize};

use crate::apparmor;
use crate::network::Network;

/// What the guest's console says as soon as PID 1 runs, after `bulkhead-agent: `.
pub const FIRST_LINE: &str = "first line";

/// One frame between host and agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// First frame of the agent on every connection.
    Hello(Hello),
    /// Host to agent.
    Call {
        /// Chosen by the host, repeated in the return.
        id: u64,
        /// What to do.
        call: Call,
    },
    /// Agent to host.
    Return {
        /// Of the call.
        id: u64,
        /// Outcome.
        result: Result<Return, AgentError>,
    },
    /// Agent to host, unasked.
    Event(Event),
}

/// What the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the agent.
    pub version: u32,
    /// The guest's `uname -r`.
    pub kernel: String,
    /// Microseconds from the guest's boot (CLOCK_BOOTTIME) to this frame.
    pub uptime_us: u64,
}

/// Names a process: the container's own (`exec` absent) or one executed in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Id of the container.
    pub container: String,
    /// Id of the exec, unique within the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
}

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Build a container up to the point where only `execve` is missing.
    Create(Box<Create>),
    /// Let the container's process execute.
    Start {
        /// Which container.
        container: String,
    },
    /// Run a further process in a started container.
    Exec(Box<Exec>),
    /// Send a signal.
    Signal {
        /// To whom.
        process: ProcessId,
        /// Linux signal number of x86-64.
        signal: i32,
        /// To every process of the container.
        #[serde(default)]
        all: bool,
    },
    /// Set the size of the process's terminal.
    Resize {
        /// Whose.
        process: ProcessId,
        /// Character rows.
        rows: u16,
        /// Character columns.
        columns: u16,
    },
    /// Answer once the process has ended; at once if it has.
    Wait {
        /// Which.
        process: ProcessId,
    },
    /// The container's processes.
    Processes {
        /// Which container.
        container: String,
    },
    /// How far the container is.
    Phase {
        /// Which container.
        container: String,
    },
    /// Figures of the container's cgroup.
    Stats {
        /// Which container.
        container: String,
    },
    /// Freeze (true) or thaw all processes of the container.
    Freeze {
        /// Which container.
        container: String,
        /// Freeze or thaw.
        frozen: bool,
    },
    /// Change the container's limits: an OCI `LinuxResources` object.
    Update {
        /// Which container.
        container: String,
        /// `linux.resources` of the runtime specification.
        resources: serde_json::Value,
    },
    /// The machine was given more: use it. What is in use already stays, so that a call
    /// may be repeated.
    Grow {
        /// All memory that was added so far.
        memory: Option<crate::machine::AddedMemory>,
        /// CPUs that are there.
        vcpus: u8,
    },
    /// Have this network, all of it: see [`Network`].
    Network(Network),
    /// Let the driver of an interface go, before the VMM takes the device away.
    Unplug {
        /// N of the PCI device `0000:00:N.0`.
        device: u8,
    },
    /// Kill what is left of a container and forget it.
    Delete {
        /// Which container.
        container: String,
    },
    /// The host serves these shares no longer: let the kernel forget what it knows of
    /// them.
    Forget {
        /// Paths in the share tree.
        shares: Vec<String>,
    },
    /// Set the guest's CLOCK_REALTIME (nanoseconds since the epoch).
    SetTime {
        /// Nanoseconds since the epoch.
        nanoseconds: u64,
    },
    /// Sync file systems, then turn the machine off. There is no answer.
    PowerOff,
}

/// Builds a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Create {
    /// Its id, unique in the sandbox.
    pub container: String,
    /// Where its root file system comes from.
    pub rootfs: Rootfs,
    /// Mounts whose source is a share. The key is the `source` of an entry of
    /// `spec.mounts`; the value is the share's path in the share tree, or
    /// `memory/<name>` of one of `volumes`.
    #[serde(default)]
    pub sources: std::collections::BTreeMap<String, String>,
    /// What it has in the guest's memory; at most [`MAX_VOLUMES`].
    #[serde(default)]
    pub volumes: Vec<MemoryVolume>,
    /// The OCI runtime configuration (config.json). `root.path` is ignored.
    pub spec: serde_json::Value,
    /// Which streams will be attached before Start.
    pub stdio: Stdio,
    /// What the process has from descriptor 3 on; at most [`MAX_DESCRIPTORS`].
    #[serde(default)]
    pub descriptors: Vec<Descriptor>,
    /// `state` of the runtime specification, without `pid`, for hooks that run in the
    /// guest.
    #[serde(default)]
    pub state: serde_json::Value,
    /// Files to write into the root file system before the process starts
    /// (resolv.conf, hosts, hostname), when nothing is mounted there.
    #[serde(default)]
    pub files: Vec<SeedFile>,
    /// The profiles that `process.apparmorProfile` names; at most
    /// [`apparmor::MAX_PROFILES`], and [`apparmor::MAX_BYTES`] together.
    #[serde(default)]
    pub apparmor: Vec<apparmor::Policy>,
}

/// Most volumes in memory of one container.
pub const MAX_VOLUMES: usize = 64;

/// A tmpfs that containers of one machine have in common, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVolume {
    /// Letters, digits and `-`.
    pub name: String,
    /// Its limit in bytes, where it is not there yet.
    pub size: u64,
    /// Owner, in the same case.
    #[serde(default)]
    pub uid: u32,
    /// Group, in the same case.
    #[serde(default)]
    pub gid: u32,
}

/// A small file that the agent bind-mounts over a path of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedFile {
    /// Absolute path in the container.
    pub path: String,
    /// Contents.
    pub contents: String,
}

/// A root file system. Paths are relative to the share tree
/// (`<kind>/<name>`, see [`crate::machine::Share`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// overlayfs of read-only layers.
    Overlay {
        /// Layers, bottom first.
        layers: Vec<String>,
        /// Where changes go.
        upper: Upper,
    },
    /// A share as it is.
    Share {
        /// Path of the share.
        path: String,
    },
}

/// The writable layer of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// tmpfs in guest memory.
    Memory {
        /// Limit in bytes; without it, half of the guest's memory.
        #[serde(default)]
        size: Option<u64>,
    },
    /// A [`crate::machine::ShareKind::Private`] share that holds (or gets) the
    /// directories `upper` and `work`.
    Share {
        /// Path of the share.
        path: String,
    },
}

/// Which stdio streams the host attaches. What is not attached is /dev/null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Host to process.
    #[serde(default)]
    pub stdin: bool,
    /// Process to host.
    #[serde(default)]
    pub stdout: bool,
    /// Process to host.
    #[serde(default)]
    pub stderr: bool,
    /// One stream both ways instead: the master side of a pseudo-terminal
    /// (`process.terminal` of the spec decides; this must agree).
    #[serde(default)]
    pub terminal: bool,
}

/// Most descriptors that a process gets beside its stdio.
pub const MAX_DESCRIPTORS: usize = 64;

/// What a process gets as one of its further descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Descriptor {
    /// /dev/null.
    Null,
    /// The reading end of a pipe; the host writes.
    Input,
    /// The writing end of a pipe; the host reads.
    Output,
    /// A connected stream socket, whose other end the host has.
    Socket,
    /// A listening socket. Each stream that the host attaches is a connection to it.
    Listener(Family),
}

/// Of which family a listening socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// AF_UNIX.
    Unix,
    /// AF_INET, on the loopback address: with this port, if it is free.
    Ipv4(u16),
    /// AF_INET6, likewise.
    Ipv6(u16),
}

/// Runs a process in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// Which container and exec id (`exec` must be present).
    pub process: ProcessId,
    /// `process` of the runtime specification.
    pub spec: serde_json::Value,
    /// Streams that were announced: the host attaches them after this call
    /// returned, then calls [`Call::Wait`]. The process runs at once; what it
    /// writes before the stream is attached waits in its pipe.
    pub stdio: Stdio,
    /// As in [`Create`].
    #[serde(default)]
    pub descriptors: Vec<Descriptor>,
    /// A cgroup below the container's, in which the process begins. None is the
    /// container's own, or its process's where that one cannot have processes.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// As in [`Create`].
    #[serde(default)]
    pub apparmor: Vec<apparmor::Policy>,
}

/// What a call returns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Return {
    /// Nothing to tell.
    Done,
    /// Create and Exec: pid in the guest's initial pid namespace.
    Pid(i32),
    /// Wait.
    Exit(Exit),
    /// Processes.
    Processes(Vec<Process>),
    /// Phase.
    Phase {
        /// Whether its process was started.
        started: bool,
        /// Whether its processes are frozen.
        frozen: bool,
    },
    /// Stats: file name of the cgroup -> contents, for the files that exist
    /// (`memory.current`, `cpu.stat`, `pids.current`, `io.stat`, ...).
    Stats(std::collections::BTreeMap<String, String>),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code when it exited by itself.
    pub code: Option<u8>,
    /// Signal that killed it.
    pub signal: Option<i32>,
    /// Whether the kernel's OOM killer struck in the container.
    #[serde(default)]
    pub oom: bool,
}

impl Exit {
    /// The status as shells and docker count it: the code, or 128 + signal.
    pub fn status(&self) -> u8 {
        match (self.code, self.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128u8.saturating_add(signal.clamp(0, 127) as u8),
            (None, None) => 255,
        }
    }
}

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Pid in the guest's initial pid namespace.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Real user id.
    pub uid: u32,
    /// Its command line, words separated by spaces.
    pub command: String,
}

/// An unasked message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The OOM killer struck in a container.
    Oom {
        /// Which.
        container: String,
    },
}

/// First frame of a stream connection, from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHello {
    /// Whose stream.
    pub process: ProcessId,
    /// Which one.
    pub stream: Stream,
}

/// Names a stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Host to process.
    Stdin,
    /// Process to host.
    Stdout,
    /// Process to host.
    Stderr,
    /// Both ways.
    Terminal,
    /// One of [`Create::descriptors`], counted from 0.
    Descriptor(u32),
}

/// The agent's answer to [`StreamHello`].
pub type StreamReply = Result<(), AgentError>;

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// What class of failure, for exit codes.
    pub kind: ErrorKind,
    /// What failed, where, and what to do.
    pub message: String,
}

/// Classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such container, process or stream.
    NotFound,
    /// The id is taken, or the stream attached.
    Exists,
    /// Not in this state (start of a started container, exec in an ended one).
    State,
    /// The message or the specification is invalid.
    Invalid,
    /// The command to execute does not exist: exit code 127.
    CommandNotFound,
    /// The command exists but cannot be executed: exit code 126.
    NotExecutable,
    /// The guest's kernel refused something.
    System,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_round_trips() {
        let memory = Some(crate::machine::AddedMemory { start: 1 << 32, bytes: 1 << 27 });
        let call = Call::Grow { memory, vcpus: 2 };
        let json = serde_json::to_string(&call).unwrap();
        assert_eq!(json, r#"{"grow":{"memory":{"start":4294967296,"bytes":134217728},"vcpus":2}}"#);
        assert_eq!(serde_json::from_str::<Call>(&json).unwrap(), call);
    }

    #[test]
    fn status_counts_like_a_shell() {
        let exit = |code, signal| Exit { code, signal, oom: false }.status();
        assert_eq!(exit(Some(7), None), 7);
        assert_eq!(exit(None, Some(9)), 137);
        assert_eq!(exit(None, Some(i32::MAX)), 255);
        assert_eq!(exit(None, None), 255);
    }
}
