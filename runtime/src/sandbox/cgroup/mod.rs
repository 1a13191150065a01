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
        "the cgroup controller `{controller}` is not available in {}; it must be in \
         cgroup.controllers there and not be taken by cgroup v1",
        directory.display()
    )]
    NoController {
        /// Its name.
        controller: String,
        /// Where it is needed.
        directory: PathBuf,
    },
    /// Not a path below the root.
    #[error("{} is no cgroup below {ROOT}", .0.display())]
    Outside(PathBuf),
    /// A file of the cgroup.
    #[error("cannot set up the cgroup: {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where a sandbox is charged, and how much it may spend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupConfig {
    /// Absolute path below [`ROOT`].
    pub path: PathBuf,
    /// File and value, in this order, of what is limited. A file's name begins
    /// with that of its controller.
    pub limits: Vec<(String, String)>,
}

impl CgroupConfig {
    /// The cgroup of a sandbox of ours by its id, with the limits of its machine.
    pub fn of(id: &str, shape: &Shape) -> CgroupConfig {
        CgroupConfig { path: path_of(id), limits: limits(shape) }
    }
}

/// What the cgroup of a machine of this shape is limited to.
pub fn limits(shape: &Shape) -> Vec<(String, String)> {
    let mut limits = vec![
        ("memory.max".to_owned(), shape.host_memory_max.to_string()),
        ("pids.max".to_owned(), MAX_THREADS.to_string()),
    ];
    if let Some(quota) = shape.host_cpu_quota {
        limits.push(("cpu.max".to_owned(), format!("{quota} {CPU_PERIOD_US}")));
    }
    limits
}

/// A sandbox's cgroup. Dropped, it is emptied and removed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    /// Makes the cgroup and those above it, with the limits of `config`.
    ///
    /// # Errors
    /// As [`CgroupError`].
    pub fn create(config: &CgroupConfig) -> Result<Cgroup, CgroupError> {
        make(config)?;
        let path = config.path.clone();
        match File::open(&path) {
            Ok(directory) => Ok(Cgroup { path, directory }),
            Err(source) => {
                remove(&path);
                Err(CgroupError::File { path, source })
            }
        }
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

/// Whether the cgroup at `path` has processes.
pub fn populated(path: &Path) -> bool {
    let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// Kills what is in the cgroup at `path` and removes it.
pub fn purge(path: &Path) {
    remove(path);
}

/// Kills what is in the cgroup at `path`, and below it.
pub fn kill(path: &Path) {
    // Absent on kernels before 5.14; the VMM then has ended by other means.
    let _ = std::fs::write(path.join("cgroup.kill"), "1");
}

fn remove(path: &Path) {
    let begin = Instant::now();
    kill(path);
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

/// Makes the cgroup, and those above it with the controllers that its limits
/// need, and sets the limits. One that is there already gets the limits.
///
/// # Errors
/// As [`CgroupError`]; the cgroup itself is not left behind then.
pub fn make(config: &CgroupConfig) -> Result<(), CgroupError> {
    let root = Path::new(ROOT);
    if !statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Err(CgroupError::NotV2);
    }
    let mut controllers = Vec::new();
    for (file, _) in &config.limits {
        let controller = file.split('.').next().unwrap_or_default();
        // `cgroup.*` belongs to none.
        if controller != "cgroup" && !controllers.contains(&controller) {
            controllers.push(controller);
        }
    }
    let below =
        config.path.strip_prefix(root).map_err(|_| CgroupError::Outside(config.path.clone()))?;
    let mut path = root.to_owned();
    for part in below.components() {
        let std::path::Component::Normal(part) = part else {
            return Err(CgroupError::Outside(config.path.clone()));
        };
        enable(&path, &controllers)?;
        path.push(part);
        make_directory(&path)?;
    }
    let limit = |(file, value): &(String, String)| write(&path.join(file), value);
    config.limits.iter().try_for_each(limit).inspect_err(|_| remove(&path))
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
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
fn enable(directory: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
    let read = |file: &str| {
        let path = directory.join(file);
        std::fs::read_to_string(&path).map_err(|source| CgroupError::File { path, source })
    };
    let enabled = read("cgroup.subtree_control")?;
    let available = read("cgroup.controllers")?;
    for &controller in controllers {
        if has(&enabled, controller) {
            continue;
        }
        if !has(&available, controller) {
            return Err(CgroupError::NoController {
                controller: controller.to_owned(),
                directory: directory.to_owned(),
            });
        }
        write(&directory.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

/// Whether a list of controllers has `name`.
pub fn has(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|word| word == name)
}
