//! The container's cgroup (v2), one level below the root.

pub mod convert;
pub mod devices;
mod place;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::LinuxResources;

use crate::boot::CGROUPS;
use crate::plan::{PlanError, field};
use crate::sys::bpf;

/// How long [`Cgroup::remove`] waits for killed processes to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a cgroup is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The resources are wrong, or not honoured.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel refused.
    #[error("{what}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        source: Errno,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(Errno) -> CgroupError {
    move |source| CgroupError::System { what: what.into(), source }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A cgroup that exists.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    device_program: RefCell<Option<OwnedFd>>,
}

impl Cgroup {
    /// Creates the cgroup of container `id` with its limits.
    ///
    /// # Errors
    /// Names the resource; nothing is left then.
    pub fn create(id: &str, resources: &LinuxResources) -> Result<Self, CgroupError> {
        let path = Path::new(CGROUPS).join(id);
        std::fs::create_dir(&path)
            .map_err(errno)
            .map_err(system(format!("creating cgroup {id}")))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let made = open(&path, flags, Mode::empty())
            .map_err(system(format!("opening cgroup {id}")))
            .map(|directory| Cgroup { path: path.clone(), directory, device_program: None.into() })
            .and_then(|cgroup| {
                cgroup.apply(resources, true)?;
                Ok(cgroup)
            });
        if made.is_err() {
            let _ = std::fs::remove_dir(&path);
        }
        made
    }

    /// Its directory, for CLONE_INTO_CGROUP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Writes limits. Device rules are replaced when there are any, or `fresh`.
    ///
    /// # Errors
    /// Names the resource.
    pub fn apply(&self, resources: &LinuxResources, fresh: bool) -> Result<(), CgroupError> {
        for (file, value) in convert::settings(resources)? {
            match self.write(&file, &value) {
                // A kernel without swap holds every swap limit.
                Err(Errno::ENOENT) if file == "memory.swap.max" => {}
                Err(Errno::ENOENT) if file.starts_with("hugetlb.") => {
                    let reason = format!("the guest's kernel has no {file}");
                    return Err(field("linux.resources.hugepageLimits", reason).into());
                }
                other => {
                    other.map_err(system(format!("writing {value:?} to cgroup file {file}")))?
                }
            }
        }
        let rules = resources.devices().as_deref().unwrap_or_default();
        if fresh || !rules.is_empty() {
            self.restrict_devices(&devices::program(rules)?)
                .map_err(system("applying linux.resources.devices"))?;
        }
        Ok(())
    }

    fn restrict_devices(&self, program: &[u64]) -> Result<(), Errno> {
        let new = bpf::load(program)?;
        bpf::attach(self.fd(), new.as_fd())?;
        // The new one is in force before the old one goes.
        if let Some(old) = self.device_program.borrow_mut().replace(new) {
            bpf::detach(self.fd(), old.as_fd())?;
        }
        Ok(())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Errno> {
        std::fs::write(self.path.join(file), value).map_err(errno)
    }

    /// Freezes or thaws; returns once the kernel has done so.
    ///
    /// # Errors
    /// The kernel's, or that it took too long.
    pub async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value).map_err(system("writing cgroup.freeze"))?;
        let done = || self.event("cgroup.events", "frozen") == Some(frozen.into());
        if within(PATIENCE, done).await {
            return Ok(());
        }
        if frozen {
            // Not later, when nobody knows of it.
            self.write("cgroup.freeze", "0").map_err(system("writing cgroup.freeze"))?;
        }
        Err(system("freezing the container")(Errno::ETIMEDOUT))
    }

    /// Whether it is frozen, or about to be: whoever asked for it may not have waited.
    pub fn is_frozen(&self) -> bool {
        let text = std::fs::read_to_string(self.path.join("cgroup.freeze"));
        text.is_ok_and(|text| text.trim() == "1")
    }

    /// Kills every process in it.
    pub fn kill(&self) {
        let _ = self.write("cgroup.kill", "1");
    }

    /// Sends `signal` to every process in it and below.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        if signal == libc::SIGKILL {
            return self.write("cgroup.kill", "1").map_err(system("writing cgroup.kill"));
        }
        for pid in self.pids() {
            match crate::sys::process::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => return Err(system(format!("signalling process {pid}"))(source)),
            }
        }
        Ok(())
    }

    /// Processes in it and in cgroups that the container made below.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        collect(&self.path, &mut pids, 0);
        pids
    }

    /// Contents of the figures' files that exist.
    pub fn stats(&self) -> BTreeMap<String, String> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return BTreeMap::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter(|name| name.contains('.') && !name.starts_with("cgroup."))
            .chain(["cgroup.events".to_owned(), "cgroup.stat".to_owned()])
            .filter_map(|name| {
                let text = std::fs::read_to_string(self.path.join(&name)).ok()?;
                (!text.is_empty()).then_some((name, text))
            })
            .collect()
    }

    /// How often the OOM killer struck.
    pub fn oom_kills(&self) -> u64 {
        self.event("memory.events", "oom_kill").unwrap_or(0)
    }

    /// The file whose contents change when the OOM killer strikes.
    pub fn memory_events(&self) -> Option<std::fs::File> {
        std::fs::File::open(self.path.join("memory.events")).ok()
    }

    fn event(&self, file: &str, key: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.path.join(file)).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == key)?.1.parse().ok()
    }

    /// Kills what is left and removes the cgroup.
    ///
    /// # Errors
    /// When processes will not die (stuck in the kernel).
    pub async fn remove(&self) -> Result<(), CgroupError> {
        self.kill();
        let _ = self.write("cgroup.freeze", "0");
        let gone = || remove_tree(&self.path, 0).is_ok();
        match within(PATIENCE, gone).await {
            true => Ok(()),
            false => Err(system("removing the container's cgroup")(Errno::EBUSY)),
        }
    }
}

/// Polls `done`, first often, then seldom, for at most `patience`.
async fn within(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = tokio::time::Instant::now() + patience;
    let mut pause = Duration::from_micros(500);
    loop {
        if done() {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

const MAX_DEPTH: usize = 32;

fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

fn collect(path: &Path, pids: &mut Vec<i32>, depth: usize) {
    let text = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    if depth < MAX_DEPTH {
        below(path).for_each(|path| collect(&path, pids, depth + 1));
    }
}

fn remove_tree(path: &Path, depth: usize) -> std::io::Result<()> {
    if depth < MAX_DEPTH {
        for path in below(path) {
            remove_tree(&path, depth + 1)?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
