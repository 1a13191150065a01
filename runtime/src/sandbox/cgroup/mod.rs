//! The cgroup on the host that pays for everything a sandbox spends.
//!
//! ```text
//! v2.rs     one tree: /sys/fs/cgroup
//! v1.rs     one for each controller, and one of systemd: /sys/fs/cgroup/memory, ...
//! ```
//!
//! A cgroup has one path for both, `/sys/fs/cgroup/BELOW`: on a host with cgroup v1 it
//! stands for `BELOW` in every hierarchy. A host that has both (systemd's hybrid layout)
//! counts as one with v1, as it does for runc.

mod v1;
mod v2;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::limits::{CPU_PERIOD_US, Shape};
use v1::Hierarchy;

/// Where cgroups are mounted.
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
    /// Neither version is there.
    #[error(
        "no cgroups at {ROOT}: mount cgroup2 there, or a tmpfs with the hierarchies of \
         cgroup v1"
    )]
    None,
    /// A controller is missing in cgroup v2.
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
    /// A controller is missing in cgroup v1.
    #[error(
        "the cgroup controller `{0}` is not available: no hierarchy of cgroup v1 below {ROOT} \
         has it; mount it there (`mount -t cgroup -o {0} cgroup DIRECTORY`) if /proc/cgroups \
         names it, else boot a kernel that has it, or with cgroup v2"
    )]
    NotMounted(String),
    /// Not a path below the root.
    #[error("{} is no cgroup below {ROOT}", .0.display())]
    Outside(PathBuf),
    /// A file of the cgroup.
    #[error("cannot use {} of the cgroup", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CgroupError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CgroupError {
        let path = path.into();
        move |source| CgroupError::File { path, source }
    }
}

/// Which cgroups a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller, by itself or beside cgroup v2.
    V1,
    /// One tree.
    V2,
}

impl Version {
    /// Of this host; the later one where it has none at all, which is an error as soon
    /// as a cgroup is made.
    pub fn of_host() -> Version {
        match Host::present() {
            Ok(Host::V1(_)) => Version::V1,
            Ok(Host::V2) | Err(_) => Version::V2,
        }
    }
}

/// The same, with what is known of it.
enum Host {
    V1(Vec<Hierarchy>),
    V2,
}

impl Host {
    fn present() -> Result<Host, CgroupError> {
        if statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
            return Ok(Host::V2);
        }
        let hierarchies = v1::hierarchies();
        if hierarchies.is_empty() { Err(CgroupError::None) } else { Ok(Host::V1(hierarchies)) }
    }
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
        CgroupConfig { path: path_of(id), limits: limits(shape, Version::of_host()) }
    }
}

/// What the cgroup of a machine of this shape is limited to.
pub fn limits(shape: &Shape, version: Version) -> Vec<(String, String)> {
    let mut limits = vec![
        memory_limit(shape.host_memory_max, version),
        ("pids.max".to_owned(), MAX_THREADS.to_string()),
    ];
    limits.extend(shape.host_cpu_quota.into_iter().flat_map(|quota| cpu_limit(quota, version)));
    limits
}

/// The limit of memory.
pub fn memory_limit(bytes: u64, version: Version) -> (String, String) {
    let file = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    (file.to_owned(), bytes.to_string())
}

/// The limit of processor time, in microseconds of each period.
fn cpu_limit(quota: u64, version: Version) -> Vec<(String, String)> {
    let limit = |file: &str, value: String| (file.to_owned(), value);
    match version {
        Version::V1 => vec![
            limit("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
            limit("cpu.cfs_quota_us", quota.to_string()),
        ],
        Version::V2 => vec![limit("cpu.max", format!("{quota} {CPU_PERIOD_US}"))],
    }
}

/// A sandbox's cgroup. Dropped, it is emptied and removed.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Of cgroup v2: nothing can be cloned into v1.
    directory: Option<File>,
}

impl Cgroup {
    /// Makes the cgroup and those above it, with the limits of `config`.
    ///
    /// # Errors
    /// As [`CgroupError`].
    pub fn create(config: &CgroupConfig) -> Result<Cgroup, CgroupError> {
        let host = Host::present()?;
        make(config)?;
        let mut cgroup = Cgroup { path: config.path.clone(), directory: None };
        if let Host::V2 = host {
            let directory = File::open(&config.path).map_err(CgroupError::file(&config.path))?;
            cgroup.directory = Some(directory);
        }
        Ok(cgroup)
    }

    /// Its directory, for clone3, where the kernel can do that.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.directory.as_ref().map(AsFd::as_fd)
    }

    /// Takes process `pid`, which does nothing yet, in if clone3 did not.
    ///
    /// # Errors
    /// Names the file.
    pub fn take(&self, pid: i32) -> Result<(), CgroupError> {
        match self.directory {
            Some(_) => Ok(()),
            None => enter(&self.path, &pid.to_string()),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        purge(&self.path);
    }
}

/// Path of the cgroup of sandbox `id`.
pub fn path_of(id: &str) -> PathBuf {
    Path::new(ROOT).join(PARENT).join(id)
}

/// What relative paths of cgroups begin with.
pub fn base() -> PathBuf {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match Host::present() {
        Ok(Host::V1(hierarchies)) => v1::base(&own, &hierarchies),
        Ok(Host::V2) | Err(_) => v2::base(&own),
    }
}

/// Names of the controllers that limits can have.
///
/// # Errors
/// When the host has no cgroups.
pub fn controllers() -> Result<Vec<String>, CgroupError> {
    match Host::present()? {
        Host::V1(hierarchies) => Ok(v1::controllers(&hierarchies)),
        Host::V2 => v2::controllers(),
    }
}

/// Makes the cgroup, and those above it with the controllers that its limits
/// need, and sets the limits. One that is there already gets the limits.
///
/// # Errors
/// As [`CgroupError`]; the cgroup itself is not left behind then.
pub fn make(config: &CgroupConfig) -> Result<(), CgroupError> {
    match Host::present()? {
        Host::V1(hierarchies) => v1::make(config, &hierarchies),
        Host::V2 => v2::make(config),
    }
}

/// Changes limits of the cgroup at `path`: file and value.
///
/// # Errors
/// Names the file.
pub fn change(path: &Path, settings: &[(String, String)]) -> Result<(), CgroupError> {
    match Host::present()? {
        Host::V1(hierarchies) => v1::change(path, settings, &hierarchies),
        Host::V2 => v2::change(path, settings),
    }
}

/// The limit of memory of the cgroup at `path`, if there is one.
///
/// # Errors
/// Names the file.
pub fn memory(path: &Path) -> Result<Option<u64>, CgroupError> {
    let file = match Host::present()? {
        Host::V1(hierarchies) => v1::file(path, "memory.limit_in_bytes", &hierarchies)?,
        Host::V2 => path.join("memory.max"),
    };
    let text = std::fs::read_to_string(&file).map_err(CgroupError::file(file))?;
    Ok(text.trim().parse().ok())
}

/// Moves this process into the cgroup at `path`, if it is not there already.
///
/// # Errors
/// Names the file.
pub fn join(path: &Path) -> Result<(), CgroupError> {
    enter(path, "0")
}

fn enter(path: &Path, pid: &str) -> Result<(), CgroupError> {
    match Host::present()? {
        Host::V1(hierarchies) => v1::enter(path, pid, &hierarchies),
        Host::V2 => write(&path.join("cgroup.procs"), pid),
    }
}

/// The processes of the cgroup at `path`, without those of cgroups below it.
///
/// # Errors
/// Names the file.
pub fn processes(path: &Path) -> Result<Vec<i32>, CgroupError> {
    match Host::present()? {
        Host::V1(hierarchies) => v1::processes(path, &hierarchies),
        Host::V2 => {
            let file = path.join("cgroup.procs");
            let text = std::fs::read_to_string(&file).map_err(CgroupError::file(file))?;
            Ok(pids(&text))
        }
    }
}

/// Whether the cgroup at `path`, or one below it, has processes.
pub fn populated(path: &Path) -> bool {
    match Host::present() {
        Ok(Host::V1(hierarchies)) => v1::populated(path, &hierarchies),
        Ok(Host::V2) => v2::populated(path),
        Err(_) => false,
    }
}

/// Kills what is in the cgroup at `path`, and below it. That it is not there is as good.
///
/// # Errors
/// Names the file.
pub fn kill(path: &Path) -> Result<(), CgroupError> {
    match Host::present()? {
        Host::V1(hierarchies) => v1::kill(path, &hierarchies),
        Host::V2 => v2::kill(path),
    }
}

/// Kills what is in the cgroup at `path` and removes it.
pub fn purge(path: &Path) {
    match Host::present() {
        Ok(Host::V1(hierarchies)) => v1::remove(path, &hierarchies),
        Ok(Host::V2) => v2::remove(path),
        // What cannot be there.
        Err(_) => {}
    }
}

/// Removes with `attempt` until that says that all is gone: the kernel says EBUSY while a
/// killed process is not gone entirely.
fn remove_patiently(path: &Path, mut attempt: impl FnMut() -> io::Result<()>) {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
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

/// The names that lead from the root of a hierarchy to `path`.
fn parts(path: &Path) -> Result<Vec<&std::ffi::OsStr>, CgroupError> {
    let outside = || CgroupError::Outside(path.to_owned());
    let below = path.strip_prefix(ROOT).map_err(|_| outside())?;
    let name = |part| match part {
        std::path::Component::Normal(name) => Ok(name),
        _ => Err(outside()),
    };
    below.components().map(name).collect()
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
    // Not created: cgroupfs would refuse that with EACCES, where the file is what lacks.
    let written = File::options().write(true).truncate(true).open(path);
    written.and_then(|mut file| file.write_all(value.as_bytes())).map_err(CgroupError::file(path))
}

/// Numbers of processes, as cgroup.procs lists them.
fn pids(text: &str) -> Vec<i32> {
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Name of the controller that a file belongs to; none of `cgroup.*`.
fn controller(file: &str) -> Option<&str> {
    file.split('.').next().filter(|&name| name != "cgroup")
}
