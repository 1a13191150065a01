//! A host with cgroup v1: a tree for each controller.

use std::fs;
use std::path::{Path, PathBuf};

/// The roots of its trees; none on a host with cgroup v2 alone.
pub fn hierarchies() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    // `cpu` is a link to `cpu,cpuacct`.
    let trees = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let trees = trees.map(|entry| entry.path());
    // The root of a tree of cgroup v1 has it, and no other directory.
    trees.filter(|tree| tree.join("cgroup.sane_behavior").exists()).collect()
}

/// Those in which there is a cgroup with this path.
pub fn found(below: &Path) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|tree| tree.join(below)).filter(|path| path.exists()).collect()
}

/// A file of the cgroup `below` in the tree named `tree`.
///
/// # Panics
/// When it cannot be read.
#[track_caller]
pub fn file(tree: &str, below: &Path, name: &str) -> String {
    let path = Path::new("/sys/fs/cgroup").join(tree).join(below).join(name);
    let text = fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
}

/// Where a process is in the tree of a controller, or of systemd (`name=systemd`).
pub fn of_process(pid: i32, controller: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    within(&text, controller).map(str::to_owned)
}

/// The same by what /proc/PID/cgroup says.
pub fn within<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (names, path) = line.split_once(':')?.1.split_once(':')?;
        names.split(',').any(|name| name == controller).then_some(path)
    })
}
