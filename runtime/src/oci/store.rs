//! Containers below a root directory, as they lie on disk.
//!
//! ```text
//! ROOT/ID/record.json       what it is; written once
//!         phase.json        created, running or paused; under the lock
//!         shape.json        size of its machine since it grew; under the lock
//!         exit.json         how its process ended; written by the monitor, needs no lock
//!         lock              held (flock) by the verb that changes it
//!         monitor.lock      held by the monitor for as long as it lives
//!         machine/          the sandbox's directory
//! ```
//!
//! The status follows from these: an `exit.json`, or a monitor that is gone,
//! means stopped, whatever `phase.json` says. So a monitor never waits for a verb,
//! and whoever is killed leaves a state that tells the truth.

use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::agent::Exit;
use serde::{Deserialize, Serialize};

use super::OciError;
use super::create::start_of;
use super::plan::{Identity, Neighbour, Plan};
use crate::dirs;
use crate::files::{read_json, write_json};
use crate::limits::Shape;
use crate::sandbox::LaunchTimings;
use crate::sandbox::ids::{Both, High};
use crate::time::Timestamp;

/// Version of the files; another one is refused.
pub const VERSION: u32 = 1;
/// How long a creation that was begun may take to have a record.
const BIRTH: Duration = Duration::from_secs(5);

/// What a container is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// As the engine named it.
    pub id: String,
    /// `ociVersion` of its configuration.
    pub oci_version: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// When it was made.
    pub created: Timestamp,
    /// Annotations of its configuration.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// What the host does for it.
    pub plan: Plan,
    /// `hooks` of its configuration.
    pub hooks: Option<oci_spec::runtime::Hooks>,
}

/// A live container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Process of ours that stands for the container on the host.
    pub pid: i32,
    /// Its start, in clock ticks since boot: a pid alone may be another's by now.
    pub pid_start: u64,
    /// How far it is.
    pub status: Live,
    /// Whether `start` had its way.
    #[serde(default)]
    pub started: bool,
    /// Whether a verb is about to change it in the guest, or was killed when it was:
    /// see [`super::settle`].
    #[serde(default)]
    pub changing: bool,
    /// How long its start took.
    pub timings: LaunchTimings,
    /// Pid of its process in the guest.
    #[serde(default)]
    pub guest_pid: i32,
}

/// How far a live container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Live {
    /// Its process waits for `start`.
    Created,
    /// Its process runs.
    Running,
    /// All its processes are frozen.
    Paused,
}

/// `status` of the runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `create` is under way.
    Creating,
    /// Alive.
    Live(Live),
    /// Its process has ended.
    Stopped,
}

impl Status {
    /// As the specification writes it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Live(Live::Created) => "created",
            Status::Live(Live::Running) => "running",
            Status::Live(Live::Paused) => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit, when it ended by itself.
    pub exit: Option<Exit>,
    /// Why, otherwise.
    pub error: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// All containers below one directory.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// What it is.
    pub record: Record,
    directory: PathBuf,
}

/// The right to change a container.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

/// The claim to be a container's monitor.
#[derive(Debug)]
pub struct MonitorLock(#[allow(dead_code)] File);

impl Root {
    /// Containers below `path`.
    pub fn new(path: impl Into<PathBuf>) -> Root {
        Root { path: path.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the id of `record` and writes it down. The lock is held by the caller
    /// from the first moment on.
    ///
    /// # Errors
    /// When the id is taken.
    pub(super) fn claim(&self, record: Record) -> Result<(Container, Lock), OciError> {
        dirs::make_private(&self.path).map_err(OciError::io(&self.path))?;
        self.sweep();
        let directory = self.path.join(&record.id);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(OciError::Exists(record.id));
            }
            other => other.map_err(OciError::io(&directory))?,
        }
        let container = Container { record, directory };
        let claimed = container.lock_file().and_then(|lock| {
            container.write("record.json", &container.record)?;
            Ok(lock)
        });
        match claimed {
            Ok(lock) => Ok((container, lock)),
            Err(error) => {
                let _ = dirs::remove_tree(&container.directory);
                Err(error)
            }
        }
    }

    /// Removes what deletions that were killed left: see [`Container::erase`].
    fn sweep(&self) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes()[0] == b'~') {
            // Somebody may be at it: both then succeed.
            if let Err(error) = dirs::remove_tree(&entry.path()) {
                tracing::warn!("cannot remove what is left of a container: {error}");
            }
        }
    }

    /// The container `id`.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn find(&self, id: &str) -> Result<Container, OciError> {
        let unknown = || OciError::NotFound(id.into());
        if !valid_id(id) {
            return Err(unknown());
        }
        let directory = self.path.join(id);
        if !directory.is_dir() {
            return Err(unknown());
        }
        let begin = Instant::now();
        loop {
            let record: Option<Record> = read_json(&directory.join("record.json"))?;
            match record {
                Some(record) if record.version != VERSION => {
                    return Err(OciError::Version { id: id.into(), theirs: record.version });
                }
                Some(record) => return Ok(Container { record, directory }),
                // Somebody is making it, or was killed when he did.
                None if begin.elapsed() < BIRTH && directory.is_dir() => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                None if !directory.is_dir() => return Err(unknown()),
                None => return Err(OciError::Halfway(id.into())),
            }
        }
    }

    /// The container that lives and that process `pid` stands for.
    pub(super) fn neighbour(&self, pid: i32) -> Option<Neighbour> {
        self.ids().ok()?.into_iter().find_map(|id| {
            let path = self.path.join(&id).join("phase.json");
            let phase: Phase = read_json(&path).ok()??;
            if phase.pid != pid || phase.pid_start != start_of(pid) {
                return None;
            }
            let container = self.find(&id).ok()?;
            matches!(container.status(), Ok(Status::Live(_))).then(|| container.neighbour(&phase))
        })
    }

    /// The container that began a machine whose monitor is in the network namespace: it is
    /// that machine's, or about to be, or no longer.
    pub(super) fn occupant(&self, namespace: Identity) -> Result<Option<Container>, OciError> {
        let inside = |id: &String| {
            // Not by the record: one that is only half there would be waited for.
            let (pid, start) = monitor_in(&self.path.join(id))?;
            let metadata = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            let there = (metadata.dev(), metadata.ino()) == namespace && start_of(pid) == start;
            there.then(|| self.find(id))
        };
        for found in self.ids()?.iter().filter_map(inside) {
            match found {
                Ok(one) if one.record.plan.machine.is_none() => return Ok(Some(one)),
                // Removed meanwhile, or one that joined.
                Ok(_) | Err(OciError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Ids of all containers.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, OciError> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(OciError::io(&self.path))?,
        };
        let names = entries.flatten().filter(|entry| entry.path().is_dir());
        let mut ids: Vec<String> =
            names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.retain(|id| valid_id(id));
        ids.sort();
        Ok(ids)
    }

    /// Removes what a killed creation left under `id`, of which nothing is known.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self, id: &str) -> Result<(), OciError> {
        let directory = self.path.join(id);
        dirs::remove_tree(&directory).map_err(OciError::io(directory))
    }
}

/// What runc takes as an id.
pub fn valid_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    // As long as the guest takes them, for a directory and a cgroup of that name.
    !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && id.bytes().all(allowed)
}

/// Pid and start of the monitor of the container in `directory`.
fn monitor_in(directory: &Path) -> Option<(i32, u64)> {
    let text = std::fs::read_to_string(directory.join("monitor.lock")).ok()?;
    let (pid, start) = text.split_once(' ')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// As others see it, while it lives.
    pub(super) fn neighbour(&self, phase: &Phase) -> Neighbour {
        let plan = &self.record.plan;
        Neighbour {
            machine: plan.machine.clone().unwrap_or_else(|| self.id().to_owned()),
            monitor: phase.pid,
            guest_pid: phase.guest_pid,
            mappings: plan.mappings.clone(),
        }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of the sandbox that it is in: its own, or that of the container
    /// whose machine it joined.
    pub fn machine_dir(&self) -> PathBuf {
        match &self.record.plan.machine {
            Some(other) => self.directory.with_file_name(other).join("machine"),
            None => self.directory.join("machine"),
        }
    }

    /// Which ids of the host its machine has.
    ///
    /// # Errors
    /// When the container that began the machine is not to be found.
    pub fn machine_ids(&self) -> Result<Both<High>, OciError> {
        let Some(other) = &self.record.plan.machine else {
            return Ok(self.record.plan.ids.clone());
        };
        let path = self.directory.with_file_name(other).join("record.json");
        let record: Option<Record> = read_json(&path)?;
        record.map(|record| record.plan.ids).ok_or_else(|| OciError::NotFound(other.clone()))
    }

    /// The cgroup of its VMM, when the machine is its own.
    pub fn machine_cgroup(&self) -> PathBuf {
        self.record.plan.cgroup.join("machine")
    }

    /// Waits for the right to change it.
    ///
    /// # Errors
    /// When it was removed meanwhile.
    pub fn lock(&self) -> Result<Lock, OciError> {
        let lock = self.lock_file()?;
        self.still_it(lock)
    }

    /// It may have been removed, and another made, while we waited.
    fn still_it(&self, lock: Lock) -> Result<Lock, OciError> {
        let there: Option<Record> = read_json(&self.directory.join("record.json"))?;
        if there.as_ref() != Some(&self.record) {
            return Err(OciError::NotFound(self.id().into()));
        }
        Ok(lock)
    }

    /// The right to change it, unless somebody has it.
    ///
    /// # Errors
    /// As [`Container::lock`].
    pub fn try_lock(&self) -> Result<Option<Lock>, OciError> {
        loop {
            let file = self.open_lock("lock")?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(OciError::io(&self.directory)(error));
                }
            }
            if let Some(lock) = self.still_there(file)? {
                return self.still_it(lock).map(Some);
            }
        }
    }

    /// The lock of the file that lies there now.
    fn lock_file(&self) -> Result<Lock, OciError> {
        loop {
            let file = self.open_lock("lock")?;
            file.lock().map_err(OciError::io(self.directory.join("lock")))?;
            if let Some(lock) = self.still_there(file)? {
                return Ok(lock);
            }
        }
    }

    /// The lock, if its file lies there still.
    fn still_there(&self, file: File) -> Result<Option<Lock>, OciError> {
        let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
        match (file.metadata().map(id), self.directory.join("lock").metadata().map(id)) {
            (Ok(ours), Ok(there)) if ours == there => Ok(Some(Lock(file))),
            (_, Ok(_)) => Ok(None),
            (_, Err(_)) => Err(OciError::NotFound(self.id().into())),
        }
    }

    /// Becomes its monitor.
    ///
    /// # Errors
    /// When it has one.
    pub fn become_monitor(&self) -> Result<MonitorLock, OciError> {
        let mut file = self.open_lock("monitor.lock")?;
        match file.try_lock() {
            Ok(()) => {
                // For those who have to end it before a phase tells them.
                let pid = std::process::id().cast_signed();
                let written = write!(file, "{pid} {}", start_of(pid));
                written.map_err(OciError::io(&self.directory))?;
                Ok(MonitorLock(file))
            }
            Err(TryLockError::WouldBlock) => Err(OciError::Exists(self.id().into())),
            Err(TryLockError::Error(error)) => Err(OciError::io(&self.directory)(error)),
        }
    }

    fn open_lock(&self, name: &str) -> Result<File, OciError> {
        let path = self.directory.join(name);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => OciError::NotFound(self.id().into()),
            _ => OciError::io(path)(error),
        })
    }

    /// Notes that its cgroup is about to be made, and was empty.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note_cgroup(&self, _: &Lock) -> Result<(), OciError> {
        self.write("cgroup", &true)
    }

    /// Whether its cgroup is its own. (Those of an earlier version have a phase.)
    pub fn has_cgroup(&self) -> bool {
        ["cgroup", "phase.json"].iter().any(|name| self.directory.join(name).exists())
    }

    /// Pid and start of its monitor, from its first moments on.
    pub fn early_monitor(&self) -> Option<(i32, u64)> {
        monitor_in(&self.directory)
    }

    /// Whether its monitor lives.
    pub fn has_monitor(&self) -> bool {
        let file = File::open(self.directory.join("monitor.lock"));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Its status, as it is.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn status(&self) -> Result<Status, OciError> {
        let Some(phase) = self.phase()? else {
            // Created by a verb that holds the lock, or by one that was killed.
            let file = self.open_lock("lock")?;
            return Ok(match file.try_lock() {
                Err(TryLockError::WouldBlock) => Status::Creating,
                _ if self.has_monitor() => Status::Creating,
                _ => Status::Stopped,
            });
        };
        if self.ended()?.is_some() || !self.has_monitor() {
            return Ok(Status::Stopped);
        }
        Ok(Status::Live(phase.status))
    }

    /// What is known of its life.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn phase(&self) -> Result<Option<Phase>, OciError> {
        Ok(read_json(&self.directory.join("phase.json"))?)
    }

    /// Writes that down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_phase(&self, _: &Lock, phase: &Phase) -> Result<(), OciError> {
        self.write("phase.json", phase)
    }

    /// Size of its machine, which is its own.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn shape(&self) -> Result<Shape, OciError> {
        Ok(read_json(&self.directory.join("shape.json"))?.unwrap_or(self.record.plan.shape))
    }

    /// Writes that down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_shape(&self, _: &Lock, shape: &Shape) -> Result<(), OciError> {
        self.write("shape.json", shape)
    }

    /// The network namespace that its machine took over, if that has a path.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn network(&self) -> Result<Option<Identity>, OciError> {
        Ok(read_json(&self.directory.join("network.json"))?)
    }

    /// Writes that down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_network(&self, namespace: Identity) -> Result<(), OciError> {
        self.write("network.json", &namespace)
    }

    /// How its process ended, if it did.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ended(&self) -> Result<Option<Ended>, OciError> {
        Ok(read_json(&self.directory.join("exit.json"))?)
    }

    /// Writes that down.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_end(&self, _: &MonitorLock, ended: &Ended) -> Result<(), OciError> {
        self.write("exit.json", ended)
    }

    /// Removes its files. The id is free from then on.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn erase(self, _: Lock) -> Result<(), OciError> {
        // Under a name that is no id first: one who is killed here leaves no half.
        let gone = self.directory.with_file_name(format!("~{}-{}", self.id(), std::process::id()));
        std::fs::rename(&self.directory, &gone).map_err(OciError::io(&self.directory))?;
        dirs::remove_tree(&gone).map_err(OciError::io(gone))
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), OciError> {
        Ok(write_json(&self.directory.join(name), value)?)
    }
}
