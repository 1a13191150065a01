//! The cgroup (v2) on the host that pays for everything a sandbox spends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::limits::{CPU_PERIOD_US, Shape};

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Directory of all sandboxes below it.
const PARENT: &str = "bulkhead";
/// Threads that a VMM may have.
const MAX_THREADS: u32 = 256;
/// Controllers that limits need.
pub const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// How long the kernel may take to empty a killed cgroup.
const REMOVAL: Duration = Duration::from_secs(5);

/// Why the cgroup cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 there.
    #[error(
        "{ROOT} is not a cgroup v2 file system; boot the host with \
         systemd.unified_cgroup_hierarchy=1, or mount cgroup2 there"
    )]
    NotV2,
    /// A controller is missing.
    #[error(
        "the cgroup controller `{0}` is not available in {ROOT}; it must be in \
         cgroup.controllers there and not be taken by cgroup v1"
    )]
    NoController(&'static str),
    /// A file of the cgroup.
    #[error("cannot set up the cgroup: {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A sandbox's cgroup. Dropped, it is emptied and removed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    /// Makes the cgroup of sandbox `id` with the limits of `shape`.
    ///
    /// # Errors
    /// As [`CgroupError`].
    pub fn create(id: &str, shape: &Shape) -> Result<Cgroup, CgroupError> {
        let is_v2 = statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if !is_v2 {
            return Err(CgroupError::NotV2);
        }
        let parent = Path::new(ROOT).join(PARENT);
        make(&parent)?;
        for directory in [Path::new(ROOT), &parent] {
            enable(directory)?;
        }
        let path = parent.join(id);
        make(&path)?;
        let directory = File::open(&path).map_err(|source| {
            remove(&path);
            CgroupError::File { path: path.clone(), source }
        })?;
        let cgroup = Cgroup { path, directory };
        cgroup.set("memory.max", &shape.host_memory_max.to_string())?;
        cgroup.set("pids.max", &MAX_THREADS.to_string())?;
        if let Some(quota) = shape.host_cpu_quota {
            cgroup.set("cpu.max", &format!("{quota} {CPU_PERIOD_US}"))?;
        }
        Ok(cgroup)
    }

    fn set(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        write(&self.path.join(file), value)
    }

    /// Its directory, for clone3.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Path of the cgroup of sandbox `id`.
pub fn path_of(id: &str) -> PathBuf {
    Path::new(ROOT).join(PARENT).join(id)
}

/// Whether the cgroup of sandbox `id` has processes.
pub fn populated(id: &str) -> bool {
    let events = std::fs::read_to_string(path_of(id).join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Kills what is in the cgroup of sandbox `id` and removes it.
pub fn purge(id: &str) {
    remove(&path_of(id));
}

fn remove(path: &Path) {
    let begin = Instant::now();
    // Absent on kernels before 5.14; the VMM then has ended by other means.
    let _ = std::fs::write(path.join("cgroup.kill"), "1");
    let mut pause = Duration::from_millis(1);
    loop {
        match std::fs::remove_dir(path) {
            // EBUSY while a killed task is not gone entirely.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove the cgroup {}: {error}", path.display());
                return;
            }
            _ => return,
        }
        if begin.elapsed() > REMOVAL {
            tracing::warn!("the cgroup {} stays busy and is left behind", path.display());
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::File { path: path.into(), source })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    std::fs::write(path, value).map_err(|source| CgroupError::File { path: path.into(), source })
}

/// Hands the controllers that are missing in `directory` down to its children.
fn enable(directory: &Path) -> Result<(), CgroupError> {
    let read = |file: &str| {
        let path = directory.join(file);
        std::fs::read_to_string(&path).map_err(|source| CgroupError::File { path, source })
    };
    let enabled = read("cgroup.subtree_control")?;
    let available = read("cgroup.controllers")?;
    for controller in CONTROLLERS {
        if has(&enabled, controller) {
            continue;
        }
        if !has(&available, controller) {
            return Err(CgroupError::NoController(controller));
        }
        write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

/// Whether a list of controllers has `name`.
pub fn has(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|word| word == name)
}
